"""The product with counts as a Pallas kernel for TPUs.

The matrix unit multiplies int8 or bfloat16; sampling and unpacking happen in vector memory beside
it. Operands are padded with zeros to whole tiles: a weight of zero silences what lies beyond K.
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from fflax.core.pbit_config import PbitConfig
from fflax.kernels.binary_matmul.packing import WORD, Packed
from fflax.kernels.binary_matmul.reference import product_scope
from fflax.kernels.binary_matmul.shapes import Problem, Tile, problem_of, sampled_problem, tpu_tile
from fflax.kernels.binary_matmul.tiles import cost, product, sample_tile, sum_dtype, unpack_tile
from fflax.types import Array


def matmul(x: Array | Packed, w: Array, *, interpret: bool = False) -> Array:
  """As `reference.matmul`; `Packed` along rows."""
  problem = problem_of(x, w)
  tile = tpu_tile(problem)
  if isinstance(x, Packed):
    planes = x.words.shape[0]
    words = _padded(x.words, (1, tile.rows // WORD, tile.length))
    spec = pl.BlockSpec((planes, tile.rows // WORD, tile.length), lambda i, j, k: (0, i, k))
    return _call(
      problem,
      tile,
      lambda ref: unpack_tile([ref[plane] for plane in range(planes)], "rows"),
      [(words, spec)],
      w,
      interpret,
    )
  counts = (_padded(x, (tile.rows, tile.length)), _left(tile))
  return _call(problem, tile, lambda ref: ref[...].astype(jnp.int32), [counts], w, interpret)


def sampled_matmul(
  seeds: Array, v: Array, w: Array, config: PbitConfig, *, interpret: bool = False
) -> Array:
  """As `reference.sampled_matmul`, with counts that never leave the kernel."""
  problem = sampled_problem(v, w)
  tile = tpu_tile(problem)

  def counts(seed_ref, v_ref) -> Array:
    start = (pl.program_id(0) * tile.rows, pl.program_id(2) * tile.length)
    return sample_tile(seed_ref, v_ref[...], start, problem.length, config)

  sources = [
    (seeds, pl.BlockSpec(memory_space=pltpu.SMEM)),
    (_padded(v, (tile.rows, tile.length)), _left(tile)),
  ]
  return _call(problem, tile, counts, sources, w, interpret)


def _left(tile: Tile) -> pl.BlockSpec:
  return pl.BlockSpec((tile.rows, tile.length), lambda i, j, k: (i, k))


def _padded(x: Array, tile: Sequence[int]) -> Array:
  return jnp.pad(x, [(0, -size % part) for size, part in zip(x.shape, tile, strict=True)])


def _call(
  problem: Problem,
  tile: Tile,
  counts: Callable[..., Array],
  sources: Sequence[tuple[Array, pl.BlockSpec]],
  w: Array,
  interpret: bool,
) -> Array:
  """Sums over the last axis of the grid, in the tile of the result, which stays where it is."""

  def kernel(w_ref, *refs):
    *left, out = refs

    @pl.when(pl.program_id(2) == 0)
    def _():
      out[...] = jnp.zeros_like(out)

    out[...] += product(counts(*left), w_ref[...])

  padded = _padded(w, (tile.length, tile.columns))
  grid = tuple(
    pl.cdiv(size, part)
    for size, part in (
      (problem.rows, tile.rows),
      (problem.columns, tile.columns),
      (problem.length, tile.length),
    )
  )
  with product_scope(w):  # the weights first: their dtype is the product's
    out = pl.pallas_call(
      kernel,
      grid=grid,
      in_specs=[
        pl.BlockSpec((tile.length, tile.columns), lambda i, j, k: (k, j)),
        *(spec for _, spec in sources),
      ],
      out_specs=pl.BlockSpec((tile.rows, tile.columns), lambda i, j, k: (i, j)),
      out_shape=jax.ShapeDtypeStruct((grid[0] * tile.rows, grid[1] * tile.columns), sum_dtype(w)),
      compiler_params=pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "arbitrary")
      ),
      cost_estimate=cost(problem, [w, *(x for x, _ in sources)]),
      interpret=interpret,
      name="binary_matmul",
    )(padded, *(x for x, _ in sources))
  return out[: problem.rows, : problem.columns]
