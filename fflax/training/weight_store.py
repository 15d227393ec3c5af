"""How weights are kept between steps: as float32, or as int8 with a scale for each channel.

Paper: Ma, Panda, Reda, "FF-INT8", DAC 2025, arXiv 2506.22771, figure of the data flow: the weight
gradient is quantised and updates W in int8. Rounding of the update must be stochastic: to nearest,
every update below half a step would vanish.

A layer's kernels are loaded as `values * scale` where the layer is used and moved where it is
updated. In a strict step no more than the layer at work exists as floats; the global, look-ahead
and recurrent sweeps hold those of all layers. Optimiser states stay float32.

Deviations:
  The paper does not say how its scale moves. Ours starts at twice the largest weight of a channel
  over 127; a channel that has more than 1 % of its weights at the bound doubles it in its next
  move, and one whose weights all lie below a quarter of the bound halves it.
  int8 products quantise what is loaded once more, at the scale that fits its largest weight.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fflax.core.quantize import MAX, quantize, rounding_noise
from fflax.types import Array, Key, PyTree


class Int8Weight(NamedTuple):
  """A kernel at rest.

  Attributes:
    values: `[..., in, out]` int8 in [-127, 127].
    scale: `[1, ..., out]` float32, one for each output channel.
  """

  values: Array
  scale: Array


class WeightStore(NamedTuple):
  """How the driver keeps a layer's parameters; all functions are pure.

  Attributes:
    pack: `(params) -> stored`, once, of fresh parameters.
    load: `(stored) -> params`, float32.
    move: `(stored, updates, key) -> stored`, `updates` as optax gives them.
  """

  pack: Callable[[PyTree], PyTree]
  load: Callable[[PyTree], PyTree]
  move: Callable[[PyTree, PyTree, Key], PyTree]


def pack(weight: Array, room: float = 2.0) -> Int8Weight:
  """`weight` `[..., in, out]` float32, rounded to nearest, with room to grow by a factor `room`."""
  axes = tuple(range(weight.ndim - 1))
  largest = jnp.max(jnp.abs(weight), axis=axes, keepdims=True)
  scale = room * jnp.maximum(largest, 1e-30) / MAX
  return Int8Weight(*quantize(weight, scale=scale))


def unpack(stored: Int8Weight) -> Array:
  """The weight as float32."""
  return stored.values.astype(jnp.float32) * stored.scale


def move(stored: Int8Weight, change: Array, key: Key) -> Int8Weight:
  """Adds `change` (float32, in weights, not in steps of the grid), rounded without bias.

  The scale of a channel that is saturated doubles first, that of one that lies too low halves.
  """
  # Decided by what is stored: XLA would hold float copies of the sum for reductions of it.
  axes, size = tuple(range(change.ndim - 1)), jnp.abs(stored.values)
  full = jnp.mean((size >= MAX).astype(jnp.float32), axis=axes, keepdims=True) > 0.01
  largest = jnp.max(size, axis=axes, keepdims=True)
  low = (largest > 0) & (largest < (MAX + 1) // 4)
  factor = jnp.where(full, 0.5, jnp.where(low, 2.0, 1.0))
  target = (stored.values.astype(jnp.float32) + change / stored.scale) * factor
  noise = rounding_noise(key, target.shape)
  moved = quantize(target, rounding="stochastic", noise=noise, scale=jnp.ones(()))
  # int8 has no NaN: without this, a change that is none would leave weights that seem sound.
  sound = jnp.all(jnp.isfinite(change), axis=axes, keepdims=True)
  return Int8Weight(moved.values, jnp.where(sound, stored.scale / factor, jnp.nan))


def _is_stored(leaf: PyTree) -> bool:
  return isinstance(leaf, Int8Weight)


def int8_store(room: float = 2.0) -> WeightStore:
  """Parameters named "kernel" as `Int8Weight`, all others as they are.

  Those that are stored already stay what they are; `room`: see `pack`, 1 for what will not move.
  """

  def pack_tree(params: PyTree) -> PyTree:
    def one(path: tuple, param: PyTree) -> PyTree:
      fresh = getattr(path[-1], "key", None) == "kernel" and not _is_stored(param)
      return pack(param, room) if fresh else param

    return jax.tree_util.tree_map_with_path(one, params, is_leaf=_is_stored)

  def load(stored: PyTree) -> PyTree:
    return jax.tree.map(lambda p: unpack(p) if _is_stored(p) else p, stored, is_leaf=_is_stored)

  def move_tree(stored: PyTree, updates: PyTree, key: Key) -> PyTree:
    leaves, tree = jax.tree.flatten(stored, is_leaf=_is_stored)
    moved = [
      move(leaf, change, jax.random.fold_in(key, i)) if _is_stored(leaf) else leaf + change
      for i, (leaf, change) in enumerate(zip(leaves, jax.tree.leaves(updates), strict=True))
    ]
    return jax.tree.unflatten(tree, moved)

  return WeightStore(pack_tree, load, move_tree)


WEIGHT_STORES: Mapping[str, Callable[[], WeightStore | None]] = MappingProxyType(
  {"float32": lambda: None, "int8": int8_store}
)
"""Weight stores by name; None: parameters are kept as they are."""
