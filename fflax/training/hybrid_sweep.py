"""The sweep of layers that have losses of their own and learn from a readout above them, too."""

import jax

from fflax.training.layer_step import Run, load_params
from fflax.training.readout_step import readout_losses, update_readouts
from fflax.training.sweeps import end_to_end_losses, per_layer, update_layers
from fflax.types import Array, Key, LayerState, Metrics, PyTree, ReadoutState, TrainState


def hybrid_sweep(
  run: Run, state: TrainState, x: Array, label: Array, key: Key, weights: Array | None
) -> tuple[tuple[LayerState, ...], tuple[ReadoutState, ...], Metrics, Metrics]:
  """Layers learn from their own losses and, end to end along one view, from those of the readouts.

  The readouts' losses count with the last layer's, in its weight and in its metric "loss".

  Returns:
    New states of the layers and the readouts, metrics of both.
  """
  view = run.method.end_to_end_view
  assert view is not None

  def objective(trained: tuple) -> tuple[Array, tuple]:
    params, heads = trained
    total, (stats, rows, read) = end_to_end_losses(
      run, params, state.layers, x, label, key, weights
    )
    features = tuple(r[view] for r in read)
    loss, (head_stats, metrics) = readout_losses(run, state.readouts, heads, features, label, key)
    rows[-1]["loss"] = rows[-1]["loss"] + loss
    total += loss if weights is None else weights[-1] * loss
    return total, (stats, rows, head_stats, metrics)

  params = tuple(load_params(run, s) for s in state.layers)
  heads: tuple[PyTree, ...] = tuple(s.params for s in state.readouts)
  grads, (stats, rows, head_stats, metrics) = jax.grad(objective, has_aux=True)((params, heads))
  layers = update_layers(run, state, params, grads[0], stats, key)
  readouts = update_readouts(run, state, grads[1], head_stats)
  return layers, readouts, per_layer(rows), metrics
