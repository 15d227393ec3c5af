"""Local learning against backprop by number of classes: Chen 2026, the teacher-student sweep.

  python -m experiments.studies.class_sweep [--classes=5,10,15,20,30,50] [--steps=8000]
    [--presets=synth_dtg,synth_deepsup,synth_bp] [--ensemble=4]

Every seed has a teacher, data and an initialisation of its own, the same for all presets; the
seeds of a point train as one program under `vmap`. Written are every point's test error and train
accuracy, the paired differences of the first preset to the others, and whether they grow with the
number of classes (`contrast.py`). A sweep that was cut goes on with the points that it lacks.

Deviation from the published analysis: intervals that resample seeds stand beside the published one.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from experiments import cli, config, results, workdir
from experiments.assembly import build, prove_locality
from experiments.console import console
from experiments.row_costs import row_costs
from experiments.studies.class_figures import draw, table
from experiments.studies.class_points import analysis, point

_CLASSES = flags.DEFINE_list("classes", ["5", "10", "15", "20", "30", "50"], "numbers of classes")
_SEEDS = flags.DEFINE_list("seeds", ["42", "123", "456", "789", "1024"], "seeds")
_PRESETS = flags.DEFINE_list(
  "presets", ["synth_dtg", "synth_deepsup", "synth_bp"], "the method in question, then its controls"
)
_STEPS = flags.DEFINE_integer("steps", 8000, "of training", 1)
_ENSEMBLE = flags.DEFINE_integer(
  "ensemble", 0, "nets of an ensemble of the last preset; 0: none", 0
)
_LOW = flags.DEFINE_integer("low", 20, "numbers of classes up to this one count as low")
_STUDY = flags.DEFINE_string("study", "", "name of the result file; default: class_sweep")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the points that are done")


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    seeds, classes = cli.parse_seeds(_SEEDS.value), [int(k) for k in _CLASSES.value]
    plans = {name: config.load_preset(name) for name in _PRESETS.value}
    if _ENSEMBLE.value == 1:
      raise ValueError("--ensemble=1 is a single net, which stands in the table already")
    folder = pathlib.Path(_RUNS.value) / "class_sweep"
    folder.mkdir(parents=True, exist_ok=True)
  labels = {name: (name, 1) for name in plans}
  if _ENSEMBLE.value > 1:
    last = list(plans)[-1]
    labels[f"{last}, {_ENSEMBLE.value} nets"] = (last, _ENSEMBLE.value)
  command = cli.command_line("experiments.studies.class_sweep", sys.argv[1:])
  rows: list[dict[str, Any]] = []
  accuracy: dict[str, dict[int, list[float]]] = {label: {} for label in labels}
  for label, (name, members) in labels.items():
    for k in classes:
      data = dataclasses.replace(plans[name].data, num_classes=k)
      chosen = dataclasses.replace(plans[name], data=data, seed=seeds[0])
      with cli.checking():
        found = _done_or_run(folder, chosen, seeds, members)
      accuracy[label][k] = found["test"]
      rows.append(_row(label, chosen, seeds, members, found, command))
      console.print(f"{label:24s} {k:3d} classes  {rows[-1]['mean']:.2f} % test error")
  compared = analysis(accuracy, _LOW.value)
  own = [
    n for n in ("classes", "seeds", "presets") if flags.FLAGS[n].value != flags.FLAGS[n].default
  ]
  study = _STUDY.value or "class_sweep" + "".join(f"_other_{name}" for name in own)
  study += f"_short_{_STEPS.value}_steps" if _STEPS.value < 8000 else ""
  path = results.write_study(study, rows, compared=compared)
  path.with_suffix(".md").write_text(table(rows, compared))
  draw(rows, compared, path.with_suffix(".png"))
  for one in compared:
    if "contrast" in one:
      c = one["contrast"]
      console.print(f"{one['method']} - {one['rival']}: low {c['low']:+.2f}, high {c['high']:+.2f}")
  console.print(f"results   {path}")
  return 0


def _done_or_run(
  folder: pathlib.Path, chosen: config.ExperimentConfig, seeds: Sequence[int], members: int
) -> dict[str, Any]:
  """A point, from its file if an earlier sweep has left it."""
  key = {"config": config.fingerprint(chosen), "seeds": list(seeds), "members": members}
  key["steps"] = _STEPS.value
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
  path = folder / f"{name}.json"
  if path.exists():
    return json.loads(path.read_text())["accuracy"]
  found = point(chosen, seeds, _STEPS.value, members)
  workdir.write_json(path, {**key, "accuracy": found})
  return found


def _row(
  label: str,
  chosen: config.ExperimentConfig,
  seeds: Sequence[int],
  members: int,
  found: dict[str, Any],
  command: str,
) -> dict[str, Any]:
  experiment = build(chosen)
  matrix = prove_locality(experiment)
  k = chosen.data.num_classes
  return results.row(
    "test_error_percent",
    [100 * (1 - a) for a in found["test"]],
    locality=experiment.trainer.locality,
    **results.choices(chosen)
    | {"dataset": f"synthetic, {k} classes", "epochs": None, "steps": _STEPS.value},
    preset=label,
    classes=k,
    members=members,
    locality_matrix=matrix.astype(int).tolist(),
    seeds=list(seeds),
    readout=chosen.readouts[0],
    train_accuracy_percent=[round(100 * a, 3) for a in found["train"]],
    layer_accuracy_percent=[[round(100 * a, 3) for a in one] for one in found["layers"]],
    published=None,
    command=command,
    cost=row_costs(chosen, memory=False) if members == 1 else None,
  )


if __name__ == "__main__":
  cli.run(main)
