"""Grouped convolution on a CPU: the groups' dense convolutions, one after the other.

XLA has no fast grouped convolution on a CPU; the weight gradient above all is a naive loop, in
which a training step would spend nearly all of its time. The dense convolution is fast, so each
group is one: as many multiply-accumulates, and no sum of one group ever meets another group's
numbers.
"""

import functools
import operator
from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from fflax.core.depthwise import shifted_sum
from fflax.types import Array

UNROLLED = 16
"""Up to so many groups are written out one by one: a loop stacks and restacks all that it reads and
writes, a fifth of a training step. More groups are one compilation, however many there are."""

FEW_CHANNELS = 4
"""Groups that read up to so many channels are too thin for products of matrices."""


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
  return jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-1], -1)


def thin_grouped_conv(
  x: Array, w: Array, strides: tuple[int, int], pads: tuple[tuple[int, int], ...], groups: int
) -> Array:
  """The grouped convolution as shifted multiply-adds, for up to `FEW_CHANNELS` a group.

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
  edges = ((0, 0, 0), *((low, high, 0) for low, high in pads), (0, 0, 0))
  # Zeros first, while the channels are few: a compiled loop over both looks for the edge each time.
  x = lax.pad(x, jnp.zeros((), x.dtype), edges)
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
