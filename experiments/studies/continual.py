"""Learning class by class: groups of classes arrive, with and without exemplars of those before.

  python -m experiments.studies.continual --presets=hff_digits,bp_matched:hff_digits \\
    --seeds=0,1,2,3,4 [--groups=5] [--epochs=20] [--batch_size=32] [--losses=seen,current]
    [--buffers=0,5,20] [--shots=1,5,20] [--prototypes=learned,fixed_etf,ema_centered]
    [--data_dir=DIR]

A seed is an order of the classes and a run of its own. Nothing tells the task at test time. Arms
are presets x `--losses` (which classes compete) x `--buffers` (exemplars of every old class; with
some, "current" is "seen", and is left out), and, unless `--nocontrols`: joint training (the upper
bound), each trunk frozen after the first task, and the first preset's random trunk, both answering
by class means; with `--shots` also frozen trunks that store a new class by so few images. What
prototypes are good for shows against these, and against backprop by the same answer (sum or last
layer).

Arms that are done are kept under `--runs`: a study that was cut goes on where it was. Writes
experiments/results/continual_<first preset>_<N>_groups.json, .md and .png.
"""

import dataclasses
import pathlib
import sys
from typing import Any

from absl import flags

from experiments import cli, config, results
from experiments.assembly import build
from experiments.console import console
from experiments.studies import arms
from experiments.studies.increments import draw, percent, remembered, rows_of, table
from fflax.data import increments

_PRESETS = flags.DEFINE_list(
  "presets", ["hff_digits", "bp_matched:hff_digits"], "presets, the control last"
)
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2", "3", "4"], "seeds, an order of classes each")
_GROUPS = flags.DEFINE_integer("groups", 5, "groups of classes", lower_bound=2)
_LOSSES = flags.DEFINE_list("losses", ["seen", "current"], "which compete: all, seen, current")
_BUFFERS = flags.DEFINE_list("buffers", ["0", "5", "20"], "exemplars of every old class")
_SHOTS = flags.DEFINE_list("shots", [], "images by which a frozen trunk learns a class")
_PROTOTYPES = flags.DEFINE_list(
  "prototypes",
  [],
  "modes of hyperspherical presets, such as learned,fixed_etf,ema; default: theirs",
)
_CONTROLS = flags.DEFINE_bool("controls", True, "also joint training, frozen and random trunks")
_EPOCHS = flags.DEFINE_integer("epochs", 20, "epochs of every task", lower_bound=1)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", None, "default: the preset's", lower_bound=1)
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where data sets lie")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the runs")


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    seeds = cli.parse_seeds(_SEEDS.value)
    cli.at_least_one("presets", _PRESETS.value, "preset")
    cli.at_least_one("losses", _LOSSES.value, "loss")
    cli.at_least_one("buffers", _BUFFERS.value, "number")
    chosen = arms.runs(
      {name: config.load_preset(name) for name in _PRESETS.value},
      epochs=_EPOCHS.value,
      batch_size=_BATCH_SIZE.value,
      data_dir=_DATA_DIR.value,
      prototypes=_PROTOTYPES.value,
    )
    options = (_GROUPS.value, _LOSSES.value, _BUFFERS.value, _SHOTS.value, _CONTROLS.value)
    todo = arms.make_arms(chosen, *options)
    experiments = {name: build(one) for name, one in chosen.items()}
    dataset = next(iter(experiments.values())).dataset
    for seed in seeds:
      increments.class_groups(dataset.num_classes, _GROUPS.value, seed)
  study = "continual_" + "".join(c if c.isalnum() else "_" for c in _PRESETS.value[0])
  study += f"_{_GROUPS.value}_groups"
  folder = pathlib.Path(_RUNS.value) / study
  command = cli.command_line("experiments.studies.continual", sys.argv[1:])
  title = f"Class by class: {dataset.name}, {_GROUPS.value} groups"
  note = (
    f"{_EPOCHS.value} epochs a task. Average accuracy and forgetting over tasks after the last (A. "
    "Chaudhry et al., 2018; D. Lopez-Paz, M. Ranzato, 2017), no task identity at test time; mean "
    "and deviation over the orders of the classes. Drift: 1 - cos of a class's stored mean feature "
    "with its present one, of all images, last layer. "
    '"Stored means" are as old as their task, "true means" need all data again.'
  )
  rows: list[dict[str, Any]] = []
  for arm in todo:
    outcomes = []
    for seed in seeds:
      own = arm._replace(chosen=dataclasses.replace(arm.chosen, seed=seed))
      order = increments.class_groups(dataset.num_classes, arm.groups, seed)
      outcomes.append(remembered(own, dataset, order, folder))
    locality = experiments[arm.preset].trainer.locality
    new = rows_of(arm, outcomes, locality, seeds=seeds, command=command)
    rows += new
    console.print(f"{arm.label():60s} {new[0]['readout']}: {percent(new[0])}")
    path = results.write_study(study, rows)
  path.with_suffix(".md").write_text(table(rows, title, note))
  draw(rows, title, path.with_suffix(".png"))
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
