"""A point of a grid: trained with every seed, asked for all of its answers, its costs counted."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments import cli, config, pbit_hardware, results, workdir
from experiments.assembly import Experiment, build, prove_locality
from experiments.card import Task, forward_pass
from experiments.firing import Measured, draws, measure_firing
from experiments.running import run_in
from experiments.studies.comparison import Grid
from fflax.training.loop import Diverged
from fflax.types import TrainState


class Point(NamedTuple):
  """What became of a point of a grid.

  Attributes:
    experiment: of its last seed.
    tests: by number of sampled passes (see `Grid.samples`), the test accuracies of every seed.
    firing: of every seed, if the grid asks for samples and the units are random.
    diverged: seeds that did.
    matrix: measured locality.
  """

  experiment: Experiment
  tests: dict[int, list[dict[str, float]]]
  firing: list[Measured]
  diverged: list[int]
  matrix: np.ndarray


def test_accuracies(experiment: Experiment, state: TrainState, samples: int) -> dict[str, float]:
  """Of an answer by so many sampled passes, whatever the run's own."""
  if samples != experiment.config.eval_samples:
    other = dataclasses.replace(experiment.config, eval_samples=samples)
    experiment = build(other, experiment.dataset)
  values = experiment.evaluator("test", experiment.dataset.test)(state)
  return {name.removeprefix("test/"): float(value) for name, value in values.items()}


def run_folder(folder: pathlib.Path, chosen: config.ExperimentConfig, seed: int) -> pathlib.Path:
  """Of a run among others below `folder`."""
  own = dataclasses.replace(chosen, seed=seed)
  return folder / hashlib.sha256(config.fingerprint(own).encode()).hexdigest()[:12]


def trained(own: config.ExperimentConfig, folder: pathlib.Path) -> tuple[Experiment, TrainState]:
  """Trains a run in a folder of its own below `folder`, or goes on where it was.

  Raises:
    ValueError: the run is impossible, or its folder is another's.
    Stopped: it diverged, or a signal came.
  """
  experiment = build(own)
  own_folder = run_folder(folder, own, own.seed)
  workdir.claim(own_folder, own)
  return experiment, run_in(experiment, experiment.init(), own_folder)


def run_point(
  chosen: config.ExperimentConfig,
  seeds: Sequence[int],
  folder: pathlib.Path,
  samples: Sequence[int] = (),
) -> Point:
  """Trains a point with every seed, and asks each trained state for all of its answers."""
  measured, diverged = [], []
  answers = (samples if draws(chosen) else samples and (0,)) or (chosen.eval_samples,)
  tests: dict[int, list[dict[str, float]]] = {number: [] for number in answers}
  experiment = build(dataclasses.replace(chosen, seed=seeds[0]))
  matrix = prove_locality(experiment)
  for seed in seeds:
    own = dataclasses.replace(chosen, seed=seed)
    try:
      experiment, state = trained(own, folder)  # a seed has its own validation split
    except cli.Stopped as stop:
      if not isinstance(stop.__cause__, Diverged):
        raise
      diverged.append(seed)
      continue
    for number, found in tests.items():
      found.append(test_accuracies(experiment, state, number))
    if samples and draws(own):
      measured.append(measure_firing(experiment, state))
  return Point(experiment, tests, measured, diverged, matrix)


def rows_of(
  point: Point,
  grid: Grid,
  label: str,
  seeds: Sequence[int],
  command: str,
  cost: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
  """One row a readout and a number of sampled passes."""
  chosen, rows = point.experiment.config, []
  for readout in grid.readouts or chosen.readouts[:1]:
    for samples, tests in point.tests.items():
      errors = [100 * (1 - t[f"accuracy/{readout}"]) for t in tests]
      columns = {
        **results.choices(chosen),
        "preset": label,
        "locality_matrix": point.matrix.astype(int).tolist(),
        "seeds": [s for s in seeds if s not in point.diverged],
        "diverged": point.diverged,
        "readout": readout,
        **({"samples": samples} if grid.samples else {}),
        "published": grid.published.get(label),
        "command": command,
        "cost": cost,
      }
      locality = point.experiment.trainer.locality
      rows.append(results.row("test_error_percent", errors, locality=locality, **columns))
  return rows


def costs_of(point: Point, grid: Grid) -> dict[str, Any]:
  """The layers' counts, seed by seed, and each readout's pass with the mean of its additions."""
  data, chosen = point.experiment.dataset, point.experiment.config
  task = Task(data.train.image.shape[1:], data.num_classes, data.name)
  passes: dict[str, Any] = {}
  for readout in grid.readouts if point.firing or not draws(chosen) else ():
    measured: list[Measured | None] = [*point.firing] or [None]
    found = [forward_pass(chosen, task, readout, one) for one in measured]
    passes[readout] = pbit_hardware.as_dict(pbit_hardware.mean(found))
  return {"firing": [one.layers for one in point.firing], "passes": passes}
