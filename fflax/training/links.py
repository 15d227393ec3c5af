"""Arrays on their way from a device to another one, which may be another process's.

Within a process that is `jax.device_put`. Between two processes it is a collective permutation over
a mesh of just the two devices: it moves bytes and computes nothing, no other process takes part,
and every backend of jax has it (`device_put` reaches other processes on some backends only, and in
jax 0.10 not on CPUs).
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fflax.types import Array, PyTree

_ENDS = PartitionSpec("ends")


class Delivery(NamedTuple):
  """What a process has of a transfer.

  Attributes:
    tree: what has come, on the target, where that is this process's; else None.
    sign: an array that is ready when it has come; None where this process takes no part.
  """

  tree: PyTree
  sign: Array | None


Link = Callable[[PyTree], Delivery]


def make_link(
  source: jax.Device, target: jax.Device, shapes: PyTree, *, may_alias: bool = False
) -> Link:
  """Makes `link(tree) -> Delivery`, which all processes call in the same order.

  It waits for nothing. `tree` is read in the source's process only, and stays as it is.

  Args:
    source: where the arrays are.
    target: where they go.
    shapes: `jax.ShapeDtypeStruct`s of the tree.
    may_alias: whether what arrives may be what was sent, within a process.
  """
  here, ends = jax.process_index(), (source.process_index, target.process_index)
  if here not in ends:
    return lambda tree: Delivery(None, None)
  if ends[0] == ends[1]:

    def within(tree: PyTree) -> Delivery:
      moved = jax.device_put(tree, target, may_alias=may_alias)
      return Delivery(moved, next(iter(jax.tree.leaves(moved)), None))

    return within
  return _between(source, target, shapes)


def _between(source: jax.Device, target: jax.Device, shapes: PyTree) -> Link:
  mesh = Mesh(np.array([source, target]), ("ends",))
  halves, sends = NamedSharding(mesh, _ENDS), jax.process_index() == source.process_index
  # Arrays without elements have nothing to move; scalars get an axis to be put together along.
  described, tree_of = jax.tree.flatten(shapes)
  data = jax.eval_shape(lambda: [_raw(jnp.zeros(s.shape, s.dtype)) for s in described if s.size])
  here = source if sends else target
  room = [] if sends else [jnp.zeros(s.shape, s.dtype, device=here) for s in data]

  @jax.jit
  @functools.partial(jax.shard_map, mesh=mesh, in_specs=_ENDS, out_specs=_ENDS)
  def move(leaves: list[Array]) -> list[Array]:
    return [lax.ppermute(x, "ends", [(0, 1)]) for x in leaves]

  def link(tree: PyTree) -> Delivery:
    own = [_raw(x) for x in jax.tree.leaves(tree) if x.size] if sends else room
    moved = move(
      [
        jax.make_array_from_single_device_arrays((2 * len(x), *x.shape[1:]), halves, [x])
        for x in own
      ]
    )
    parts = [x.addressable_shards[0].data for x in moved]
    if sends:
      return Delivery(None, parts[0])
    found = iter(parts)
    leaves = [
      _cooked(next(found), s) if s.size else jnp.zeros(s.shape, s.dtype, device=target)
      for s in described
    ]
    return Delivery(jax.tree.unflatten(tree_of, leaves), parts[0])

  return link


def _is_key(x: Array | jax.ShapeDtypeStruct) -> bool:
  return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _raw(x: Array) -> Array:
  """Numbers with at least one axis."""
  x = jax.random.key_data(x) if _is_key(x) else x
  return x if x.ndim else x.reshape(1)


def _cooked(x: Array, like: jax.ShapeDtypeStruct) -> Array:
  """The inverse of `_raw`."""
  if _is_key(like):
    return jax.random.wrap_key_data(x, impl=jax.random.key_impl(jnp.empty((), like.dtype)))
  return x if like.shape else x.reshape(())
