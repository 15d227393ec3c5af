"""Several runs as one classifier: `python -m experiments.ensemble --workdirs=runs/a,runs/b`.

The runs' probabilities (softmax of what each one's own readout answers) are averaged: BP-Ensemble,
if they are nets of backprop that differ in their seeds alone. Prints the test accuracy of each and
of the mean; changes nothing in the folders.
"""

import pathlib

from absl import flags

from experiments import cli, console
from experiments.ensembles import accuracies
from experiments.running import reopened

_WORKDIRS = flags.DEFINE_list("workdirs", [], "folders of the runs")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where sets lie here, if not where they lay")


def main(argv: list[str]) -> int:
  del argv
  folders = [pathlib.Path(name).expanduser() for name in _WORKDIRS.value]
  with cli.checking():
    alone, together = accuracies([reopened(folder, _DATA_DIR.value) for folder in folders])
  for folder, accuracy in zip(folders, alone, strict=True):
    console.console.print(f"{100 * accuracy:6.2f} %  {folder}")
  console.console.print(f"{100 * together:6.2f} %  mean probability of {len(folders)} runs")
  return 0


if __name__ == "__main__":
  cli.run(main)
