"""Normalisation between layers: of length (only the direction is handed on), or of channels.

`NORMALIZATIONS` take one example of any shape and normalise over all of it; callers vmap over
batches. `CHANNEL_NORMS` take any leading axes and normalise over the last one alone.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array, Key

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


def layer_norm(h: Array, eps: float = 1e-5) -> Array:
  """`(h - mean) / sqrt(variance + eps)` over the last axis, without scale and shift, float32.

  Of `[B, H, W, C]` it is one of channels at each place; of `[B, D]` one of an example's units.
  """
  h = h.astype(jnp.float32)
  h = h - jnp.mean(h, axis=-1, keepdims=True)
  return h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + eps)


def channel_rms_norm(h: Array, eps: float = 1e-5) -> Array:
  """`h / sqrt(mean(h**2) + eps)` over the last axis, float32: `layer_norm` that keeps the mean."""
  h = h.astype(jnp.float32)
  return h * lax.rsqrt(jnp.mean(jnp.square(h), axis=-1, keepdims=True) + eps)


CHANNEL_NORMS: Mapping[str, Callable[..., Array]] = {
  "layer": layer_norm,
  "rms": channel_rms_norm,
  "none": no_normalize,
}


def dropout(key: Key | None, x: Array, rate: float) -> Array:
  """`x` with each number zero with probability `rate`, else divided by `1 - rate`.

  Nothing is dropped without a key (evaluation) or at rate 0.
  """
  if key is None or not rate:
    return x
  return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0.0)
