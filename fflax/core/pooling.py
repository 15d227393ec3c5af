"""Max-pooling whose gradient is fast on a CPU.

XLA's own gradient of a max-pool (`select_and_scatter_add`) is a naive loop on a CPU, and takes as
long as a convolution. Maxima of shifted images are the same function and the same gradient.
"""

import jax
import jax.numpy as jnp

from fflax.types import Array


def max_pool_2x2(x: Array) -> Array:
  """2x2 max-pooling with stride 2: `[..., H, W, C]` to `[..., H // 2, W // 2, C]`.

  An odd last row or column is dropped. Where several of a window's four are largest, the first in
  reading order gets the gradient, as in `flax.linen.max_pool` and in PyTorch.
  """
  height, width = (size // 2 * 2 for size in x.shape[-3:-1])
  rows = (x[..., i:height:2, :, :] for i in (0, 1))
  top, bottom = (_first_largest(row[..., 0:width:2, :], row[..., 1:width:2, :]) for row in rows)
  return _first_largest(top, bottom)


@jax.custom_jvp
def _first_largest(a: Array, b: Array) -> Array:
  return jnp.maximum(a, b)


@_first_largest.defjvp
def _first_largest_jvp(
  primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
  (a, b), (da, db) = primals, tangents
  return _first_largest(a, b), jnp.where(a >= b, da, db)  # JAX's own gradient splits equals
