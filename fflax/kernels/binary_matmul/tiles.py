"""What both kernels do with one tile in registers: sample, unpack, multiply; and what they cost."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from fflax.core.pbit_config import PbitConfig
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

  `draw` numbers the elements of a whole array, a tile is a part of one: hence the second form of
  the same arithmetic, which the tests hold to the first one bit for bit.

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
  odds = jnp.exp(-v.astype(jnp.float32))  # against the unit, (1 - p) / p
  count = jnp.zeros(v.shape, jnp.int32)
  words = index
  for unit in range(config.units):
    source = 0 if config.noise == "shared" else unit
    if source % 2 == 0:
      words = _hash(index, seeds[source // 2, 0], seeds[source // 2, 1])
    bits = words & jnp.uint32(0xFFFF) if source % 2 == 0 else words >> jnp.uint32(16)
    # By way of int32, because not every machine converts unsigned integers.
    r = (bits.astype(jnp.int32).astype(jnp.float32) + 0.5) * jnp.float32(2**-16)
    count += (r * (odds * jnp.float32(math.exp(unit + 0.5))) < 1 - r).astype(jnp.int32)
  return count


def _hash(index: Array, first: Array, second: Array) -> Array:
  """`quantize.hash_words` of any flat indices."""
  h = index * jnp.uint32(0x9E3779B9) + first
  h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D) ^ second
  h = (h ^ (h >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
  return h ^ (h >> jnp.uint32(16))


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
