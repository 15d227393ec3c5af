"""Zeros around the spatial axes of images `[B, ..., C]`."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from fflax.types import Array

Pads = Sequence[tuple[int, int]]
"""Zeros before and after each spatial axis; negative numbers crop."""


def pad_space(x: Array, pads: Pads, spread: Sequence[int] | None = None) -> Array:
  """`x` with zeros around its spatial axes and `spread - 1` zeros between neighbours.

  Args:
    x: `[B, ..., C]`, of any dtype.
    pads: for each spatial axis.
    spread: for each spatial axis; None: no zeros between neighbours.
  """
  between = [s - 1 for s in spread] if spread is not None else [0] * len(pads)
  edges = [(low, high, inner) for (low, high), inner in zip(pads, between, strict=True)]
  return lax.pad(x, jnp.zeros((), x.dtype), ((0, 0, 0), *edges, (0, 0, 0)))


def input_gradient_pads(
  size: Sequence[int],
  fields: Sequence[int],
  out: Sequence[int],
  strides: Sequence[int],
  pads: Pads,
) -> list[tuple[int, int]]:
  """The zeros around the cotangent, spread out by the strides, in the gradient of the input.

  Args:
    size: of the convolution's input, spatial axes only; the rest likewise.
    fields: of its kernel.
    out: of its output.
    strides: its own.
    pads: its own.
  """
  found = []
  rows = zip(size, fields, out, strides, pads, strict=True)
  for length, field, out_length, stride, (low, _) in rows:
    before, span = field - 1 - low, (out_length - 1) * stride  # the latter minus one
    found.append((before, length + field - 2 - span - before))
  return found
