"""Compares the points of a grid with the same seeds and writes one result file, table and figure.

  python -m experiments.studies.grid --grid=ffint8_digits --seeds=0,1,2 [--data_dir=DIR]
    [--epochs=N] [--only=PART]

Each point and seed is a run of its own in a folder under `--runs`: a study that was cut goes on
where it was. A run that diverges is a result, not the end of the study. `--epochs` shortens all
runs, and the study's name says so. Grids: experiments/studies/grids.py.

Where a grid asks for several answers of units that are random, one trained state gives them all, a
row each; the result file then also holds each point's firing rates and the products of one pass.
"""

import pathlib
import re
import shlex
from typing import Any

from absl import flags

from experiments import cli, results
from experiments.console import console
from experiments.row_costs import row_costs
from experiments.studies.comparison import configurations, draw, table
from experiments.studies.grids import GRIDS
from experiments.studies.points import costs_of, rows_of, run_point

_GRID = flags.DEFINE_enum("grid", None, list(GRIDS), "which study")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_EPOCHS = flags.DEFINE_integer("epochs", None, "epochs of every run; default: the preset's")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where data sets lie")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the runs")
_MEMORY = flags.DEFINE_bool("memory", True, "compile the steps and read their peak memory")
_ONLY = flags.DEFINE_string("only", "", "only the points whose label holds this text")


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
      # Before the training: what cannot be counted is said at once.
      cost = row_costs(one, memory=_MEMORY.value)
      point = run_point(one, seeds, folder, grid.samples)
    new = rows_of(point, grid, label, seeds, command, cost)
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
