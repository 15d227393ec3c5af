"""Compares the points of a grid with the same seeds and writes one result file, table and figure.

  python -m experiments.studies.grid --grid=ffint8_digits --seeds=0,1,2 [--data_dir=DIR]
    [--epochs=N] [--only=PART]

Each point and seed is a run of its own in a folder under `--runs`: a study that was cut goes on
where it was. A run that diverges is a result, not the end of the study. `--epochs` shortens all
runs, and the study's name says so. Grids: experiments/studies/grids.py.

Where a grid asks for several answers of units that are random, one trained state gives them all, a
row each; the result file then also holds each point's firing rates and the products of one pass.
"""

import dataclasses
import hashlib
import pathlib
import re
import shlex
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments import cli, config, pbit_hardware, results, workdir
from experiments.assembly import Experiment, build, prove_locality
from experiments.card import Task, forward_pass
from experiments.console import console
from experiments.firing import Measured, draws, measure_firing
from experiments.running import run_in
from experiments.studies.comparison import Grid, configurations, draw, table
from experiments.studies.grids import GRIDS
from fflax.training.loop import Diverged
from fflax.types import TrainState

_GRID = flags.DEFINE_enum("grid", None, list(GRIDS), "which study")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_EPOCHS = flags.DEFINE_integer("epochs", None, "epochs of every run; default: the preset's")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where data sets lie")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the runs")
_ONLY = flags.DEFINE_string("only", "", "only the points whose label holds this text")


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
    experiment = build(own)  # a seed has its own validation split
    name = hashlib.sha256(config.fingerprint(own).encode()).hexdigest()[:12]
    workdir.claim(folder / name, own)
    try:
      state = run_in(experiment, experiment.init(), folder / name)
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
  point: Point, grid: Grid, label: str, seeds: Sequence[int], command: str
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


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    if _GRID.value is None:
      raise ValueError(f"--grid is needed: one of {', '.join(GRIDS)}")
    if _EPOCHS.value is not None and _EPOCHS.value < 1:
      raise ValueError(f"--epochs must be at least 1, not {_EPOCHS.value}")
    grid, seeds = GRIDS[_GRID.value](), cli.parse_seeds(_SEEDS.value)
    chosen = configurations(grid, _EPOCHS.value, _DATA_DIR.value)
    chosen = {label: c for label, c in chosen.items() if _ONLY.value in label}
    if not chosen:
      raise ValueError(f"no point of grid {_GRID.value!r} holds {_ONLY.value!r}")
  study = _GRID.value + (f"_short_{_EPOCHS.value}_epochs" if _EPOCHS.value else "")
  arguments = [f"--grid={_GRID.value}", f"--seeds={','.join(map(str, seeds))}"]
  arguments += [f"--epochs={_EPOCHS.value}"] if _EPOCHS.value else []
  arguments += ["--data_dir=DIR"] if _DATA_DIR.value else []
  arguments += [f"--only={_ONLY.value}"] if _ONLY.value else []
  folder = pathlib.Path(_RUNS.value) / study
  study += "_only_" + "_".join(re.findall(r"\w+", _ONLY.value)) if _ONLY.value else ""
  command = shlex.join(["python", "-m", "experiments.studies.grid", *arguments])
  rows: list[dict[str, Any]] = []
  costs: dict[str, dict[str, Any]] = {}
  for label, one in chosen.items():
    with cli.checking():
      point = run_point(one, seeds, folder, grid.samples)
    new = rows_of(point, grid, label, seeds, command)
    rows += new
    if grid.samples:
      costs[label] = costs_of(point, grid)
    mean = f"{new[0]['mean']:.2f} %" if new[0]["values"] else "diverged"
    console.print(f"{label:40s} {mean}")
    path = results.write_study(study, rows, **({"costs": costs} if costs else {}))
  path.with_suffix(".md").write_text(table(grid, rows))
  draw(grid, rows, path.with_suffix(".png"))
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
