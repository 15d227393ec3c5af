"""What both kernels do with one tile in registers: sample, unpack, multiply; and what they cost."""

import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import draw_units, seeds_per_sample
from fflax.kernels.binary_matmul.packing import WORD, Axis
from fflax.kernels.binary_matmul.shapes import Problem
from fflax.types import Array


def sample_tile(
  seeds: Any,
  v: Array,
  start: tuple[Array, Array],
  length: int,
  config: PbitConfig,
) -> Array:
  """The counts that `pbit_units.draw` has where this tile lies.

  Args:
    seeds: a reference to `[ceil(M / 2), 2]` uint32.
    v: pre-activation of the tile.
    start: its first row and column in the whole array.
    length: K of the whole array.
    config: of the units.

  Returns:
    int32 counts.
  """
  row, column = (
    (start[axis] + lax.broadcasted_iota(jnp.int32, v.shape, axis)).astype(jnp.uint32)
    for axis in (0, 1)
  )
  index = row * jnp.uint32(length) + column
  pairs = [(seeds[i, 0], seeds[i, 1]) for i in range(seeds_per_sample(config))]
  units = draw_units(pairs, v, index, config)
  return functools.reduce(operator.add, (on.astype(jnp.int32) for on in units))


def unpack_tile(planes: Sequence[Array], axis: Axis) -> Array:
  """int32 counts from one tile of words a plane: 32 times as long along the packed axis."""
  rows, columns = planes[0].shape
  if axis == "k":
    wide, whole, at = (rows, columns, WORD), (rows, columns * WORD), 2
  else:
    wide, whole, at = (rows, WORD, columns), (rows * WORD, columns), 1
  place = lax.broadcasted_iota(jnp.int32, wide, at).astype(jnp.uint32)
  count = jnp.zeros(wide, jnp.uint32)
  for plane, words in enumerate(planes):
    spread = lax.broadcast_in_dim(words, wide, (0, 1) if axis == "k" else (0, 2))
    count |= ((spread >> place) & jnp.uint32(1)) << jnp.uint32(plane)
  return count.astype(jnp.int32).reshape(whole)


def product(counts: Array, w: Array) -> Array:
  """int32 counts `[R, K]` times `w` `[K, N]`: int32 if `w` is int8, else float32.

  A count is exact in bfloat16, and a float32 is the exact sum of three bfloat16, so float32 weights
  are three products of the matrix unit's own kind, and rounded in the sum only.
  """
  if w.dtype == jnp.int8:
    return jnp.dot(counts.astype(jnp.int8), w, preferred_element_type=jnp.int32)
  x = counts.astype(jnp.float32).astype(jnp.bfloat16)
  parts = [w] if w.dtype == jnp.bfloat16 else _bfloat16_parts(w)
  # The smallest part first: it is rounded least.
  sums = [jnp.dot(x, part, preferred_element_type=jnp.float32) for part in parts][::-1]
  return sum(sums[1:], start=sums[0])


def _bfloat16_parts(w: Array) -> Iterator[Array]:
  """Three bfloat16 whose sum is the finite float32 `w`: its bits, eight at a time."""
  for _ in range(3):
    bits = lax.bitcast_convert_type(w, jnp.uint32) & jnp.uint32(0xFFFF0000)
    high = lax.bitcast_convert_type(bits, jnp.float32)
    yield high.astype(jnp.bfloat16)
    w = w - high


def sum_dtype(w: Array):
  """Of the product with these weights."""
  return jnp.int32 if w.dtype == jnp.int8 else jnp.float32


def cost(problem: Problem, operands: Sequence[Array]) -> pl.CostEstimate:
  """Two operations a multiply-accumulate, an exponential a sampled site, every byte once."""
  rows, length, columns = problem[:3]
  return pl.CostEstimate(
    flops=2 * rows * length * columns,
    transcendentals=rows * length if problem.form == "sampled" else 0,
    bytes_accessed=sum(x.size * x.dtype.itemsize for x in operands) + 4 * rows * columns,
  )
