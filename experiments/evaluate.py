"""Evaluates the newest checkpoint of a run: `python -m experiments.evaluate --workdir=runs/...`.

Prints the accuracy of every layer and readout on every split; changes nothing in the folder.
"""

import pathlib

from absl import flags

from experiments import cli, console
from experiments.assembly import prove_locality
from experiments.running import final_accuracies, reopened

_WORKDIR = flags.DEFINE_string("workdir", "runs/ff_digits", "folder of the run")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where sets lie here, if not where they lay")
_STEP = flags.DEFINE_integer("step", -1, "which checkpoint; -1 for the newest")


def main(argv: list[str]) -> int:
  del argv
  folder = pathlib.Path(_WORKDIR.value).expanduser()
  with cli.checking():
    step = None if _STEP.value < 0 else _STEP.value
    experiment, state = reopened(folder, _DATA_DIR.value, step)
  console.console.print(
    f"workdir   {folder}, step {int(state.step)} of {experiment.plan.num_steps}"
  )
  console.closing(experiment, final_accuracies(experiment, state))
  console.console.print(console.locality_line(experiment, prove_locality(experiment)))
  return 0


if __name__ == "__main__":
  cli.run(main)
