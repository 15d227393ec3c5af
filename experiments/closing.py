"""The end of a run: the final evaluation, the closing table, the figures and `summary.json`."""

import pathlib

import jax
import numpy as np

from experiments import config, console, figures, workdir
from experiments.assembly import Experiment
from experiments.running import final_accuracies
from fflax.random import Role, role_key
from fflax.training.metrics import read_rows
from fflax.types import Batch, TrainState


def draw_figures(experiment: Experiment, state: TrainState, folder: pathlib.Path) -> list[str]:
  """Draws every figure that this run can have, and returns their paths."""
  names = experiment.trainer.layer_names
  target = folder / "figures"
  target.mkdir(exist_ok=True)
  paths = [
    figures.training_curves(read_rows(folder / "metrics.jsonl"), names, target / "curves.png")
  ]
  if experiment.trainer.goodness is not None:
    size = min(500, len(experiment.dataset.test.label))
    batch = Batch(
      experiment.preprocess(None, jax.numpy.asarray(experiment.dataset.test.image[:size])),
      jax.numpy.asarray(experiment.dataset.test.label[:size]),
    )
    key = role_key(state.key, Role.PROBE)
    goodness = np.asarray(jax.jit(experiment.trainer.goodness)(state, batch, key))
    paths.append(figures.goodness_histograms(goodness, names, target / "goodness.png"))
  first = experiment.trainer.layer_states(state)[0].params["layer"]
  kernels = [np.asarray(x) for x in jax.tree.leaves(first) if x.ndim in (2, 4)]
  shape = experiment.dataset.train.image.shape[1:]
  if len(kernels) == 1 and len(shape) == 3:
    paths.append(figures.first_layer_features(kernels[0], shape, target / "features.png"))
  return [str(p) for p in paths]


def close_run(
  experiment: Experiment, state: TrainState, matrix: np.ndarray, folder: pathlib.Path
) -> None:
  """Evaluates, prints and writes what a finished run has to say."""
  accuracies = final_accuracies(experiment, state)
  console.closing(experiment, accuracies)
  console.console.print(console.locality_line(experiment, matrix))
  for path in draw_figures(experiment, state, folder):
    console.console.print(f"figure    {path}")
  summary = {
    "method": experiment.method.name,
    "locality": experiment.method.locality,
    "locality_matrix": matrix.astype(int).tolist(),
    "seed": experiment.config.seed,
    "steps": int(state.step),
    "accuracy": accuracies,
    "commit": workdir.commit(),
    "versions": workdir.versions(),
    "device": workdir.device(),
    "fingerprint": config.fingerprint(experiment.config),
  }
  workdir.write_json(folder / "summary.json", summary)
