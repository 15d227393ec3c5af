"""Compares the points of a grid with the same seeds and writes one result file, table and figure.

  python -m experiments.studies.grid --grid=ffint8_digits --seeds=0,1,2 [--data_dir=DIR]
    [--epochs=N] [--only=PART]

Each point and seed is a run of its own in a folder under `--runs`: a study that was cut goes on
where it was. A run that diverges is a result, not the end of the study. `--epochs` shortens all
runs, and the study's name says so. Grids: experiments/studies/grids.py.
"""

import dataclasses
import hashlib
import pathlib
import re
import shlex
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments import cli, config, results, workdir
from experiments.assembly import Experiment, build, prove_locality
from experiments.console import console
from experiments.running import final_accuracies, run_in
from experiments.studies.comparison import configurations, draw, table
from experiments.studies.grids import GRIDS
from fflax.training.loop import Diverged

_GRID = flags.DEFINE_enum("grid", None, list(GRIDS), "which study")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_EPOCHS = flags.DEFINE_integer("epochs", None, "epochs of every run; default: the preset's")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where data sets lie")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the runs")
_ONLY = flags.DEFINE_string("only", "", "only the points whose label holds this text")


def run_point(
  chosen: config.ExperimentConfig, seeds: Sequence[int], folder: pathlib.Path
) -> tuple[Experiment, list[dict[str, float]], list[int], np.ndarray]:
  """Trains a point with every seed: test accuracies, seeds that diverged, measured locality."""
  tests, diverged = [], []
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
    tests.append(final_accuracies(experiment, state)["test"])
  return experiment, tests, diverged, matrix


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
  rows = []
  for label, point in chosen.items():
    with cli.checking():
      experiment, tests, diverged, matrix = run_point(point, seeds, folder)
    readout = point.readouts[0]
    errors = [100 * (1 - t[f"accuracy/{readout}"]) for t in tests]
    columns = {
      **results.choices(point),
      "preset": label,
      "locality_matrix": matrix.astype(int).tolist(),
      "seeds": [s for s in seeds if s not in diverged],
      "diverged": diverged,
      "readout": readout,
      "published": grid.published.get(label),
      "command": shlex.join(["python", "-m", "experiments.studies.grid", *arguments]),
    }
    rows.append(
      results.row("test_error_percent", errors, locality=experiment.trainer.locality, **columns)
    )
    mean = f"{rows[-1]['mean']:.2f} %" if errors else "diverged"
    console.print(f"{label:40s} {mean}")
    path = results.write_study(study, rows)
  path.with_suffix(".md").write_text(table(grid, rows))
  draw(grid, rows, path.with_suffix(".png"))
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
