"""Depthwise convolution as shifted multiply-adds.

Every channel has its own kernel, so there is no sum over channels that a matrix product could do.
XLA runs JAX's grouped convolution on a CPU as a naive loop, an order of magnitude slower than the
k * k multiply-adds of shifted images that it is, in the backward pass as in the forward pass.
"""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from fflax.types import Array


def depthwise_conv(
  x: Array, w: Array, strides: Sequence[int], pads: Sequence[tuple[int, int]]
) -> Array:
  """Convolves every channel of `x` with its own kernel, by shifted multiply-adds.

  Equal to `jax.lax.conv_general_dilated` with `feature_group_count=C`. Made of slices, products
  and sums alone, so that every transformation of JAX applies; exact in integers.

  Args:
    x: images `[B, H, W, C]`.
    w: kernels `[kh, kw, 1, C]`, of the same dtype.
    strides: of height and width.
    pads: zeros before and after height and width; negative numbers crop.

  Returns:
    `[B, H', W', C]` with `H' = (H + pads - kh) // stride + 1`, of the dtype of `x`.
  """
  edges = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
  padded = lax.pad(x, jnp.zeros((), x.dtype), edges)
  batch, height, width, channels = padded.shape
  # First to last row (and column) of the padded image that one entry of the kernel meets.
  spans = [
    (size - field) // stride * stride + 1
    for size, field, stride in zip((height, width), w.shape[:2], strides, strict=True)
  ]
  out = None
  for i, j in itertools.product(range(w.shape[0]), range(w.shape[1])):
    limits = (batch, i + spans[0], j + spans[1], channels)
    shifted = lax.slice(padded, (0, i, j, 0), limits, (1, *strides, 1))
    term = shifted * w[i, j][None, None]
    out = term if out is None else out + term
  return out
