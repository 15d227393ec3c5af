"""Grouped convolution on a CPU: the groups' dense convolutions, one after the other.

XLA has no fast grouped convolution on a CPU; the weight gradient above all is a naive loop, in
which a training step would spend nearly all of its time. The dense convolution is fast, so each
group is one: as many multiply-accumulates, and no sum of one group ever meets another group's
numbers.
"""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from fflax.types import Array

UNROLLED = 16
"""Up to so many groups are written out one by one: a loop stacks and restacks all that it reads and
writes, a fifth of a training step. More groups are one compilation, however many there are."""


def grouped_conv(dense: Callable[[Array, Array], Array], x: Array, w: Array, groups: int) -> Array:
  """Convolves each group of channels of `x` with its own kernels.

  Group q owns the q-th of `groups` equal runs of neighbouring channels, of `x` and of the result:
  equal to `jax.lax.conv_general_dilated` with `feature_group_count=groups`. The gradients are those
  of `dense`; an unused one is not computed.

  Args:
    dense: the convolution of one group, `(x, w) -> out`, channels last, kernels `[..., in, out]`.
    x: images `[B, ..., C]`.
    w: kernels `[..., C / groups, C']`.
    groups: how many; divides C and C'.

  Returns:
    `[B, ..., C']`, of the dtype that `dense` returns.

  Raises:
    ValueError: if the channels cannot be divided into groups, or the kernel does not fit them.
  """
  channels, inside, outside = x.shape[-1], *w.shape[-2:]
  if channels % groups or outside % groups or inside * groups != channels:
    raise ValueError(
      f"Got {groups} groups for images of shape {x.shape} and kernels of shape {w.shape}, but "
      "the groups must divide both numbers of channels, and each kernel reads one group."
    )
  if groups <= UNROLLED:
    parts = zip(jnp.split(x, groups, -1), jnp.split(w, groups, -1), strict=True)
    return jnp.concatenate([dense(*part) for part in parts], axis=-1)
  out = lax.map(lambda group: dense(*group), (_split(x, groups), _split(w, groups)))
  return jnp.moveaxis(out, 0, -2).reshape(*out.shape[1:-1], outside)


def _split(x: Array, groups: int) -> Array:
  """`[..., C]` to `[groups, ..., C / groups]`."""
  return jnp.moveaxis(x.reshape(*x.shape[:-1], groups, x.shape[-1] // groups), -2, 0)
