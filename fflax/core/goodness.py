"""Goodness: one number that says how much a layer likes an example.

Functions take one example's activities of any shape and return a float32 scalar; callers vmap.
Those that square take the squares beside them, where these have a gradient of their own (p-bits).
Differences of goodness and threshold are large-number differences (a bfloat16 near 1000 is exact to
4), so everything here is float32.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fflax.types import Array, LayerOut


def sum_of_squares(h: Array, square: Array | None = None) -> Array:
  """`sum_j h_j**2` (Hinton, 2022, arXiv 2212.13345); `square` is `h**2`, if it comes along.

  Example:
    >>> float(sum_of_squares(jnp.array([3.0, 4.0])))
    25.0
  """
  return jnp.sum(_squares(h, square))


def mean_of_squares(h: Array, square: Array | None = None) -> Array:
  """`mean_j h_j**2`: `sum_of_squares` at a temperature of the layer's width."""
  return jnp.mean(_squares(h, square))


def sum_of_activities(h: Array, square: Array | None = None) -> Array:
  """`sum_j h_j`, the unsquared goodness of the paper's remarks."""
  del square
  return jnp.sum(h.astype(jnp.float32))


def _squares(h: Array, square: Array | None) -> Array:
  return jnp.square(h.astype(jnp.float32)) if square is None else square.astype(jnp.float32)


GOODNESS: Mapping[str, Callable[..., Array]] = {
  "sum": sum_of_squares,
  "mean": mean_of_squares,
  "unsquared": sum_of_activities,
}


def threshold(theta: float, kind: str, width: int) -> float:
  """The threshold on the layer's own scale, from `theta` per unit.

  "sum" at `theta * width` and "mean" at `theta` cut the same examples; giving theta per unit keeps
  one number comparable across kinds and widths (the paper's sum against d is `theta=1`).
  """
  return theta if kind == "mean" else theta * width


def squared(out: LayerOut) -> Array:
  """What a layer emits, squared, with the gradient that its units ask for."""
  return jnp.square(out.out) if out.square is None else out.square


def squared_activities(out: LayerOut) -> Array:
  """`squared`, but of a layer's activities before any pooling or norm; float32."""
  return _squares(out.act, out.act_square)


def blockwise_mean_of_squares(square: Array, num_blocks: int) -> Array:
  """Mean of each of `num_blocks` contiguous blocks of channels, `[J]` float32.

  Channel-wise goodness, `G_j = mean_{c in j, h, w} Y_{hwc}**2` (A. Papachristodoulou et al., AAAI
  2024, arXiv 2312.12668).

  Args:
    square: squares `[..., C]` of one example.
    num_blocks: J, a divisor of C.

  Raises:
    ValueError: C is no multiple of J.
  """
  channels = square.shape[-1]
  if channels % num_blocks:
    raise ValueError(f"{channels} channels cannot be split into {num_blocks} equal class blocks")
  blocks = square.astype(jnp.float32).reshape(-1, num_blocks, channels // num_blocks)
  return jnp.mean(blocks, axis=(0, 2))


def bounded_temperature(alpha: Array, low: float, high: float) -> Array:
  """`low + (high - low) sigmoid(alpha)`: a temperature that is learned, and stays in its bounds.

  DTG-FF (Y. Chen, 2026, arXiv 2606.06539). At alpha 0 it is the middle; at a bound it freezes.
  """
  return low + (high - low) * jax.nn.sigmoid(alpha)
