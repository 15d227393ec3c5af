"""Sweeps over the layers: strict (each layer alone), global (end to end) and evaluation."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.absorption import dense
from fflax.core.branches import in_branch, in_loop, surely
from fflax.random import Role, layer_key
from fflax.training.blocks import unstack_states
from fflax.training.layer_step import (
  Handed,
  Run,
  apply_views,
  hand_on_views,
  layer_loss,
  load_params,
  read_views,
  scheduled_layer,
  update_layer,
)
from fflax.training.rematerialize import rematerialized
from fflax.types import Array, Key, Layer, LayerOut, LayerState, Metrics, PyTree, TrainState

Sweep = tuple[tuple[LayerState, ...], PyTree, Metrics, tuple[Array, ...]]
"""Of a training sweep: new states by block, coupling, metrics `[L]`, and what readouts read of each
layer, `[V, B, ...]` (or `()`, if none listens)."""


def per_layer(rows: Sequence[Metrics]) -> Metrics:
  """`[L]` arrays from one metrics dict a layer; NaN where a layer does not report a metric."""
  names = sorted({name for row in rows for name in row})
  nan = jnp.full((), jnp.nan, jnp.float32)
  return {n: jnp.stack([jnp.asarray(r.get(n, nan), jnp.float32) for r in rows]) for n in names}


def strict_sweep(
  run: Run,
  state: TrainState,
  x: Handed,
  label: Array,
  key: Key,
  weights: Array | None,
  heard: Array | None = None,
) -> Sweep:
  """Every layer learns from its own loss alone; blocks of equal layers run under one `lax.scan`."""
  num_layers = len(run.network.layers)
  modes = None
  if run.schedule.active is not None:
    active = run.schedule.active(state.step, num_layers)
    everywhere = run.readouts_listen or run.schedule.frozen_stats == "update"
    needed = everywhere | (lax.cumsum(active.astype(jnp.int32), reverse=True) > 0)
    modes = needed.astype(jnp.int32) + active.astype(jnp.int32)
  states, _, rows, read = sweep_blocks(
    run, 0, run.blocks, state.layers, x, label, key, weights, modes, heard
  )
  return states, state.coupling, per_layer(rows), read


def sweep_blocks(
  run: Run,
  first: int,
  blocks: Sequence[int],
  states: Sequence[LayerState],
  x: Handed,
  label: Array,
  key: Key,
  weights: Array | None = None,
  modes: Array | None = None,
  heard: Array | None = None,
  offset: Array | int = 0,
  apart: bool = False,
) -> tuple[tuple[LayerState, ...], Handed, list[Metrics], tuple[PyTree, ...]]:
  """The strict step of the layers from `first` on that stand in these blocks.

  They stand for those `offset` layers further up, which must be equal ones; keys are of these.
  With `apart`, a CPU's compiler sees each by itself (`fflax.core.branches`), as those of a scan.

  Returns:
    New states by block, what the last of them hands on, and of each layer its metrics and what
    readouts read.
  """
  new_states: list[LayerState] = []
  rows: list[Metrics] = []
  read: list[PyTree] = []
  for block, block_state in zip(blocks, states, strict=True):
    layer = run.network.layers[first]

    def one(
      layer_state: LayerState,
      x: Handed,
      i: Array | int,
      label: Array,
      key: Key,
      layer: Layer = layer,
    ) -> tuple[LayerState, tuple[Handed, PyTree], Metrics]:
      weight = None if weights is None else weights[i]
      mode = None if modes is None else modes[i]
      return scheduled_layer(run, layer, layer_state, x, label, key, i, weight, mode, heard)

    if block == 1:
      args = (block_state, x, first + offset, label, key)
      new, (x, shown), metrics = in_loop(surely(label), one, *args) if apart else one(*args)
      rows.append(metrics)
      read.append(shown)
    else:
      # The stacked state is carried and updated in place: one copy of the parameters, not two.
      def body(
        carry: tuple[Handed, PyTree], j: Array, first=first + offset, size: int = block, one=one
      ) -> tuple[tuple[Handed, PyTree], tuple[Metrics, PyTree]]:
        x, stacked = carry
        mine = jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, j, keepdims=False), stacked)
        # The branch is always taken. It keeps the compiler from recomputing new values out of old
        # ones while it writes them, for which it would hold a second copy of the whole stack.
        mine, (x, shown), metrics = in_branch(j < size, one, mine, x, first + j, label, key)
        put = lambda s, a: lax.dynamic_update_index_in_dim(s, a, j, 0)  # noqa: E731
        return (x, jax.tree.map(put, stacked, mine)), (metrics, shown)

      (x, new), stacked = lax.scan(body, (x, block_state), jnp.arange(block))
      for j in range(block):
        metrics, shown = jax.tree.map(lambda a, j=j: a[j], stacked)
        rows.append(metrics)
        read.append(shown)
    new_states.append(new)
    first += block
  return tuple(new_states), x, rows, tuple(read)


def collaborative_sweep(
  run: Run, state: TrainState, x: Array, label: Array, key: Key, weights: Array | None
) -> Sweep:
  """Every layer tells its goodness to all; then each learns from its own loss, as a strict one.

  What is told are numbers of one forward sweep, without a gradient: `[L, V, B]` of them, whatever
  the width of the layers.
  """
  layers, told, h = run.network.layers, [], x
  states = unstack_states(state.layers, run.blocks)
  assert run.method.goodness is not None
  for i, (layer, s) in enumerate(zip(layers, states, strict=True)):
    params = load_params(run, s)
    forward_key = layer_key(key, i, Role.FORWARD)

    def forward(train: bool, layer=layer, params=params, s=s, h=h, k=forward_key) -> LayerOut:
      return apply_views(layer, params["layer"], s.stats["layer"], h, train, k)[0]

    if run.schedule.active is None or run.schedule.frozen_stats == "update":
      out = forward(True)
    else:  # as the sweep after this one runs them
      learns = run.schedule.active(state.step, len(layers))[i]
      out = lax.cond(learns, lambda f=forward: f(True), lambda f=forward: f(False))
    told.append(run.method.goodness(params["method"], s.stats["method"], out))
    h = dense(hand_on_views(run.method, out, True, layer_key(key, i, Role.HAND_ON)))
  heard = lax.stop_gradient(jnp.stack(told))
  return strict_sweep(run, state, x, label, key, weights, heard)


def end_to_end_losses(
  run: Run,
  params: Sequence[PyTree],
  states: Sequence[LayerState],
  x: Array,
  label: Array,
  key: Key,
  weights: Array | None,
) -> tuple[Array, tuple[list[PyTree], list[Metrics], list[Array]]]:
  """The (weighted) sum of the layers' losses; aux: new statistics, metrics, what readouts read."""
  h, total, stats, rows, read = x, jnp.zeros(()), [], [], []
  view = run.method.end_to_end_view
  for i, layer in enumerate(run.network.layers):

    def one(p: PyTree, h: Array, i: int = i, layer: Layer = layer) -> tuple:
      loss, (_, out, new, metrics) = layer_loss(run, layer, p, states[i].stats, h, label, key, i)
      h = dense(hand_on_views(run.method, out, True, layer_key(key, i, Role.HAND_ON)))
      return loss, h, read_views(run.method, out, h), new, metrics

    step = rematerialized(one, label) if run.rematerialize else one
    loss, h, seen, new, metrics = step(params[i], h)
    total += loss if weights is None else weights[i] * loss
    read.append(seen)
    if view is not None:
      h = jnp.stack([a if v == view else lax.stop_gradient(a) for v, a in enumerate(h)])
    stats.append(new)
    rows.append({"loss": loss, **metrics})
  return total, (stats, rows, read)


def update_layers(
  run: Run,
  state: TrainState,
  params: Sequence[PyTree],
  grads: Sequence[PyTree],
  stats: Sequence[PyTree],
  key: Key,
) -> tuple[LayerState, ...]:
  """One step of every layer's optimiser."""
  parts = enumerate(zip(state.layers, params, grads, stats, strict=True))
  return tuple(update_layer(run, s, p, g, t, key, i) for i, (s, p, g, t) in parts)


def global_sweep(
  run: Run, state: TrainState, x: Array, label: Array, key: Key, weights: Array | None
) -> Sweep:
  """All layers learn from the (weighted) sum of the losses, end to end."""
  params = tuple(load_params(run, s) for s in state.layers)
  losses = lambda p: end_to_end_losses(run, p, state.layers, x, label, key, weights)  # noqa: E731
  grads, (stats, rows, read) = jax.grad(losses, has_aux=True)(params)
  new = update_layers(run, state, params, grads, stats, key)
  return new, state.coupling, per_layer(rows), tuple(read)


def eval_layer(
  run: Run, index: int, params: PyTree, stats: PyTree, x: Handed, key: Key | None = None
) -> tuple[LayerOut, Handed]:
  """A layer's output `[V, B, ...]` and what it hands on, in evaluation mode; see `eval_sweep`."""
  own = None if key is None else layer_key(key, index, Role.FORWARD)
  layer = run.network.layers[index]
  out, _ = apply_views(layer, params["layer"], stats["layer"], x, False, own)
  return out, hand_on_views(run.method, out, False, None)


def eval_sweep(
  run: Run, states: Sequence[LayerState], x: Handed, key: Key | None = None
) -> tuple[list, list[Array], list[LayerOut]]:
  """Class scores, handed-on features and outputs `[V, B, ...]` of every layer, in evaluation mode.

  Without a key, random units answer with their expectation.
  """
  scores, features, outs = [], [], []
  for i, s in enumerate(states):
    params = load_params(run, s)
    out, x = eval_layer(run, i, params, s.stats, x, key)
    scores.append(run.method.class_scores(params["method"], s.stats["method"], out))
    features.append(dense(x))
    outs.append(out)
  return scores, features, outs


def plain_features(
  run: Run, states: Sequence[LayerState], image: Array, key: Key | None = None
) -> tuple[Array, ...]:
  """The handed-on features `[B, ...]` of every layer on the plain view."""
  _, features, _ = eval_sweep(run, states, run.method.plain_view(image)[None], key)
  return tuple(f[0] for f in features)


def read_features(
  run: Run, states: Sequence[LayerState], image: Array, key: Key | None = None
) -> tuple[Array, ...]:
  """What trained readouts read of every layer, `[B, ...]`, on the plain view."""
  _, handed, outs = eval_sweep(run, states, run.method.plain_view(image)[None], key)
  pairs = zip(outs, handed, strict=True)
  return tuple(read_views(run.method, out, x)[0] for out, x in pairs)


def layer_outs(
  run: Run, states: Sequence[LayerState], image: Array, key: Key | None
) -> tuple[LayerOut, ...]:
  """What every layer computes on the plain view, `[B, ...]`."""
  *_, outs = eval_sweep(run, states, run.method.plain_view(image)[None], key)
  return tuple(jax.tree.map(lambda a: a[0], out) for out in outs)
