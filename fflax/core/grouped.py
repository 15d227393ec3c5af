"""Grouped convolution on a CPU: the groups' dense convolutions, one after the other.

XLA has no fast grouped convolution on a CPU; the weight gradient above all is a naive loop, in
which a training step would spend nearly all of its time. The dense convolution is fast, so each
group is one: as many multiply-accumulates, and no sum of one group ever meets another group's
numbers.
"""

import functools
import math
import operator
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from jax import lax

from fflax.core.depthwise import shifted_sum
from fflax.core.padding import Pads, pad_space
from fflax.types import Array

UNROLLED = 16
"""Up to so many groups are written out one by one: a loop stacks and restacks all that it reads and
writes, a fifth of a training step. More groups are one compilation, however many there are."""

FEW_CHANNELS = 4
_FEW_PRODUCTS = 512


def is_thin(kernel: Sequence[int], groups: int) -> bool:
  """Whether `thin_grouped_conv` beats products of matrices, for kernels `[kh, kw, C / groups, C']`.

  So it does for few channels in and few multiplications for each place of an image and group: of
  3x3 kernels, 2 to 8 channels and 4 to 8 took a tenth of the time; 4 to 256 three times as long.
  """
  fields, inside, outside = kernel[:-2], kernel[-2], kernel[-1] // groups
  return inside <= FEW_CHANNELS and math.prod(fields) * inside * outside <= _FEW_PRODUCTS


def by_groups(f: Callable[[Array, Array], Array], a: Array, b: Array, groups: int) -> Array:
  """`f` of each group's channels of `a` and of `b`, its results side by side.

  Group q owns the q-th of `groups` equal runs of neighbouring channels, of both and of the result.
  So it is a grouped convolution, if `f` is that of one group, `(x, w) -> out`; and so are its
  gradients, `(x, g) -> dw` and, with kernels whose channels in and out are swapped within their
  group, `(g, w) -> dx`.

  Args:
    f: of two arrays, channels last.
    a: `[..., C]`.
    b: `[..., C']`.
    groups: how many; divides C and C'.
  """
  if groups <= UNROLLED:
    parts = zip(jnp.split(a, groups, -1), jnp.split(b, groups, -1), strict=True)
    return jnp.concatenate([f(*part) for part in parts], axis=-1)
  out = lax.map(lambda group: f(*group), (_split(a, groups), _split(b, groups)))
  # The size in full: -1 cannot be inferred for an empty batch.
  return jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-1], groups * out.shape[-1])


def thin_grouped_conv(
  x: Array, w: Array, strides: tuple[int, int], pads: Pads, groups: int
) -> Array:
  """The grouped convolution as shifted multiply-adds, for thin groups.

  A sum of depthwise convolutions: the c-th convolves channel c of each group, repeated for every
  channel that the group emits.

  Args:
    x: images `[B, H, W, C]`.
    w: kernels `[kh, kw, C / groups, C']`.
    strides: of height and width.
    pads: zeros before and after height and width; negative numbers crop.
    groups: how many; divides C and C'.

  Returns:
    `[B, H', W', C']`.
  """
  inside, outside = w.shape[-2:]
  # Zeros first, while the channels are few: a compiled loop over both looks for the edge each time.
  x = pad_space(x, pads)
  channels = x.reshape(*x.shape[:-1], groups, inside)
  terms = (
    shifted_sum(
      jnp.repeat(channels[..., c], outside // groups, axis=-1), w[:, :, c : c + 1], strides
    )
    for c in range(inside)
  )
  return functools.reduce(operator.add, terms)


def _split(x: Array, groups: int) -> Array:
  """`[..., C]` to `[groups, ..., C / groups]`."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups), -2, 0)
