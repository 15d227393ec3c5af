"""How robust trained runs are: Gaussian noise, FGSM and PGD against the deployed answer.

  python -m experiments.studies.robustness --presets=hff_digits,bp_matched:hff_digits \\
    --seeds=0,1,2 [--data_dir=DIR] [--examples=1000] [--epochs=N]

The last preset is the control. Every preset is trained with every seed (or resumed: each run has a
folder of its own under `--runs`), and each of its readouts named in `--readouts` is attacked on the
first `--examples` test images:

- Gaussian noise of `--sigmas`, clipped;
- FGSM and PGD (`--steps` of 2.5 radius / steps, `--restarts`) with L-infinity `--radii`, PGD with
  the margin and with the cross-entropy, whichever is worse for the example;
- PGD with gradients estimated from values (`--directions`; few examples): if it beat PGD, gradients
  would be masked;
- transfer: PGD images of the first readout of every other preset.

Sigmas and radii are in [0, 1] pixel units, before any standardisation; "8/255" is a number.
Writes experiments/results/robustness_<first preset>.json, .md and .png.
"""

import dataclasses
import fractions
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli, config, results
from experiments.console import console
from experiments.studies.attacks import (
  Attacks,
  check_presets,
  draw,
  measure,
  mismatch,
  rows_of,
  table,
)

_PRESETS = flags.DEFINE_list(
  "presets", ["hff_digits", "bp_matched:hff_digits"], "presets, the control last"
)
_READOUTS = flags.DEFINE_list("readouts", ["score_sum", "last_layer"], "answers under attack")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_SIGMAS = flags.DEFINE_list("sigmas", ["0.1", "0.2", "0.3", "0.4"], "of the noise")
_RADII = flags.DEFINE_list("radii", ["0.05", "0.1", "0.2", "0.3"], "of FGSM and PGD")
_STEPS = flags.DEFINE_integer("steps", 40, "of PGD", lower_bound=1)
_RESTARTS = flags.DEFINE_integer("restarts", 5, "of PGD", lower_bound=1)
_DIRECTIONS = flags.DEFINE_integer(
  "directions", 64, "of estimated gradients; 0: none", lower_bound=0
)
_EXAMPLES = flags.DEFINE_integer("examples", 1000, "test images", lower_bound=1)
_EPOCHS = flags.DEFINE_integer("epochs", None, "epochs of every run; default: the preset's")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where data sets lie")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the runs")


def numbers(name: str, values: Sequence[str]) -> tuple[float, ...]:
  """Positive numbers, also written as fractions.

  Raises:
    ValueError: one is not.
  """
  try:
    found = tuple(float(fractions.Fraction(v.strip())) for v in values)
  except (ValueError, ZeroDivisionError):
    found = ()
  if not found or min(found) <= 0:
    raise ValueError(f"--{name} takes positive numbers such as 0.1 or 8/255, not {values}")
  return found


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    seeds = cli.parse_seeds(_SEEDS.value)
    cli.at_least_one("presets", _PRESETS.value, "preset")
    cli.at_least_one("readouts", _READOUTS.value, "readout")
    changes: dict[str, Any] = {} if _EPOCHS.value is None else {"epochs": _EPOCHS.value}
    presets = {name: config.load_preset(name) for name in _PRESETS.value}
    for name, one in presets.items():
      data = dataclasses.replace(one.data, data_dir=_DATA_DIR.value or one.data.data_dir)
      presets[name] = dataclasses.replace(one, data=data, **changes)
    attacks = Attacks(
      numbers("sigmas", _SIGMAS.value),
      numbers("radii", _RADII.value),
      _STEPS.value,
      _RESTARTS.value,
      _DIRECTIONS.value,
    )
    check_presets(presets, _READOUTS.value)
  study = "robustness_" + "".join(c if c.isalnum() else "_" for c in _PRESETS.value[0])
  study += f"_short_{_EPOCHS.value}_epochs" if _EPOCHS.value else ""
  folder = pathlib.Path(_RUNS.value) / study
  values, localities = measure(presets, _READOUTS.value, seeds, attacks, _EXAMPLES.value, folder)
  command = cli.command_line("experiments.studies.robustness", sys.argv[1:])
  rows = rows_of(values, presets, localities, seeds=seeds, command=command)
  path = results.write_study(study, rows, steps=attacks.steps, restarts=attacks.restarts)
  title = f"Robustness of {_PRESETS.value[0]}, {presets[_PRESETS.value[0]].data.name}"
  note = (
    f"The first {_EXAMPLES.value} test images (or all); strengths in units of pixels in [0, 1]; "
    f"PGD: {attacks.steps} steps, {attacks.restarts} random starts, margin and cross-entropy, the "
    "worse for each example. Mean and deviation over the seeds. " + mismatch(rows)
  ).strip()
  path.with_suffix(".md").write_text(table(rows, title, note))
  draw(rows, title, path.with_suffix(".png"))
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
