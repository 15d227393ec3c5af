"""A batch in equal parts, one after the other: what a part needs then stays in the cache.

Part i of n holds every n-th image, from the i-th on, so that a batch that is split over devices is
split in each of its parts too, and no image moves between devices.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array


def number_of_parts(batch: int, wanted: float) -> int:
  """Into how many equal parts a batch falls, of nearly `wanted` images each, by their ratio."""
  sizes = [size for size in range(1, batch + 1) if batch % size == 0] or [1]
  return max(1, batch // min(sizes, key=lambda size: abs(math.log(size / wanted))))


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
  out = jax.eval_shape(f, *(jax.ShapeDtypeStruct(_part(x, parts), x.dtype) for x in images))
  zeros = jnp.zeros((len(out), parts, *out.shape[1:]), out.dtype)

  def body(i: Array, done: Array) -> Array:
    return lax.dynamic_update_index_in_dim(done, f(*take(i)), i, 1)

  return lax.fori_loop(0, parts, body, zeros).reshape(len(out) * parts, *out.shape[1:])


def sum_parts(f: Callable[..., Array], parts: int, *images: Array) -> Array:
  """The sum over all parts of `f`, which sums over the images of one. Arguments: `map_parts`."""
  if parts == 1:
    return f(*images)
  take = _taker(parts, images)
  out = jax.eval_shape(f, *(jax.ShapeDtypeStruct(_part(x, parts), x.dtype) for x in images))
  zeros = jnp.zeros(out.shape, out.dtype)
  return lax.fori_loop(0, parts, lambda i, total: total + f(*take(i)), zeros)


def _part(x: Array, parts: int) -> tuple[int, ...]:
  return (len(x) // parts, *x.shape[1:])


def _taker(parts: int, images: tuple[Array, ...]) -> Callable[[Array], list[Array]]:
  split = [x.reshape(len(x) // parts, parts, *x.shape[1:]) for x in images]
  return lambda i: [lax.dynamic_index_in_dim(x, i, 1, keepdims=False) for x in split]
