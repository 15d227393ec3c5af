"""Length normalisation between layers: only the direction of the activity vector is handed on.

Functions take one example of any shape and normalise over all of it; callers vmap over batches.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import lax

from fflax.types import Array

MIN_EPS = 1e-12
"""Below it `1 / eps**3`, in the gradient of a zero example, overflows float32 and gives NaN."""


def rms_normalize(h: Array, eps: float = 1e-6) -> Array:
  """`h / sqrt(mean(h**2) + eps**2)`: unit mean square; no mean is removed.

  The floor stands under the root (not beside it as in most public code), so that the gradient of an
  all-zero example is finite, not NaN; this needs `eps >= MIN_EPS`.
  """
  h = h.astype(jnp.float32)
  return h * lax.rsqrt(jnp.mean(jnp.square(h)) + eps**2)


def l2_normalize(h: Array, eps: float = 1e-6) -> Array:
  """`h / sqrt(sum(h**2) + eps**2)`: unit Euclidean length; no mean is removed."""
  h = h.astype(jnp.float32)
  return h * lax.rsqrt(jnp.sum(jnp.square(h)) + eps**2)


def no_normalize(h: Array, eps: float = 0.0) -> Array:
  """`h` itself: for layers whose batch norm already fixes the scale."""
  del eps
  return h.astype(jnp.float32)


def check_eps(eps: float) -> None:
  """Raises ValueError if `eps` is below `MIN_EPS`."""
  if not eps >= MIN_EPS:
    raise ValueError(f"eps {eps} gives NaN for a zero example in float32: use >= {MIN_EPS}")


NORMALIZATIONS: Mapping[str, Callable[..., Array]] = {
  "rms": rms_normalize,
  "l2": l2_normalize,
  "none": no_normalize,
}
