"""Pooling: maxima with a gradient that is fast on a CPU, and averages onto a coarse grid.

XLA's own gradient of a max-pool (`select_and_scatter_add`) is a naive loop on a CPU, and takes as
long as a convolution. Maxima of shifted images are the same function and the same gradient.
"""

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array


def max_pool_2x2(x: Array) -> Array:
  """2x2 max-pooling with stride 2: `[..., H, W, C]` to `[..., H // 2, W // 2, C]`.

  An odd last row or column is dropped. Where several of a window's four are largest, the first in
  reading order gets the gradient, as in `flax.linen.max_pool` and in PyTorch.
  """
  height, width = (size // 2 * 2 for size in x.shape[-3:-1])
  rows = (x[..., i:height:2, :, :] for i in (0, 1))
  top, bottom = (_first_largest(row[..., 0:width:2, :], row[..., 1:width:2, :]) for row in rows)
  return _first_largest(top, bottom)


@jax.custom_jvp
def _first_largest(a: Array, b: Array) -> Array:
  return jnp.maximum(a, b)


@_first_largest.defjvp
def _first_largest_jvp(
  primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
  (a, b), (da, db) = primals, tangents
  return _first_largest(a, b), jnp.where(a >= b, da, db)  # JAX's own gradient splits equals


def adaptive_average_pool(x: Array, grid: int) -> Array:
  """Average-pools `[B, H, W, C]` to `[B, grid, grid, C]`, float32.

  Bin i of n over size H covers rows `floor(i H / n)` to `ceil((i + 1) H / n) - 1`; a map smaller
  than the grid is pooled to its own size.
  """

  def weights(size: int) -> Array:
    n = min(grid, size)
    i = jnp.arange(n)[:, None]
    row = jnp.arange(size)[None, :]
    inside = (row >= i * size // n) & (row < -(-(i + 1) * size // n))
    return inside / jnp.sum(inside, axis=1, keepdims=True)

  # A mean is to be float32 also where a machine's usual product rounds its operands.
  return jnp.einsum(
    "bhwc,ih,jw->bijc",
    x.astype(jnp.float32),
    weights(x.shape[1]),
    weights(x.shape[2]),
    precision=lax.Precision.HIGHEST,
  )


def grid_features(x: Array, grid: int) -> Array:
  """A vector for each example: maps `[B, H, W, C]` pooled onto a grid, `[B, D]` as it is; float32.

  Where the grid divides the map, bins are means of equal blocks, without a product.
  """
  if x.ndim == 4:
    size, height, width, channels = x.shape
    if height % grid or width % grid:
      x = adaptive_average_pool(x, grid)
    else:
      blocks = (size, grid, height // grid, grid, width // grid, channels)
      x = jnp.mean(x.astype(jnp.float32).reshape(blocks), axis=(2, 4))
  return x.astype(jnp.float32).reshape(x.shape[0], -1)


def average_pool_to(x: Array, most: int) -> Array:
  """Average-pools `[B, H, W, C]` until no more than about `most` numbers are left of an example.

  Nokland & Eidnes, 2019 (arXiv 1901.06656), released code: the window is 1x1; while
  `C * ceil(H / kh) * ceil(W / kw) > most` and it is not larger than the map, its height doubles,
  and then, if there are still too many, its width. So bins need not be square; C alone may be more
  than `most`.

  Deviations:
    Where a window does not divide the map, zeros are padded before and after (as many as "SAME"
    does), and do not count in the mean; PyTorch's code pads half a window and counts the zeros.

  Returns:
    `[B, ceil(H / kh), ceil(W / kw), C]` float32.
  """
  height, width, channels = x.shape[1:]
  window = [1, 1]

  def left() -> int:
    return channels * -(-height // window[0]) * -(-width // window[1])

  while left() > most and (window[0] < height or window[1] < width):
    for axis, size in enumerate((height, width)):
      if left() > most and window[axis] < size:
        window[axis] *= 2
  x = x.astype(jnp.float32)
  if window == [1, 1]:
    return x
  shape = (1, *window, 1)
  total = lax.reduce_window(x, 0.0, lax.add, shape, shape, "SAME")
  number = lax.reduce_window(jnp.ones_like(x[:1]), 0.0, lax.add, shape, shape, "SAME")
  return total / number
