"""Weights kept as int8 between steps: no float copy outlives a step.

Paper: Ma, Panda, Reda, "FF-INT8", DAC 2025, arXiv 2506.22771, figure of the data flow: the weight
gradient is quantised and updates W in int8. Rounding of the update must be stochastic: to nearest,
every update below half a step would vanish.

`int8_weights` wraps a trainer: a step loads the weights as `values * scale`, takes the trainer's
own step, whatever its method and driver, and stores the change. So optimiser states stay float32.

Deviations:
  The paper does not say how its scale moves. Ours starts at twice the largest weight of a channel
  over 127; every 100 steps a channel with more than 1 % of its weights at the bound doubles it, and
  one whose weights all lie below a quarter of the bound halves it.
  int8 products quantise what is loaded once more, at the scale that fits its largest weight.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fflax.random import Role, layer_key, step_key
from fflax.types import Array, Batch, Key, LayerState, Metrics, PyTree, Trainer, TrainState

BOUND = 127
RESCALE_EVERY = 100


class Int8Weight(NamedTuple):
  """A kernel at rest.

  Attributes:
    values: `[..., in, out]` int8 in [-127, 127].
    scale: `[1, ..., out]` float32, one for each output channel.
  """

  values: Array
  scale: Array


def pack(weight: Array) -> Int8Weight:
  """`weight` `[..., in, out]` float32, rounded to nearest, with room to grow by a factor of two."""
  axes = tuple(range(weight.ndim - 1))
  largest = jnp.max(jnp.abs(weight), axis=axes, keepdims=True)
  scale = 2 * jnp.maximum(largest, 1e-30) / BOUND
  return Int8Weight(_to_int8(jnp.round(weight / scale)), scale)


def unpack(stored: Int8Weight) -> Array:
  """The weight as float32."""
  return stored.values.astype(jnp.float32) * stored.scale


def move(stored: Int8Weight, change: Array, key: Key) -> Int8Weight:
  """Adds `change` (float32, in weights, not in steps of the grid), rounded without bias."""
  target = stored.values.astype(jnp.float32) + change / stored.scale
  noise = jax.random.uniform(key, (target.size,)).reshape(target.shape)
  return stored._replace(values=_to_int8(jnp.floor(target + noise)))


def rescale(stored: Int8Weight, key: Key) -> Int8Weight:
  """Doubles the scale of channels that saturate and halves that of channels that lie too low."""
  values = stored.values.astype(jnp.float32)
  axes = tuple(range(values.ndim - 1))
  size = jnp.abs(values)
  full = jnp.mean((size >= BOUND).astype(jnp.float32), axis=axes, keepdims=True) > 0.01
  low = jnp.max(size, axis=axes, keepdims=True) < (BOUND + 1) // 4
  factor = jnp.where(full, 0.5, jnp.where(low, 2.0, 1.0))
  noise = jax.random.uniform(key, (values.size,)).reshape(values.shape)
  return Int8Weight(_to_int8(jnp.floor(values * factor + noise)), stored.scale / factor)


def _to_int8(values: Array) -> Array:
  return jnp.clip(values, -BOUND, BOUND).astype(jnp.int8)


def _is_stored(leaf: PyTree) -> bool:
  return isinstance(leaf, Int8Weight)


def _is_kernel(path: tuple) -> bool:
  return getattr(path[-1], "key", None) == "kernel"


def _unpack_tree(params: PyTree) -> PyTree:
  return jax.tree.map(lambda p: unpack(p) if _is_stored(p) else p, params, is_leaf=_is_stored)


def int8_weights(trainer: Trainer) -> Trainer:
  """The trainer with the layers' kernels kept as `Int8Weight` in its state.

  Args:
    trainer: made with `stack=False`, since every layer has scales of its own.

  Returns:
    A trainer whose functions take and give such states; `layer_states` gives float32 weights.
  """

  def load(state: TrainState) -> TrainState:
    layers = tuple(dataclasses.replace(s, params=_unpack_tree(s.params)) for s in state.layers)
    return dataclasses.replace(state, layers=layers)

  def first(path: tuple, param: Array) -> PyTree:
    return pack(param) if _is_kernel(path) else param

  def init(key: Key, batch: Batch) -> TrainState:
    state = trainer.init(key, batch)
    layers = tuple(
      dataclasses.replace(s, params=jax.tree_util.tree_map_with_path(first, s.params))
      for s in state.layers
    )
    return dataclasses.replace(state, layers=layers)

  def store(
    old: LayerState, loaded: LayerState, new: LayerState, key: Key, due: Array
  ) -> LayerState:
    stored, tree = jax.tree.flatten(old.params, is_leaf=_is_stored)
    before, after = jax.tree.leaves(loaded.params), jax.tree.leaves(new.params)
    kept = []
    for i, (s, b, a) in enumerate(zip(stored, before, after, strict=True)):
      if not _is_stored(s):
        kept.append(a)
        continue
      own = jax.random.fold_in(key, i)
      moved = move(s, a - b, own)
      again = jax.random.fold_in(own, 1)
      kept.append(lax.cond(due, rescale, lambda m, _: m, moved, again))
    return dataclasses.replace(new, params=jax.tree.unflatten(tree, kept))

  def step(
    state: TrainState, batch: Batch, loss_weights: Array | None = None
  ) -> tuple[TrainState, Metrics]:
    loaded = load(state)
    new, metrics = trainer.step(loaded, batch, loss_weights)
    key, due = step_key(state.key, state.step), new.step % RESCALE_EVERY == 0
    triples = zip(state.layers, loaded.layers, new.layers, strict=True)
    layers = tuple(
      store(*triple, layer_key(key, i, Role.STORE), due) for i, triple in enumerate(triples)
    )
    return dataclasses.replace(new, layers=layers), metrics

  goodness = trainer.goodness
  return trainer._replace(
    init=init,
    step=step,
    answer=lambda state, image: trainer.answer(load(state), image),
    goodness=None
    if goodness is None
    else lambda state, batch, key: goodness(load(state), batch, key),
    features=lambda state, image: trainer.features(load(state), image),
    layer_states=lambda state: trainer.layer_states(load(state)),
  )
