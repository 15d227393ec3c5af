"""The product with counts as a Pallas kernel for GPUs, in Pallas' Triton dialect.

Each program holds one tile of the result and walks along K; what hangs over an edge is masked when
it is loaded, so that nothing is padded or copied.

JAX 0.11 has announced the end of this dialect; `shapes.check` says so where it is gone.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl

from fflax.core.pbit_config import PbitConfig
from fflax.kernels.binary_matmul.packing import WORD, Packed
from fflax.kernels.binary_matmul.reference import product_scope
from fflax.kernels.binary_matmul.shapes import Problem, Tile, gpu_tile, problem_of, sampled_problem
from fflax.kernels.binary_matmul.tiles import cost, product, sample_tile, sum_dtype, unpack_tile
from fflax.types import Array

try:
  from jax.experimental.pallas import triton
except ImportError:  # pragma: no cover
  triton = None  # type: ignore[assignment]


def matmul(x: Array | Packed, w: Array, *, interpret: bool = False) -> Array:
  """As `reference.matmul`."""
  problem = problem_of(x, w)
  tile = gpu_tile(problem)
  if not isinstance(x, Packed):

    def counts(row: Array, start: Array, ref) -> Array:
      return _load(ref, (row, start), (tile.rows, tile.length)).astype(jnp.int32)

    return _call(problem, tile, counts, [x], w, interpret)

  axis = x.axis
  by = (1, WORD) if axis == "k" else (WORD, 1)

  def unpacked(row: Array, start: Array, ref) -> Array:
    at, size = (row // by[0], start // by[1]), (tile.rows // by[0], tile.length // by[1])
    planes = [_load(ref, at, size, (jnp.int32(plane),)) for plane in range(ref.shape[0])]
    return unpack_tile(planes, axis)

  return _call(problem, tile, unpacked, [x.words], w, interpret)


def sampled_matmul(
  seeds: Array, v: Array, w: Array, config: PbitConfig, *, interpret: bool = False
) -> Array:
  """As `reference.sampled_matmul`, with counts that never leave the kernel."""
  problem = sampled_problem(v, w)
  tile = gpu_tile(problem)

  def counts(row: Array, start: Array, seed_ref, v_ref) -> Array:
    found = _load(v_ref, (row, start), (tile.rows, tile.length))
    return sample_tile(seed_ref, found, (row, start), problem.length, config)

  return _call(problem, tile, counts, [seeds, v], w, interpret)


def _load(ref, start: Sequence[Array], size: Sequence[int], lead: tuple[Array, ...] = ()) -> Array:
  """A tile of the last two axes, zero beyond the edges."""
  mask = _inside(ref.shape[-2:], start, size)
  window = tuple(pl.ds(at, length) for at, length in zip(start, size, strict=True))
  return triton.load(ref.at[(*lead, *window)], mask=mask, other=jnp.zeros((), ref.dtype))


def _inside(shape: Sequence[int], start: Sequence[Array], size: Sequence[int]) -> Array:
  row, column = (
    start[axis] + lax.broadcasted_iota(jnp.int32, tuple(size), axis) < shape[axis]
    for axis in (0, 1)
  )
  return row & column


def _call(
  problem: Problem,
  tile: Tile,
  counts: Callable[..., Array],
  sources: Sequence[Array],
  w: Array,
  interpret: bool,
) -> Array:
  def kernel(w_ref, *refs):
    *left, out = refs
    row, column = pl.program_id(0) * tile.rows, pl.program_id(1) * tile.columns

    def step(turn: Array, total: Array) -> Array:
      start = turn * tile.length
      weights = _load(w_ref, (start, column), (tile.length, tile.columns))
      return total + product(counts(row, start, *left), weights)

    zero = jnp.zeros((tile.rows, tile.columns), out.dtype)
    total = lax.fori_loop(0, pl.cdiv(problem.length, tile.length), step, zero)
    at, size = (row, column), (tile.rows, tile.columns)
    window = tuple(pl.ds(*edge) for edge in zip(at, size, strict=True))
    triton.store(out.at[window], total, mask=_inside(out.shape, at, size))

  with product_scope(w):  # the weights first: their dtype is the product's
    return pl.pallas_call(
      kernel,
      grid=(pl.cdiv(problem.rows, tile.rows), pl.cdiv(problem.columns, tile.columns)),
      out_shape=jax.ShapeDtypeStruct((problem.rows, problem.columns), sum_dtype(w)),
      compiler_params=triton.CompilerParams(num_warps=8, num_stages=3),
      cost_estimate=cost(problem, [w, *sources]),
      interpret=interpret,
      name="binary_matmul",
    )(w, *sources)
