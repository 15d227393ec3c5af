"""The product with counts in plain `jax.numpy`: what every kernel must equal, and the default."""

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core import tags
from fflax.core.int8_products import int8_dot
from fflax.core.numerics import bfloat16
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import draw
from fflax.kernels.binary_matmul.packing import Packed, unpack
from fflax.types import Array

_MATRICES = (((1,), (0,)), ((), ()))


def matmul(x: Array | Packed, w: Array) -> Array:
  """`[R, K]` counts times `[K, N]` weights.

  A count is exact in every dtype here, so only weights and sums are rounded.

  Args:
    x: int8 counts, or `Packed`.
    w: int8, float32 or bfloat16.

  Returns:
    `[R, N]`: the int32 sums if `w` is int8, else float32. Differentiable in a float `w`.
  """
  counts = unpack(x) if isinstance(x, Packed) else x
  with product_scope(w):
    if w.dtype == jnp.int8:
      return int8_dot(counts, w)
    counts = counts.astype(jnp.float32)
    if w.dtype == jnp.bfloat16:
      return bfloat16().dot_general(counts, w.astype(jnp.float32), _MATRICES)
    return lax.dot_general(counts, w, _MATRICES, precision=lax.Precision.HIGHEST)


def sample(seeds: Array, v: Array, config: PbitConfig) -> Array:
  """The counts of p-bits, int8 of the shape of `v`, with the noise of `pbit_units.draw`."""
  return lax.population_count(draw(seeds, v, config)).astype(jnp.int8)


def sampled_matmul(seeds: Array, v: Array, w: Array, config: PbitConfig) -> Array:
  """Samples the counts of `v` `[R, K]` and multiplies them, see `matmul`."""
  return matmul(sample(seeds, v, config), w)


def product_scope(w: Array):
  """The name by which `fflax.analysis.cost` knows a product of counts and these weights."""
  return jax.named_scope(f"{tags.PRODUCT}count_{'int8' if w.dtype == jnp.int8 else 'real'}")
