"""What layers answer in evaluation: after one pass, or while those of a recurrent method settle."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fflax.random import Role, layer_key
from fflax.training.layer_step import Run, apply_views, damp, hand_on_views, load_params
from fflax.training.sweeps import eval_sweep
from fflax.types import Array, Between, Broadcast, Key, LayerOut, LayerState, PyTree, Shown

Outs = tuple[LayerOut, ...]
Read = Callable[[PyTree, PyTree, LayerOut], Array | None]
"""`class_scores` or `goodness` of a method."""


def layer_scores(
  run: Run, states: Sequence[LayerState], image: Array, key: Key | None = None
) -> tuple[Array | None, ...]:
  """The class scores `[B, K]` of every layer on the score views; None where a layer has none."""
  if run.method.score_views is None:
    return (None,) * len(states)
  found = read_layers(run, states, run.method.score_views(image), run.method.class_scores, key)
  if run.method.heard_scores is None:
    return found
  every = jnp.stack([scores for scores in found if scores is not None])
  heard = run.method.heard_scores
  return tuple(heard(s.stats["method"], Broadcast(every, i)) for i, s in enumerate(states))


def read_layers(
  run: Run, states: Sequence[LayerState], x: Shown, read: Read, key: Key | None = None
) -> tuple[Array | None, ...]:
  """What `read` finds at every layer on the views `x` `[V, B, ...]`, in evaluation mode.

  Layers of a recurrent method are read in every time step of its window, and the mean is given.
  """
  if isinstance(x, Between):
    return _settled(run, states, x, read)
  *_, outs = eval_sweep(run, states, x, key)
  return _read_all(run, states, outs, read)


def _read_all(
  run: Run, states: Sequence[LayerState], outs: Sequence[LayerOut], read: Read
) -> tuple[Array | None, ...]:
  parts = zip(states, outs, strict=True)
  return tuple(read(load_params(run, s)["method"], s.stats["method"], out) for s, out in parts)


def _settled(
  run: Run, states: Sequence[LayerState], x: Between, read: Read
) -> tuple[Array | None, ...]:
  recurrence = run.method.recurrence
  assert recurrence is not None
  first, last = recurrence.window

  def tick(outs: Outs, _: None) -> tuple[Outs, tuple]:
    new = []
    parts = zip(run.network.layers, states, outs, neighbours(run, outs, x, None), strict=True)
    for layer, s, old, shown in parts:
      own = load_params(run, s)["layer"]
      out, _ = apply_views(layer, own, s.stats["layer"], shown, False, None)
      new.append(damp(run.method, old, out))
    return tuple(new), _read_all(run, states, new, read)

  _, told = lax.scan(tick, first_pass(run, states, x), None, length=last)
  return jax.tree.map(lambda a: jnp.mean(a[first - 1 :], axis=0), told)


def first_pass(run: Run, states: Sequence[LayerState], x: Between) -> Outs:
  """The activities that settling starts from: one pass from the input up, nothing from above."""
  *_, outs = eval_sweep(run, states, x.below)
  return tuple(LayerOut(out.pre, out.act, out.out) for out in outs)


def neighbours(run: Run, outs: Outs, ends: Between, key: Key | None) -> list[Between]:
  """What each layer hears, `[V, B, ...]`, from the activities of a time step.

  Args:
    run: of a recurrent method.
    outs: of all layers.
    ends: what stands below the first layer and above the last.
    key: of the time step, in training; None: evaluation.
  """
  handed: list[PyTree] = []
  for i, out in enumerate(outs):
    own = None if key is None else layer_key(key, i, Role.HAND_ON)
    handed.append(hand_on_views(run.method, out, key is not None, own))
  column = [ends.below, *handed, ends.above]
  return [Between(below, above) for below, above in zip(column, column[2:], strict=False)]
