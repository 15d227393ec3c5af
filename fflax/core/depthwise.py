"""Depthwise convolution as shifted multiply-adds.

Every channel has its own kernel, so there is no sum over channels that a matrix product could do.
XLA runs JAX's grouped convolution on a CPU as a naive loop, an order of magnitude slower than the
k * k multiply-adds of shifted images that it is, in the backward pass as in the forward pass.
"""

import functools
import itertools
import operator
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.padding import Pads, input_gradient_pads, pad_space
from fflax.types import Array

_Pads = tuple[tuple[int, int], ...]


def depthwise_conv(x: Array, w: Array, strides: Sequence[int], pads: Pads) -> Array:
  """Convolves every channel of `x` with its own kernel, by shifted multiply-adds.

  Equal to `jax.lax.conv_general_dilated` with `feature_group_count=C`; exact in integers. Supports
  reverse-mode differentiation, `jit`, `vmap` and `scan`; no forward mode.

  Args:
    x: images `[B, H, W, C]`.
    w: kernels `[kh, kw, 1, C]`, of the same dtype.
    strides: of height and width.
    pads: zeros before and after height and width; negative numbers crop.

  Returns:
    `[B, H', W', C]` with `H' = (H + pads - kh) // stride + 1`, of the dtype of `x`.
  """
  height, width = strides
  return _depthwise((height, width), tuple((low, high) for low, high in pads), x, w)


def _spans(size: Sequence[int], w: Array, strides: tuple[int, int]) -> list[int]:
  """First to last row and column of a padded image that one entry of the kernel meets."""
  return [
    (n - field) // stride * stride + 1
    for n, field, stride in zip(size, w.shape[:2], strides, strict=True)
  ]


def shifted_sum(padded: Array, w: Array, strides: tuple[int, int]) -> Array:
  """The depthwise convolution of images with their zeros around them already.

  Args:
    padded: `[B, H, W, C]`.
    w: kernels `[kh, kw, 1, C]`, of the same dtype.
    strides: of height and width.

  Returns:
    `[B, (H - kh) // stride + 1, (W - kw) // stride + 1, C]`.
  """
  batch, *size, channels = padded.shape
  spans = _spans(size, w, strides)

  def term(i: int, j: int) -> Array:
    limits = (batch, i + spans[0], j + spans[1], channels)
    return lax.slice(padded, (0, i, j, 0), limits, (1, *strides, 1)) * w[i, j][None, None]

  terms = itertools.starmap(term, itertools.product(range(w.shape[0]), range(w.shape[1])))
  return functools.reduce(operator.add, terms)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _depthwise(strides: tuple[int, int], pads: _Pads, x: Array, w: Array) -> Array:
  return shifted_sum(pad_space(x, pads), w, strides)


def _forward(
  strides: tuple[int, int], pads: _Pads, x: Array, w: Array
) -> tuple[Array, tuple[Array, Array]]:
  return _depthwise(strides, pads, x, w), (x, w)


def _backward(
  strides: tuple[int, int], pads: _Pads, residuals: tuple[Array, Array], g: Array
) -> tuple[Array, Array]:
  x, w = residuals
  # Input gradient: the strided cotangent, spread out, with the flipped kernel.
  input_pads = input_gradient_pads(x.shape[1:3], w.shape[:2], g.shape[1:3], strides, pads)
  dx = shifted_sum(pad_space(g, input_pads, strides), jnp.flip(w, (0, 1)), (1, 1))
  # Weight gradient: one entry after the other. Written side by side, the sums compile three times
  # as long, and run four times as long where there are 25.
  padded = pad_space(x, pads)
  batch, *padded_size, channels = padded.shape
  window = (batch, *_spans(padded_size, w, strides), channels)

  def entry(number: Array) -> Array:
    i, j = number // w.shape[1], number % w.shape[1]
    shifted = lax.dynamic_slice(padded, (0, i, j, 0), window)
    return jnp.sum(shifted[:, :: strides[0], :: strides[1]] * g, (0, 1, 2))

  dw = lax.map(entry, jnp.arange(w.shape[0] * w.shape[1]))
  return dx, dw.reshape(w.shape)


_depthwise.defvjp(_forward, _backward)
