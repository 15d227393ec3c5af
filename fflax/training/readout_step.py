"""Trained readouts in a step: their losses, gradients and updates, on features of the layers."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import optax
from jax import lax

from fflax.random import Role, role_key
from fflax.training.layer_step import Run
from fflax.types import Array, Key, Metrics, PyTree, ReadoutState, TrainState


def init_readouts(run: Run, key: Key, features: tuple[Array, ...]) -> tuple[ReadoutState, ...]:
  """Fresh readouts for features `[B, ...]`."""
  states = []
  for readout in run.readouts:
    params, stats = readout.init(role_key(key, Role.READOUT), features)
    opt_state = run.readout_optimizer.init(params) if readout.loss is not None else ()
    states.append(ReadoutState(params, opt_state, stats))
  return tuple(states)


def readout_losses(
  run: Run,
  states: Sequence[ReadoutState],
  params: Sequence[PyTree],
  features: tuple[Array, ...],
  label: Array,
  key: Key,
) -> tuple[Array, tuple[list[PyTree], Metrics]]:
  """The sum of the trained readouts' losses with these parameters; aux: new statistics, metrics."""
  total, stats, metrics = jnp.zeros(()), [], {}
  for i, (readout, old, own) in enumerate(zip(run.readouts, states, params, strict=True)):
    new = old.stats
    if readout.loss is not None:
      own_key = jax.random.fold_in(role_key(key, Role.READOUT), i)
      loss, new = readout.loss(own, old.stats, features, label, own_key)
      total += loss
      metrics[f"readout_loss/{readout.name}"] = loss
    stats.append(lax.stop_gradient(new))
  return total, (stats, metrics)


def update_readouts(
  run: Run, state: TrainState, grads: Sequence[PyTree], stats: Sequence[PyTree]
) -> tuple[ReadoutState, ...]:
  """One step of every trained readout's optimiser, from their first step on."""
  new = []
  for readout, old, g, s in zip(run.readouts, state.readouts, grads, stats, strict=True):
    if readout.loss is not None:
      updates, opt_state = run.readout_optimizer.update(g, old.opt_state, old.params)
      moved = ReadoutState(optax.apply_updates(old.params, updates), opt_state, s)
      if run.schedule.readouts_from:
        awake = state.step >= run.schedule.readouts_from
        moved = jax.tree.map(lambda a, b, c=awake: jnp.where(c, a, b), moved, old)
      old = moved
    new.append(old)
  return tuple(new)


def train_readouts(
  run: Run, state: TrainState, features: tuple[Array, ...], label: Array, key: Key
) -> tuple[tuple[ReadoutState, ...], Metrics]:
  """One step of every trained readout on detached features; `key` is the step's."""
  features, params = lax.stop_gradient(features), [s.params for s in state.readouts]
  losses = lambda p: readout_losses(run, state.readouts, p, features, label, key)  # noqa: E731
  grads, (stats, metrics) = jax.grad(losses, has_aux=True)(params)
  return update_readouts(run, state, grads, stats), metrics
