"""FF-INT8, Table V: its published numbers, and the rows and the table of ours beside them."""

import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib

from experiments import results
from experiments.card import find_task, step_memory, traced_trainer, training_cost
from experiments.config import ExperimentConfig
from experiments.studies.points import Point, run_folder
from fflax.analysis.energy import MEMORIES, energy
from fflax.training.metrics import read_rows

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NETWORKS = {
  "MLP": "ffint8_mnist",
  "MobileNet-V2": "ffint8_cifar10_mobilenetv2",
  "EfficientNet-B0": "ffint8_cifar10_efficientnetb0",
  "ResNet-18": "ffint8_cifar10_resnet18",
}
"""Network -> its grid."""


class Entry(NamedTuple):
  """One cell of the published table."""

  accuracy_percent: float
  train_seconds: float
  train_joules: float
  step_megabytes: float


_COLUMNS = {
  "accuracy_percent": "test_accuracy_percent",
  "train_seconds": "train_seconds",
  "train_joules": "modelled_train_joules",
  "step_megabytes": "step_megabytes",
}
_LABELS = (
  "backprop, float32",
  "backprop, int8 nearest",
  "backprop, int8 ui8",
  "backprop, int8 gdai8 approximation",
  "look-ahead, int8",
)


def _row(*cells: tuple[float, float, float, float]) -> dict[str, Entry]:
  return {label: Entry(*cell) for label, cell in zip(_LABELS, cells, strict=True)}


PUBLISHED: Mapping[str, Mapping[str, Entry]] = {
  "MLP": _row(
    (94.5, 482.3, 2315.0, 247.6),
    (52.4, 326.1, 1206.6, 213.9),
    (92.3, 335.2, 1277.1, 197.0),
    (93.8, 344.9, 1345.4, 182.6),
    (94.3, 312.7, 1097.0, 140.7),
  ),
  "MobileNet-V2": _row(
    (91.5, 2370.8, 11593.2, 649.8),
    (5.9, 1851.6, 7836.0, 571.6),
    (87.2, 1960.0, 7618.5, 592.6),
    (90.9, 1790.7, 6528.1, 578.9),
    (91.1, 1703.9, 6174.3, 437.0),
  ),
  "EfficientNet-B0": _row(
    (89.4, 2692.8, 13356.2, 861.0),
    (11.8, 2095.0, 8563.9, 703.9),
    (85.3, 2230.8, 8656.2, 735.5),
    (88.9, 2177.1, 8589.9, 692.0),
    (88.6, 2129.9, 8093.8, 505.2),
  ),
  "ResNet-18": _row(
    (93.5, 3853.0, 18764.1, 1096.4),
    (7.2, 2676.1, 10436.8, 885.8),
    (89.7, 2873.8, 11466.5, 920.7),
    (92.9, 2751.6, 10291.0, 894.1),
    (93.1, 2697.9, 9926.5, 682.3),
  ),
}
NOTE = """Published: on a Jetson Orin Nano, by recipes that are not all stated; ours: the preset's
recipe on the device of the result file. Compare columns by the ratios within them.

- Seconds: the median time of a training step times their number, without compiling or evaluating.
- Joules are modelled, not measured: the counts of the traced step, arithmetic at 45 nm, weights and
  optimiser in DRAM, times the number of steps. The rivals' searches count as if done in every step;
  they are due every 100.
- MB: what the compiler plans for one step in place (weights, optimiser, batch, temporaries);
  the published are of the whole process.
- The row of GDAI8 is our approximation of it, whose formulas are not openly available."""


def joules_of(config: ExperimentConfig, steps: int) -> float:
  """Modelled energy of so many training steps."""
  task, batch = find_task(config), config.data.batch_size
  each = training_cost(traced_trainer(config, task), task, batch).per_example(batch)
  return 1e-12 * energy(each, memory=MEMORIES["dram_weights"]).total * batch * steps


def seconds_of(folder: pathlib.Path, steps: int) -> float:
  """Of so many steps at the median rate of the run in `folder`."""
  rates, last = [], 0
  for row in read_rows(folder / "timing.jsonl"):
    step, seconds = row["step"], row["seconds"]
    assert isinstance(step, int) and isinstance(seconds, float)
    if step > last:  # a run that was cut repeats the steps after its checkpoint
      rates.append(seconds / (step - last))
    last = step
  return statistics.median(rates) * steps


def rows_of(
  network: str, label: str, point: Point, folder: pathlib.Path, seeds: Sequence[int], command: str
) -> list[dict[str, Any]]:
  """One row a column of the table."""
  chosen = point.experiment.config
  steps = point.experiment.plan.num_steps
  memory, _ = step_memory(chosen, find_task(chosen))
  kept = [s for s in seeds if s not in point.diverged]
  accuracies = [100 * t[f"accuracy/{chosen.readouts[0]}"] for t in point.tests[chosen.eval_samples]]
  values: dict[str, list[float]] = {
    "accuracy_percent": accuracies,
    "train_seconds": [seconds_of(run_folder(folder, chosen, seed), steps) for seed in kept],
    "train_joules": [joules_of(chosen, steps)],
    "step_megabytes": [] if memory is None else [memory["peak"] / 1e6],
  }
  told = PUBLISHED[network].get(label)
  columns = {
    **results.choices(chosen),
    "preset": label,
    "seeds": kept,
    "diverged": point.diverged,
    "command": command,
  }
  return [
    results.row(
      metric,
      values[field],
      locality=point.experiment.trainer.locality,
      published=None if told is None else getattr(told, field),
      **columns,
    )
    for field, metric in _COLUMNS.items()
  ]


def table(title: str, rows: Sequence[Mapping[str, Any]]) -> str:
  """Ours and, in brackets, published."""
  lines = [
    f"# {title}",
    "",
    "| ours (published) | accuracy % | seconds | joules, modelled | MB | diverged | locality |",
    "|---|---|---|---|---|---|---|",
  ]
  for label, found in _by_point(rows).items():
    cells = []
    for metric in _COLUMNS.values():
      r = found[metric]
      spread = f" +- {r['std']:.2f}" if r["std"] and metric == "test_accuracy_percent" else ""
      ours = "-" if r["mean"] is None else f"{r['mean']:.1f}{spread}"
      cells.append(ours if r["published"] is None else f"{ours} ({r['published']:.1f})")
    one = found["train_seconds"]
    lines.append(f"| {label} | {' | '.join(cells)} | {len(one['diverged'])} | {one['locality']} |")
  return "\n".join([*lines, "", NOTE, ""])


def draw(title: str, rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Accuracy in percent; all else as a multiple of float32 backprop's, ours and published."""
  points = _by_point(rows)
  places = {label: len(points) - 1 - i for i, label in enumerate(points)}
  figure, panels = plt.subplots(1, 4, figsize=(12, 1.2 + 0.3 * len(points)), sharey=True)
  for axes, metric in zip(panels, _COLUMNS.values(), strict=True):
    own = {label: found[metric] for label, found in points.items() if found[metric]["values"]}
    unit = own.get(_LABELS[0], {"mean": None, "published": None})
    absolute = metric == _COLUMNS["accuracy_percent"]
    for kind, marker in (("mean", "o"), ("published", "D")):
      one = 1.0 if absolute else unit[kind]
      told = {places[n]: r[kind] / one for n, r in own.items() if one and r[kind] is not None}
      axes.plot(
        told.values(), told.keys(), marker, mfc=None if kind == "mean" else "none", ms=5,
        color="C0" if kind == "mean" else "gray", label="ours" if kind == "mean" else "published",
      )  # fmt: skip
    axes.set_xlabel(metric.replace("_", " ") + ("" if absolute else ",\nof float32 backprop's"))
    if not absolute:
      axes.axvline(1.0, color="gray", lw=0.5)
      axes.set_xlim(0, None)
    axes.grid(axis="x", alpha=0.3)
  panels[0].set_yticks(list(places.values()), places.keys())
  panels[0].legend(frameon=False, fontsize=8)
  figure.suptitle(title)
  figure.tight_layout()
  figure.savefig(path, dpi=120)
  plt.close(figure)


def _by_point(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
  """Label -> metric -> row."""
  points: dict[str, dict[str, Mapping[str, Any]]] = {}
  for r in rows:
    points.setdefault(r["preset"], {})[r["metric"]] = r
  return points
