"""FF-INT8, Table V: accuracy, seconds, joules and memory of FF-INT8 and its rivals, and published.

  python -m experiments.studies.ff_int8_table5 --network=MLP --seeds=0,1,2 [--data_dir=DIR]
    [--epochs=N]

Trains what the network's grid (`experiments.studies.grid`) trains, in the same folders, so that
finished runs are not trained again. Writes experiments/results/ff_int8_table5_<network>.json,
.md and .png; `--epochs` shortens all runs, and the study's name says so.
"""

import pathlib
import sys
from typing import Any

from absl import flags

from experiments import cli, results
from experiments.console import console
from experiments.studies.comparison import configurations
from experiments.studies.grids import GRIDS
from experiments.studies.points import run_point
from experiments.studies.table5 import NETWORKS, draw, rows_of, table

_NETWORK = flags.DEFINE_enum("network", "MLP", list(NETWORKS), "which row of the table")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_EPOCHS = flags.DEFINE_integer("epochs", None, "epochs of every run; default: the preset's", 1)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where data sets lie")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the runs")


def main(argv: list[str]) -> int:
  del argv
  name = NETWORKS[_NETWORK.value]
  with cli.checking():
    seeds, grid = cli.parse_seeds(_SEEDS.value), GRIDS[name]()
    chosen = configurations(grid, _EPOCHS.value, _DATA_DIR.value)
  short = f"_short_{_EPOCHS.value}_epochs" if _EPOCHS.value else ""
  folder = pathlib.Path(_RUNS.value) / (name + short)
  command = cli.command_line("experiments.studies.ff_int8_table5", sys.argv[1:])
  study = f"ff_int8_table5_{_NETWORK.value.lower().replace('-', '')}{short}"
  rows: list[dict[str, Any]] = []
  for label, one in chosen.items():
    with cli.checking():
      point = run_point(one, seeds, folder)
    rows += rows_of(_NETWORK.value, label, point, folder, seeds, command)
    path = results.write_study(study, rows)
    path.with_suffix(".md").write_text(table(grid.title, rows))
    draw(grid.title, rows, path.with_suffix(".png"))
    console.print(f"{label:40s} {rows[-4]['mean']} %", markup=False)
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
