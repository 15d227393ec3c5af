"""3x3 convolutions of stride 1 on a CPU, with 2.25 times fewer multiplications.

Winograd's F(2x2, 3x3), see A. Lavin and S. Gray, "Fast Algorithms for Convolutional Neural
Networks", CVPR 2016, arXiv 1509.09308, eq. 8: a tile of 2x2 outputs is

  A^T [(G w G^T) * (B^T x B)] A

of the 4x4 inputs x that it reads and the kernel w. Summed over input channels, the elementwise
product is 16 products of matrices, `[tiles, C] . [C, O]`. Transposed, that is the weight gradient,
`G^T [(B^T x B) * (A g A^T)] G`, summed over tiles. The batch goes through in parts whose tiles stay
in the cache; all at once, the tiles, four times as many numbers as the images, would come from and
go to memory, and cost more than is saved.

Errors are float32's, a few roundings more than those of the plain sum.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import lax

from fflax.core.batch_parts import map_parts, number_of_parts, sum_parts
from fflax.core.padding import Pads, pad_space
from fflax.types import Array

_G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]], np.float32)
_G_OF_BOTH_AXES = np.kron(_G, _G)  # [16, 9]
_LEAST_CHANNELS = 32  # with fewer, the products are too thin to pay for the transforms
_MOST_TILES = 1024  # of one image: more leave the cache
_NUMBERS = 1 << 17  # tiles of a part, times channels in and out
_LEAST_TILES = 512  # of a part: every part reads all kernels again


def is_faster(
  image: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Pads
) -> bool:
  """Whether it beats the plain convolution on a CPU, `[B, H, W, C]` by `[kh, kw, C, O]`.

  A rule of thumb from 11 shapes on one and two cores: most products were 1.2 to 2 times as fast,
  some as fast, the worst 0.74 times (forward, 7x7x128, two cores), the best, kernel's gradients on
  two cores, 4 times. For images of 2x2 XLA has a naive loop alone, some 50 times slower.
  """
  return (
    len(image) == 4
    and tuple(kernel[:2]) == (3, 3)
    and tuple(strides) == (1, 1)
    and min(kernel[2:]) >= _LEAST_CHANNELS
    and max(kernel[2:]) >= 2 * _LEAST_CHANNELS
    and image[1] * image[2] <= 4 * _MOST_TILES
    and image[0] * image[1] * image[2] >= _LEAST_TILES
    and min(_out_size(image, pads)) > 0
  )


def winograd_conv(x: Array, w: Array, pads: Pads) -> Array:
  """The convolution of stride 1.

  Args:
    x: images `[B, H, W, C]`, float32.
    w: kernels `[3, 3, C, O]`, float32.
    pads: zeros before and after height and width; negative numbers crop.

  Returns:
    `[B, H', W', O]` with `H' = H + pads - 2`.
  """
  height, width = _out_size(x.shape, pads)
  inside, outside = w.shape[2:]
  kernels = jnp.dot(_G_OF_BOTH_AXES, w.reshape(9, inside * outside)).reshape(16, inside, outside)

  def one(x: Array) -> Array:
    products = [tile @ kernels[i] for i, tile in enumerate(_input_tiles(x, pads))]
    return _outputs(products, len(x), height, width)

  return map_parts(one, _parts(x.shape, height, width, inside + outside), x)


def winograd_weight_gradient(x: Array, g: Array, pads: Pads) -> Array:
  """The gradient of the kernel, `[3, 3, C, O]`, for the cotangent `g` of `winograd_conv`."""
  height, width = g.shape[1:3]
  inside, outside = x.shape[-1], g.shape[-1]

  def one(x: Array, g: Array) -> Array:
    pairs = zip(_input_tiles(x, pads), _cotangent_tiles(g), strict=True)
    return jnp.stack([lax.dot_general(a, b, (((0,), (0,)), ((), ()))) for a, b in pairs])

  total = sum_parts(one, _parts(x.shape, height, width, inside + outside), x, g)
  return jnp.dot(_G_OF_BOTH_AXES.T, total.reshape(16, inside * outside)).reshape(
    3, 3, inside, outside
  )


def _out_size(image: Sequence[int], pads: Pads) -> tuple[int, int]:
  """Height and width of the result for images `[B, H, W, C]`."""
  height, width = (
    size + low + high - 2 for size, (low, high) in zip(image[1:3], pads, strict=True)
  )
  return height, width


def _parts(image: Sequence[int], height: int, width: int, channels: int) -> int:
  tiles = -(-height // 2) * -(-width // 2)
  return number_of_parts(image[0], max(_LEAST_TILES, _NUMBERS / channels) / tiles)


def _input_tiles(x: Array, pads: Pads) -> list[Array]:
  """`B^T x B` of every tile, entry by entry: 16 times `[tiles, C]`."""
  height, width = (-(-size // 2) for size in _out_size(x.shape, pads))
  edges = [
    (low, 2 * tiles + 2 - size - low)
    for size, tiles, (low, _) in zip(x.shape[1:3], (height, width), pads, strict=True)
  ]
  x = pad_space(x, edges)
  rows = _input_transform([x[:, i : i + 2 * height - 1 : 2] for i in range(4)])
  entries = [
    entry
    for row in rows
    for entry in _input_transform([row[:, :, j : j + 2 * width - 1 : 2] for j in range(4)])
  ]
  return [entry.reshape(-1, x.shape[-1]) for entry in entries]


def _input_transform(d: list[Array]) -> list[Array]:
  """B^T of four neighbours."""
  return [d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]]


def _outputs(products: list[Array], batch: int, height: int, width: int) -> Array:
  """`A^T m A` of every tile, put together to `[B, H', W', O]`."""
  down, across = -(-height // 2), -(-width // 2)
  m = [product.reshape(batch, down, across, -1) for product in products]
  rows = [_output_transform([m[4 * i + j] for i in range(4)]) for j in range(4)]
  quads = [_output_transform([rows[j][i] for j in range(4)]) for i in range(2)]  # [row][column]
  tiles = jnp.stack([jnp.stack(quad, axis=3) for quad in quads], axis=2)
  return tiles.reshape(batch, 2 * down, 2 * across, -1)[:, :height, :width]


def _output_transform(m: list[Array]) -> tuple[Array, Array]:
  """A^T of four entries."""
  return m[0] + m[1] + m[2], m[1] - m[2] - m[3]


def _cotangent_tiles(g: Array) -> list[Array]:
  """`A g A^T` of every tile, entry by entry: 16 times `[tiles, O]`."""
  batch, height, width, channels = g.shape
  down, across = -(-height // 2), -(-width // 2)
  edges = ((0, 0), (0, 2 * down - height), (0, 2 * across - width), (0, 0))
  g = jnp.pad(g, edges).reshape(batch, down, 2, across, 2, channels)
  entries = [
    entry
    for row in _cotangent_transform(g[:, :, 0], g[:, :, 1])
    for entry in _cotangent_transform(row[:, :, :, 0], row[:, :, :, 1])
  ]
  return [entry.reshape(-1, channels) for entry in entries]


def _cotangent_transform(first: Array, second: Array) -> list[Array]:
  """A of two neighbours."""
  return [first, first + second, first - second, -second]
