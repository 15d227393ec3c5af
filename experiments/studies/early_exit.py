"""Early exit: what accuracy is left when a prediction stops at the first layer that is sure.

  python -m experiments.studies.early_exit \\
    --presets=ff_digits,hff_digits,local_ce_digits,dtg_digits,predsim_digits --seeds=0,1,2

Every preset is trained with every seed (or resumed: each run has a folder of its own under
`--runs`); one that holds out no validation examples holds out `--validation`. On these,
temperatures are fitted and, for each of `--epsilons` (percent of the examples that may be lost
against the full depth), the smallest threshold; on the test set accuracy, mean MACs of the layers
that are run (all candidate labels counted) and the layers after which predictions stop. Beside
them stand stopping always after the same layer, and the run's readouts of all layers.
Writes experiments/results/early_exit.json, .md and .png.
"""

import dataclasses
import pathlib
import sys
from typing import Any, get_args

from absl import flags

from experiments import cli, config, results
from experiments.console import console
from experiments.studies.exits import check_presets, draw, measure_preset, rows_of, table
from fflax.core.early_exit import Confidence

PRESETS = ["ff_digits", "hff_digits", "local_ce_digits", "dtg_digits", "predsim_digits"]
_NOTE = (
  "Thresholds are fitted on {validation} held-out examples, where the preset holds out none; MACs "
  "are counted from the trace of one image, all candidate labels included. The loss that a rule "
  "allows is one of the held-out examples, not of the test set. Seeds: {seeds}; epochs: {epochs}."
)


def percents(values: list[str]) -> list[float]:
  """Raises ValueError, one sentence, unless all are numbers in [0, 100)."""
  try:
    found = [float(v) for v in values]
  except ValueError:
    found = []
  if not found or not all(0 <= v < 100 for v in found):
    raise ValueError(f"--epsilons takes percents from 0 to below 100, not {values}")
  return found


def main(argv: list[str]) -> int:
  del argv
  values = flags.FLAGS
  with cli.checking():
    seeds = cli.parse_seeds(values.seeds)
    cli.at_least_one("presets", values.presets, "preset")
    epsilons = percents(values.epsilons)
    changes: dict[str, Any] = {} if values.epochs is None else {"epochs": values.epochs}
    presets = {name: config.load_preset(name) for name in values.presets}
    for name, one in presets.items():
      data = dataclasses.replace(
        one.data,
        data_dir=values.data_dir or one.data.data_dir,
        validation=one.data.validation or values.validation,
      )
      presets[name] = dataclasses.replace(one, data=data, **changes)
    check_presets(presets, values.readout)
  study = "early_exit" if values.presets == PRESETS else f"early_exit_{presets_mark(presets)}"
  study += f"_short_{values.epochs}_epochs" if values.epochs else ""
  command = cli.command_line("experiments.studies.early_exit", sys.argv[1:])
  rows, curves = [], {}
  for name, one in presets.items():
    folder = pathlib.Path(values.runs) / "early_exit"
    options = (values.readout, values.confidence, epsilons)
    experiment, runs = measure_preset(one, seeds, folder, *options)
    shared = {"seeds": seeds, "command": command, "confidence": values.confidence}
    rows += rows_of(name, experiment, runs, values.readout, **shared)
    curves[name] = [run.curve for run in runs]
    # Written after every preset: the rows say which are in it.
    path = results.write_study(study, rows, curves=curves)
  note = _NOTE.format(
    validation=values.validation,
    seeds=", ".join(map(str, seeds)),
    epochs=", ".join(f"{one.epochs} ({name})" for name, one in presets.items()),
  )
  path.with_suffix(".md").write_text(table(rows, "Early exit", note))
  draw(rows, curves, path.with_suffix(".png"))
  console.print(f"results   {path}")
  return 0


def presets_mark(presets: dict[str, Any]) -> str:
  """Names the result file of other presets than the usual ones, by the first."""
  return "".join(c if c.isalnum() else "_" for c in next(iter(presets)))


if __name__ == "__main__":
  # Here, so that tests may import this module beside other commands with the same flags.
  flags.DEFINE_list("presets", PRESETS, "presets")
  flags.DEFINE_string("readout", "score_sum", "of class scores, whose answers by depth may stand")
  flags.DEFINE_enum("confidence", "softmax", get_args(Confidence), "how sure an answer is")
  flags.DEFINE_list("epsilons", ["0", "0.5", "1", "2"], "percent that a rule may lose")
  flags.DEFINE_integer("validation", 200, "held out where the preset holds out none", lower_bound=1)
  flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
  flags.DEFINE_integer("epochs", None, "epochs of every run; default: the preset's", lower_bound=1)
  flags.DEFINE_string("data_dir", "", "where data sets lie")
  flags.DEFINE_string("runs", "runs/studies", "folder of the runs")
  cli.run(main)
