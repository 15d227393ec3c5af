"""Accuracy of p-bits against the modelled energy of an answer, beside the same net with real units.

  python -m experiments.studies.grid --grid=bsff_units_digits
  python -m experiments.studies.pbit_energy --study=bsff_units_digits [--table=horowitz_45nm]

Reads the grid's results, which hold measured firing rates; trains nothing.
"""

import json

from absl import flags

from experiments import cli, results
from experiments.console import console
from experiments.studies.energy_front import draw, rows_of, table_of
from fflax.analysis.energy import TABLES

_STUDY = flags.DEFINE_string("study", "bsff_units_digits", "a grid's results, by name")
_TABLE = flags.DEFINE_enum("table", "horowitz_45nm", list(TABLES), "energies of operations")


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    path = results.FOLDER / f"{_STUDY.value}.json"
    if not path.is_file():
      raise ValueError(f"there is no {path}: run the grid first")
    rows = rows_of(json.loads(path.read_text()), _TABLE.value)
    if not rows:
      raise ValueError(f"no point of {path} ended with an energy that is known")
  command = f"python -m experiments.studies.pbit_energy --study={_STUDY.value}"
  command += f" --table={_TABLE.value}" if _TABLE.value != "horowitz_45nm" else ""
  for row in rows:
    row["command"] = command
  title = f"Error against modelled energy, {rows[0]['dataset']}, {_TABLE.value}"
  written = results.write_study(f"{_STUDY.value}_energy", rows, table=TABLES[_TABLE.value].source)
  written.with_suffix(".md").write_text(table_of(rows, title))
  draw(rows, title, written.with_suffix(".png"))
  console.print(f"results   {written}")
  return 0


if __name__ == "__main__":
  cli.run(main)
