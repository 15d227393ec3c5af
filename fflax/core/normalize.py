"""Length normalisation between layers: only the direction of the activity vector is handed on.

Functions take one example of any shape and normalise over all of it; callers vmap over batches.
"""

from collections.abc import Callable, Mapping

import jax.numpy as jnp
from jax import lax

from fflax.types import Array


def rms_normalize(h: Array, eps: float = 1e-6) -> Array:
  """`h / sqrt(mean(h**2) + eps**2)`: unit mean square; no mean is removed.

  The floor stands under the root (not beside it as in most public code), so that the gradient of an
  all-zero example is zero, not NaN.
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


NORMALIZATIONS: Mapping[str, Callable[..., Array]] = {
  "rms": rms_normalize,
  "l2": l2_normalize,
  "none": no_normalize,
}
