"""One layer of one training step: its loss, its own gradient, its update, what it hands on."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fflax.core.absorption import AffineCounts, dense
from fflax.core.labels import with_carried
from fflax.random import Role, layer_key
from fflax.training.lookahead import Lookahead
from fflax.training.weight_store import WeightStore
from fflax.types import (
  Array,
  Between,
  Broadcast,
  Key,
  Layer,
  LayerOut,
  LayerState,
  Method,
  Metrics,
  Network,
  Optimizer,
  Place,
  PyTree,
  Readout,
  Schedule,
  Shown,
)

Handed = Array | AffineCounts


class Run(NamedTuple):
  """The static parts of a run.

  Attributes (the rest: see `make_trainer`):
    blocks: how many equal layers stand in each stack.
    readouts_listen: whether trained readouts learn from what the training pass hands on.
  """

  network: Network
  method: Method
  readouts: tuple[Readout, ...]
  optimizer: Optimizer
  readout_optimizer: Optimizer
  schedule: Schedule
  blocks: tuple[int, ...]
  lookahead: Lookahead | None = None
  store: WeightStore | None = None
  readouts_listen: bool = False
  rematerialize: bool = False


def init_layer(
  run: Run, key: Key, index: int, x: Array, above: Array | None = None
) -> tuple[LayerState, Array]:
  """The fresh state of layer `index` for inputs like `x` `[B, ...]`, and what it hands on.

  `above` is like what it hears from above, if it hears anything; what it hands on is without that.
  """
  layer, method = run.network.layers[index], run.method
  shown: Shown = x if above is None else Between(x, above)
  try:
    params, stats = layer.init(layer_key(key, index, Role.PARAMS), shown)
  except ValueError as error:
    raise ValueError(
      f"layer {layer.name!r} of network {run.network.name!r} cannot take what method "
      f"{method.name!r} hands it, shape {list(x.shape[1:])}: {error}"
    ) from error
  out, _ = layer.apply(params, stats, x, train=False)
  place = Place(index, len(run.network.layers))
  extras, extra_stats = method.init_layer(layer_key(key, index, Role.EXTRAS), out, place)
  params = {"layer": params, "method": extras}
  opt_state = run.optimizer.init(params)
  stored = params if run.store is None else run.store.pack(params)
  state = LayerState(stored, opt_state, {"layer": stats, "method": extra_stats})
  return state, dense(_hand_on(method, out, train=False))


def load_params(run: Run, state: LayerState) -> PyTree:
  """The layer's parameters as its functions take them, however they are kept."""
  return state.params if run.store is None else run.store.load(state.params)


def apply_views(
  layer: Layer, params: PyTree, stats: PyTree, x: Shown | Handed, train: bool, key: Key | None
) -> tuple[LayerOut, PyTree]:
  """Applies a layer to `x` `[V, B, ...]`, all views in one product."""
  views, size = jax.tree.leaves(x)[0].shape[:2]
  flat = jax.tree.map(lambda a: a.reshape((views * size, *a.shape[2:])), x)
  out, stats = layer.apply(params, stats, flat, train=train, key=key)
  return jax.tree.map(lambda a: a.reshape((views, size, *a.shape[1:])), out), stats


def _hand_on(method: Method, out: LayerOut, *, train: bool, key: Key | None = None) -> Handed:
  """What the next layer receives: what the method makes of it, and maps that the layer carries."""
  x = method.hand_on(out, train=train, key=key)
  return x if out.carried is None else with_carried(dense(x), out.carried)


def hand_on_views(method: Method, out: LayerOut, train: bool, key: Key | None) -> Handed:
  """The next layer's input `[V, B, ...]`, gradient still attached."""
  views, size = out.out.shape[:2]
  flat = jax.tree.map(lambda a: a.reshape((views * size, *a.shape[2:])), out)
  x = _hand_on(method, flat, train=train, key=key)
  return jax.tree.map(lambda a: a.reshape((views, size, *a.shape[1:])), x)


def read_views(method: Method, out: LayerOut, handed: Handed) -> Array:
  """What trained readouts read of a layer, `[V, B, ...]`, gradient still attached."""
  if method.readout_features is None:
    return dense(handed)
  return jax.vmap(method.readout_features)(out)


def damp(method: Method, last: LayerOut, out: LayerOut) -> LayerOut:
  """The layer's activities at a time step, of which those of the last one are a share."""
  assert method.recurrence is not None
  share = method.recurrence.damping

  def mix(old: Array, new: Array) -> Array:
    return share * old + (1 - share) * new

  return LayerOut(out.pre, mix(last.act, out.act), mix(last.out, out.out))


def layer_loss(
  run: Run,
  layer: Layer,
  params: PyTree,
  stats: PyTree,
  x: Shown | Handed,
  label: Array,
  key: Key,
  index: Array | int,
  heard: Array | None = None,
  last: LayerOut | None = None,
) -> tuple[Array, tuple[Array, LayerOut, PyTree, Metrics]]:
  """One layer's loss on `x` `[V, B, ...]`; aux: loss, output, new statistics, metrics.

  `heard` `[L, V, B]` is the goodness of all layers, for a collaborative method; `last` the layer's
  output at the last time step, for a recurrent one.
  """
  out, layer_stats = apply_views(
    layer, params["layer"], stats["layer"], x, True, layer_key(key, index, Role.FORWARD)
  )
  if last is not None:
    out = damp(run.method, last, out)
  loss, (method_stats, metrics) = run.method.local_loss(
    params["method"],
    stats["method"],
    out,
    label,
    None if heard is None else Broadcast(lax.stop_gradient(heard), index),
    layer_key(key, index, Role.LOSS),
  )
  stats = {"layer": layer_stats, "method": method_stats}
  return loss, (loss, out, lax.stop_gradient(stats), metrics)


def update_layer(
  run: Run,
  state: LayerState,
  params: PyTree,
  grads: PyTree,
  stats: PyTree,
  key: Key,
  index: Array | int,
) -> LayerState:
  """One step of the layer's own optimiser; `params` are the state's, as `load_params` gave them."""
  updates, opt_state = run.optimizer.update(grads, state.opt_state, params)
  if run.store is None:
    return LayerState(optax.apply_updates(params, updates), opt_state, stats)
  moved = run.store.move(state.params, updates, layer_key(key, index, Role.STORE))
  return LayerState(moved, opt_state, stats)


def _learn_layer(
  run: Run,
  layer: Layer,
  state: LayerState,
  x: Handed,
  label: Array,
  key: Key,
  index: Array | int,
  weight: Array | None,
  heard: Array | None,
) -> tuple[LayerState, tuple[Handed, PyTree], Metrics]:
  """The strict step of one layer: its own gradient, its update, what it hands on and shows."""

  def objective(params: PyTree) -> tuple[Array, tuple]:
    loss, aux = layer_loss(run, layer, params, state.stats, x, label, key, index, heard)
    return loss if weight is None else weight * loss, aux

  params = load_params(run, state)
  (_, (loss, out, stats, metrics)), grads = jax.value_and_grad(objective, has_aux=True)(params)
  new = update_layer(run, state, params, grads, stats, key, index)
  if run.schedule.reforward:
    # In training mode, as the first pass was; its statistics of batch norm are not counted twice.
    forward_key = layer_key(key, index, Role.FORWARD)
    params = load_params(run, new)
    out, _ = apply_views(layer, params["layer"], state.stats["layer"], x, True, forward_key)
  return new, _hand_on_and_show(run, out, key, index), {"loss": loss, **metrics}


def _hand_on_and_show(
  run: Run, out: LayerOut, key: Key, index: Array | int
) -> tuple[Handed, PyTree]:
  """What the next layer receives, and what readouts read (`()`, if none listens), detached."""
  x = hand_on_views(run.method, out, True, layer_key(key, index, Role.HAND_ON))
  return lax.stop_gradient((x, read_views(run.method, out, x) if run.readouts_listen else ()))


def _forward_layer(
  run: Run, layer: Layer, state: LayerState, x: Handed, key: Key, index: Array | int
) -> tuple[LayerState, tuple[Handed, PyTree]]:
  """The state of a layer that does not learn, and what it hands on and shows."""
  params, train = load_params(run, state), run.schedule.frozen_stats == "update"
  # With a key: units that are random stay so, for the layers above learn from them.
  forward_key = layer_key(key, index, Role.FORWARD)
  out, stats = apply_views(layer, params["layer"], state.stats["layer"], x, train, forward_key)
  state = dataclasses.replace(state, stats={**state.stats, "layer": stats})
  return lax.stop_gradient(state), _hand_on_and_show(run, out, key, index)


def scheduled_layer(
  run: Run,
  layer: Layer,
  state: LayerState,
  x: Handed,
  label: Array,
  key: Key,
  index: Array | int,
  weight: Array | None,
  mode: Array | None,
  heard: Array | None = None,
) -> tuple[LayerState, tuple[Handed, PyTree], Metrics]:
  """Skips (mode 0), forwards (1) or trains (2) a layer; mode None always trains."""
  learn = functools.partial(_learn_layer, run, layer)
  args = (state, x, label, key, index, weight, heard)
  if mode is None:
    return learn(*args)
  _, x_shape, metric_shapes = jax.eval_shape(learn, *args)
  silent = jax.tree.map(lambda s: jnp.full(s.shape, jnp.nan, s.dtype), metric_shapes)
  return lax.switch(
    mode,
    (
      lambda: (state, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), x_shape), silent),
      lambda: (*_forward_layer(run, layer, state, x, key, index), silent),
      lambda: learn(*args),
    ),
  )
