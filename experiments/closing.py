"""The end of a run: the final evaluation, the closing table, the figures and `summary.json`."""

import pathlib
from collections.abc import Callable

import jax
import numpy as np

from experiments import config, console, figures, workdir
from experiments.assembly import Experiment
from experiments.running import final_accuracies
from fflax.random import Role, role_key
from fflax.training import processes
from fflax.training.metrics import read_rows
from fflax.types import Batch, TrainState


def first_kernel(experiment: Experiment, state: TrainState) -> np.ndarray | None:
  """The first layer's kernel, if it has exactly one and that one reads images as a whole."""
  params = experiment.trainer.layer_states(state)[0].params["layer"]
  leaves = jax.tree_util.tree_leaves_with_path(params)
  kernels = [np.asarray(x) for path, x in leaves if getattr(path[-1], "key", "") == "kernel"]
  return kernels[0] if len(kernels) == 1 and kernels[0].ndim in (2, 4) else None


def draw_figures(experiment: Experiment, state: TrainState, folder: pathlib.Path) -> list[str]:
  """Draws every figure that this run can have; one line a figure: its path, or why it is missing.

  The run is over and its numbers are written: a picture that fails must not end it in a traceback.
  """
  names = experiment.trainer.layer_names
  drawings: dict[str, Callable[[pathlib.Path], pathlib.Path]] = {
    "curves": lambda path: figures.training_curves(read_rows(folder / "metrics.jsonl"), names, path)
  }
  if experiment.trainer.goodness is not None:
    size = min(500, len(experiment.dataset.test.label))
    batch = Batch(
      experiment.preprocess(None, jax.numpy.asarray(experiment.dataset.test.image[:size])),
      jax.numpy.asarray(experiment.dataset.test.label[:size]),
    )
    key = role_key(state.key, Role.PROBE)
    goodness = np.asarray(jax.jit(experiment.trainer.goodness)(state, batch, key))
    drawings["goodness"] = lambda path: figures.goodness_histograms(goodness, names, path)
  kernel, shape = first_kernel(experiment, state), experiment.dataset.train.image.shape[1:]
  if kernel is not None and len(shape) == 3:
    drawings["features"] = lambda path: figures.first_layer_features(kernel, shape, path)
  if not processes.is_first():  # but they have helped with the numbers
    return []
  target = folder / "figures"
  target.mkdir(exist_ok=True)
  lines = []
  for name, draw in drawings.items():
    try:
      lines.append(f"figure    {draw(target / f'{name}.png')}")
    except ValueError as error:
      lines.append(f"figure    {name} left out: {error}")
  return lines


def close_run(
  experiment: Experiment, state: TrainState, matrix: np.ndarray, folder: pathlib.Path
) -> None:
  """Evaluates, prints and writes what a finished run has to say."""
  accuracies = final_accuracies(experiment, state)
  console.closing(experiment, accuracies)
  console.console.print(console.locality_line(experiment, matrix))
  summary = {
    "method": experiment.method.name,
    "locality": experiment.trainer.locality,
    "locality_matrix": matrix.astype(int).tolist(),
    "seed": experiment.config.seed,
    "steps": int(state.step),
    "accuracy": accuracies,
    "commit": workdir.commit(),
    "versions": workdir.versions(),
    "device": workdir.device(),
    "fingerprint": config.fingerprint(experiment.config),
  }
  if processes.is_first():
    workdir.write_json(folder / "summary.json", summary)
  for line in draw_figures(experiment, state, folder):
    console.console.print(line)
