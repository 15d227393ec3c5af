"""A batch in equal parts, one after the other: what a part needs then stays in the cache.

Part i of n holds every n-th image, from the i-th on. So a batch that is split over devices is split
in each of its parts too, if these hold a multiple of as many images, and no image moves between
devices.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array


def number_of_parts(batch: int, wanted: float) -> int:
  """How many equal parts a batch falls into, of the size that is nearest to `wanted` by ratio.

  Multiples of eight images, for the sake of as many devices, where that at most doubles the part.
  """
  if batch == 0:
    return 1
  step = 8 if batch % 8 == 0 and wanted >= 4 else 1
  sizes = [size for size in range(step, batch + 1, step) if batch % size == 0]
  return batch // min(sizes, key=lambda size: abs(math.log(size / wanted)))


def map_parts(f: Callable[..., Array], parts: int, *images: Array) -> Array:
  """`f` of each part, put together to a batch `[B, ...]` in the order of the images.

  Args:
    f: from parts `[B / parts, ...]` to `[B / parts, ...]`.
    parts: divides B.
    *images: arrays `[B, ...]`.
  """
  if parts == 1:
    return f(*images)
  take = _taker(parts, images)
  out = jax.eval_shape(lambda: f(*take(0)))
  zeros = jnp.zeros((len(out), parts, *out.shape[1:]), out.dtype)

  def body(i: Array, done: Array) -> Array:
    return lax.dynamic_update_index_in_dim(done, f(*take(i)), i, 1)

  return lax.fori_loop(0, parts, body, zeros).reshape(len(out) * parts, *out.shape[1:])


def sum_parts(f: Callable[..., Array], parts: int, *images: Array) -> Array:
  """The sum of `f` over all parts, for an `f` that sums over the images it is given.

  Arguments: see `map_parts`.
  """
  if parts == 1:
    return f(*images)
  take = _taker(parts, images)
  out = jax.eval_shape(lambda: f(*take(0)))
  zeros = jnp.zeros(out.shape, out.dtype)
  return lax.fori_loop(0, parts, lambda i, total: total + f(*take(i)), zeros)


def _taker(parts: int, images: tuple[Array, ...]) -> Callable[[Array | int], list[Array]]:
  split = [x.reshape(len(x) // parts, parts, *x.shape[1:]) for x in images]
  return lambda i: [lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in split]
