"""The sweep of a run that looks ahead: up through the layers, then down with what layers hear."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.absorption import dense
from fflax.core.numerics import without_gradient_state
from fflax.random import Role, layer_key
from fflax.training.layer_step import (
  Run,
  hand_on_views,
  layer_loss,
  load_params,
  read_views,
  update_layer,
)
from fflax.training.rematerialize import pull_again
from fflax.training.sweeps import Sweep, per_layer
from fflax.types import Array, Key, LayerOut, LayerState, Metrics, PyTree, TrainState

_TINY = 1e-30


class _Rung(NamedTuple):
  """What the way up leaves behind at one layer.

  Attributes:
    pull: cotangents of (loss, goodness, handed-on) to those of (parameters, input).
    goodness: `[V, B]`; `()` if nobody reads it.
    slope: dL/dG of every view and example, `[V, B]`; `()` unless the mode is "scalar".
    silent: zero cotangents of goodness and handed-on.
    params: of the layer, as floats.
    stats, metrics: as the layer's loss gives them.
  """

  pull: Callable[[tuple], tuple[PyTree, Array]]
  goodness: PyTree
  slope: PyTree
  silent: tuple[PyTree, Array]
  params: PyTree
  stats: PyTree
  metrics: Metrics


def lookahead_sweep(
  run: Run, state: TrainState, x: Array, label: Array, key: Key, weights: Array | None
) -> Sweep:
  """Every layer learns from its own loss and, with weight lambda, from those of the layers above.

  One reverse sweep. "exact": a layer's weights receive the cotangent `lambda * c` at its output,
  and the layer below receives c, the gradient of all later losses. "scalar": a layer's goodness
  receives `lambda` times the sum of the later slopes. Layers are not stacked: what a layer saved
  must wait for those above it, as in backprop; where the run rematerialises, that is its input.
  """
  look = run.lookahead
  assert look is not None
  rungs, read, x = [], [], lax.stop_gradient(x)
  for i in range(len(run.network.layers)):
    rung, x, shown = _climb(
      run, state.layers[i], x, label, key, i, None if weights is None else weights[i]
    )
    rungs.append(rung)
    read.append(shown)
  lambdas = look.coefficients(state.coupling, state.step, len(rungs))
  down = _exact if look.mode == "exact" else _scalar
  grads, used = down(run, rungs, lambdas)

  coupling = look.remember(state.coupling, used)
  if look.observe is not None:
    sign = 1.0 if run.method.positive_is_high else -1.0
    coupling = look.observe(coupling, [sign * rung.goodness for rung in rungs])
  new = [
    update_layer(run, s, rung.params, g, rung.stats, key, i)
    for i, (s, g, rung) in enumerate(zip(state.layers, grads, rungs, strict=True))
  ]
  rows = [{**rung.metrics, "lambda": used[i]} for i, rung in enumerate(rungs)]
  return tuple(new), lax.stop_gradient(coupling), per_layer(rows), tuple(read)


def _climb(
  run: Run, state: LayerState, x: Array, label: Array, key: Key, index: int, weight: Array | None
) -> tuple[_Rung, Array, Array]:
  """One layer on the way up, what it hands on, and what readouts read of it."""
  look, method, layer = run.lookahead, run.method, run.network.layers[index]
  assert look is not None
  own_params = load_params(run, state)
  with_goodness = look.mode == "scalar" or look.observe is not None

  def goodness(params: PyTree, out: LayerOut) -> PyTree:
    if not with_goodness:
      return ()
    assert method.goodness is not None
    return method.goodness(params["method"], state.stats["method"], out)

  def forward(params: PyTree, x: Array) -> tuple[tuple, tuple]:
    loss, aux = layer_loss(run, layer, params, state.stats, x, label, key, index)
    out = aux[1]
    handed = dense(hand_on_views(method, out, True, layer_key(key, index, Role.HAND_ON)))
    return (loss if weight is None else weight * loss, goodness(params, out), handed), aux

  if run.rematerialize:
    (_, own, handed), aux = forward(own_params, x)
    pull = pull_again(lambda *args: forward(*args)[0], label, own_params, x)
  else:
    (_, own, handed), pull, aux = jax.vjp(forward, own_params, x, has_aux=True)
  loss, out, stats, metrics = aux
  slope: PyTree = ()
  if look.mode == "scalar":

    def stretched(length: Array) -> tuple[Array, Array]:
      stretch = lambda a: a * length.reshape(own.shape + (1,) * (a.ndim - 2))  # noqa: E731
      twice = lambda a: None if a is None else stretch(stretch(a))  # noqa: E731
      longer = out._replace(
        pre=stretch(out.pre),
        act=stretch(out.act),
        out=stretch(out.out),
        square=twice(out.square),
        act_square=twice(out.act_square),
      )
      loss_key = layer_key(key, index, Role.LOSS)
      method_loss, _ = method.local_loss(
        own_params["method"], state.stats["method"], longer, label, None, loss_key
      )
      return method_loss, goodness(own_params, longer)

    # Along its own length, L moves by dL/dG * dG/dlength: the ratio is the slope.
    _, pull_length = jax.vjp(stretched, jnp.ones(own.shape))
    (loss_change,) = pull_length((jnp.ones(()), jnp.zeros(own.shape)))
    (goodness_change,) = pull_length((jnp.zeros(()), jnp.ones(own.shape)))
    slope = jnp.where(jnp.abs(goodness_change) > _TINY, loss_change / goodness_change, 0.0)
    slope = slope if weight is None else weight * slope
  silent = jax.tree.map(jnp.zeros_like, (own, handed))
  rung = _Rung(pull, own, slope, silent, own_params, stats, {"loss": loss, **metrics})
  return rung, handed, read_views(method, out, handed)


def _exact(run: Run, rungs: list[_Rung], lambdas: Array) -> tuple[list[PyTree], Array]:
  """The layers' gradients and the lambdas they were made with."""
  look, one, grads, used = run.lookahead, jnp.ones(()), [], []
  assert look is not None
  above = rungs[-1].silent[1]
  for i, rung in reversed(list(enumerate(rungs))):
    quiet, silent = rung.silent
    if look.from_gradients is None:
      used.append(lambdas[i])
      grads.append(rung.pull((one, quiet, lambdas[i] * above))[0])
    else:
      local, _ = rung.pull((one, quiet, silent))
      later = without_gradient_state(rung.pull((0 * one, quiet, above))[0])
      used.append(look.from_gradients(lambdas[i], without_gradient_state(local), later))
      grads.append(jax.tree.map(lambda a, b: a + used[-1] * b, local, later))
    above = rung.pull((one, quiet, above))[1]
  return grads[::-1], jnp.stack(used[::-1])


def _scalar(run: Run, rungs: list[_Rung], lambdas: Array) -> tuple[list[PyTree], Array]:
  """As `_exact`, but only numbers go down."""
  del run
  grads, later = [], jnp.zeros(rungs[-1].slope.shape)
  for i, rung in reversed(list(enumerate(rungs))):
    grads.append(rung.pull((jnp.ones(()), lambdas[i] * later, rung.silent[1]))[0])
    later = later + rung.slope
  return grads[::-1], lambdas
