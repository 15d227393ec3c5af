"""What a checkpoint's layers know and how far they agree: `python -m experiments.diagnose`.

`--workdir=runs/...` of any run; prints a table, and writes `diagnosis.json` and
`figures/diagnosis.png` into the folder.
"""

import pathlib

from absl import flags

from experiments import cli, console, figures, workdir
from experiments.diagnosis import diagnose, labels_of, table
from experiments.running import reopened

_WORKDIR = flags.DEFINE_string("workdir", "runs/ff_digits", "folder of the run")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where sets lie here, if not where they lay")
_STEP = flags.DEFINE_integer("step", -1, "which checkpoint; -1 for the newest")
_EXAMPLES = flags.DEFINE_integer("examples", 10_000, "the most test examples that take part")
_PROBE = flags.DEFINE_bool("probe", True, "whether linear probes are fitted, most of the time")


def main(argv: list[str]) -> int:
  del argv
  folder = pathlib.Path(_WORKDIR.value).expanduser()
  with cli.checking():
    if _EXAMPLES.value < 1:
      raise ValueError(f"--examples must be at least 1, not {_EXAMPLES.value}")
    step = None if _STEP.value < 0 else _STEP.value
    experiment, state = reopened(folder, _DATA_DIR.value, step)
    labels_of(experiment, _EXAMPLES.value)  # too few are refused before any work
  found = diagnose(experiment, state, examples=_EXAMPLES.value, probe=_PROBE.value)
  workdir.write_json(folder / "diagnosis.json", {**found, "commit": workdir.commit()})
  console.console.print(table(found))
  path = figures.diagnosis(found, folder / "figures" / "diagnosis.png")
  console.console.print(f"figure    {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
