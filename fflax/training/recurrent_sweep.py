"""Training with a recurrent method: layers settle over time, each hearing both neighbours.

Every layer reads the last time step's activities, handed on and detached, so all layers move at
once and no gradient passes a layer or a time step.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.numerics import GRADIENT_STATE
from fflax.random import Role, role_key
from fflax.training.answers import Outs, first_pass, neighbours
from fflax.training.layer_step import Run, init_layer, layer_loss, load_params, update_layer
from fflax.training.lookahead import Lookahead
from fflax.training.sweeps import Sweep, per_layer
from fflax.types import (
  Array,
  Between,
  Key,
  LayerOut,
  LayerState,
  Method,
  Metrics,
  Network,
  PyTree,
  Schedule,
  TrainState,
)


def check_recurrence(
  network: Network, method: Method, schedule: Schedule, lookahead: Lookahead | None
) -> None:
  """Refuses what does not go with a recurrent method, without shapes.

  Raises:
    ValueError: one sentence that says why.
  """
  if method.locality != "strict" or method.score_views is None:
    raise ValueError(
      f"method {method.name!r} is recurrent, so it must be strict and have score views"
    )
  if schedule.active is not None or schedule.reforward or lookahead is not None:
    what = f"schedule {schedule.name!r}" if lookahead is None else "look-ahead"
    raise ValueError(
      f"{what} needs layers that follow each other, and those of method {method.name!r} settle "
      "together: use schedule 'simultaneous' without look-ahead"
    )
  for layer in network.layers:
    if not layer.two_way:
      raise ValueError(
        f"method {method.name!r} has layers hear the layer above, which {layer.name!r} of network "
        f"{network.name!r} cannot: use network 'mlp'"
      )
    if layer.counts:
      raise ValueError(
        f"method {method.name!r} averages activities over time, which random units do not emit: "
        "use real ones, such as activation 'relu'"
      )


def require_sums(method: Method, states: Sequence[LayerState]) -> None:
  """Refuses layers whose gradients cannot be summed over time.

  Raises:
    ValueError: their numerics carry a state of their gradients.
  """
  paths = [path for path, _ in jax.tree.leaves_with_path([s.params for s in states])]
  if any(getattr(path[-1], "key", None) == GRADIENT_STATE for path in paths):
    raise ValueError(
      f"method {method.name!r} sums gradients over time, which numerics that carry a state of "
      "their gradients do not allow: use 'float32', 'bfloat16' or 'int8'"
    )


def heard_from_above(run: Run, key: Key, image: Array) -> list[Array | None]:
  """Zeros like what each layer hears from above, `[B, ...]`; None if the method is not recurrent.

  What a layer hands on does not depend in shape on what it hears, so a pass up finds it.
  """
  method, num_layers = run.method, len(run.network.layers)
  if method.recurrence is None:
    return [None] * num_layers

  def shapes(key: Key, image: Array) -> list[Array]:
    assert method.score_views is not None
    x, handed, shown = method.plain_view(image), [], method.score_views(image)
    assert isinstance(shown, Between)
    for i in range(num_layers):
      _, x = init_layer(run, key, i, x)
      handed.append(x)
    return [*handed[1:], shown.above[0]]

  found = jax.eval_shape(shapes, key, image)
  return [jnp.zeros(a.shape, a.dtype) for a in found]


def recurrent_sweep(
  run: Run, state: TrainState, x: Between, label: Array, key: Key, weights: Array | None
) -> Sweep:
  """Every layer learns from its own loss at every time step, and moves once, by their sum.

  The pass from the input up that starts the activities has no loss; it is one of evaluation.
  Statistics move in every time step. Metrics are means over time, but for the loss, the sum.
  """
  recurrence, states = run.method.recurrence, state.layers
  assert recurrence is not None
  params = tuple(load_params(run, s) for s in states)

  def learn(
    i: int, last: LayerOut, stats: PyTree, shown: Between, now: Key
  ) -> tuple[LayerOut, PyTree, PyTree, Metrics]:
    """One layer at one time step: its activities, statistics, gradient and metrics."""

    def objective(own: PyTree) -> tuple[Array, tuple]:
      layer = run.network.layers[i]
      loss, aux = layer_loss(run, layer, own, stats, shown, label, now, i, last=last)
      return loss if weights is None else weights[i] * loss, aux

    grads, (loss, out, stats, metrics) = jax.grad(objective, has_aux=True)(params[i])
    return out, stats, grads, {"loss": loss, **metrics}

  def tick(carry: tuple[Outs, tuple, tuple], t: Array) -> tuple[tuple, Metrics]:
    outs, stats, grads = carry
    outs = lax.stop_gradient(outs)
    now = jax.random.fold_in(role_key(key, Role.TIME), t)
    shown = neighbours(run, outs, x, now)
    found = [learn(i, *own, now) for i, own in enumerate(zip(outs, stats, shown, strict=True))]
    outs, stats, moved, rows = zip(*found, strict=True)
    return (outs, stats, jax.tree.map(jnp.add, grads, moved)), per_layer(rows)

  start = (
    first_pass(run, states, x),
    tuple(s.stats for s in states),
    jax.tree.map(jnp.zeros_like, params),
  )
  (_, stats, grads), rows = lax.scan(tick, start, jnp.arange(1, recurrence.steps + 1))
  parts = enumerate(zip(states, params, grads, stats, strict=True))
  new = tuple(update_layer(run, s, p, g, t, key, i) for i, (s, p, g, t) in parts)
  metrics = {n: (jnp.sum if n == "loss" else jnp.mean)(row, axis=0) for n, row in rows.items()}
  return new, state.coupling, metrics, ()
