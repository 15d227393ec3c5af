"""Class by class: an arm learns groups of classes in turn; its accuracies, a table, a figure."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments import config, results, workdir
from experiments.assembly import Experiment, build
from experiments.batches import in_batches
from fflax.analysis import continual
from fflax.data import increments
from fflax.data.dataset import Dataset, Split
from fflax.training.loop import train
from fflax.types import Array, TrainState

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Groups = Sequence[Sequence[int]]
Matrices = dict[str, np.ndarray]
"""Answer -> `[T, T]` accuracies in percent: on the classes of task i after task t, the answer being
one of the classes seen until t. Answers are the run's readouts, and means of class features, summed
over the layers or of the last: "stored means" are as old as their task, "true means" are computed
anew from all training data. Their difference tells lost features from stale prototypes."""

METRICS: Mapping[str, Callable[[np.ndarray], float]] = {
  "average_accuracy_percent": continual.average_accuracy,
  "forgetting_percent": continual.forgetting,
  "new_accuracy_percent": continual.new_accuracy,
}


class Arm(NamedTuple):
  """One way to learn.

  Attributes:
    preset: its name.
    chosen: the run of one task; its epochs are those of every task.
    groups: of classes; 1 is joint training.
    loss: which classes compete in the loss: "all" there are, those "seen" so far, or the "current"
      ones of the task.
    buffer: exemplars kept of every seen class, repeated to the number of a new class's examples.
    trunk: "trained" in every task, "frozen" after the first, or "random": never trained.
  """

  preset: str
  chosen: config.ExperimentConfig
  groups: int
  loss: str = "seen"
  buffer: int = 0
  trunk: str = "trained"

  def label(self) -> str:
    """For tables."""
    if self.groups == 1:
      return f"{self.preset}, joint"
    if self.trunk != "trained":
      return f"{self.preset}, trunk {self.trunk}"
    return f"{self.preset}, loss over {self.loss}, {self.buffer} exemplars"


def check(arm: Arm) -> None:
  """Refuses arms that cannot be run, or whose answer would know what it must not.

  Raises:
    ValueError: one sentence.
  """
  if not hasattr(arm.chosen.methods[arm.chosen.method], "loss_classes") and arm.loss != "all":
    raise ValueError(
      f"method {arm.chosen.method!r} has no loss over some of the classes: use --losses=all"
    )
  if arm.loss == "current" and arm.buffer:
    raise ValueError("with exemplars the classes of a task's data are all seen: use loss 'seen'")
  if arm.chosen.data.normalization == "dataset":
    raise ValueError("normalization 'dataset' would know the classes to come: use another one")
  if arm.chosen.data.validation:
    raise ValueError("classes come without a validation part: set data.validation to 0")


class Probe:
  """What a state answers and which features it has; compiled once for all tasks of an arm."""

  def __init__(self, experiment: Experiment):
    self.experiment = experiment
    self.num_classes = experiment.dataset.num_classes
    trainer = experiment.trainer

    @jax.jit
    def look(state: TrainState, image: Array) -> tuple[dict[str, Array], tuple[Array, ...]]:
      x = experiment.preprocess(None, image)
      features = trainer.features(state, x)
      flat = [f.mean((1, 2)) if f.ndim == 4 else f.reshape(len(f), -1) for f in features]
      return trainer.answer(state, x).readouts, tuple(flat)

    self._look = look

  def __call__(self, state: TrainState, split: Split) -> tuple[dict[str, np.ndarray], tuple]:
    """Scores `[N, K]` of every readout, and features `[N, D]` of every layer."""
    size = self.experiment.config.eval_batch_size
    scores, features = in_batches(lambda x: self._look(state, x), size, split.image)
    # Trees have their dictionaries in alphabetical order; the first readout is the run's own.
    return {name: scores[name] for name in self.experiment.config.readouts}, features

  def means(self, state: TrainState, split: Split) -> list[np.ndarray]:
    """`[K, D]` of every layer."""
    _, features = self(state, split)
    label = jnp.asarray(split.label)
    return [np.asarray(continual.class_means(f, label, self.num_classes)) for f in features]


def by_means(features: Sequence[np.ndarray], means: Sequence[np.ndarray], name: str) -> dict:
  """The scores of `[N, D]` features by class means, of all layers and of the last."""
  pairs = zip(map(jnp.asarray, features), map(jnp.asarray, means), strict=True)
  each = [np.asarray(continual.mean_scores(f, m)) for f, m in pairs]
  return {f"{name} means, sum": sum(each), f"{name} means, last": each[-1]}


def task_accuracies(
  scores: np.ndarray, label: np.ndarray, seen: Sequence[int], groups: Groups
) -> list[float]:
  """In percent, of the examples of every group; the answer is one of the seen classes."""
  left = np.full(scores.shape[1], -np.inf)
  left[list(seen)] = 0
  right = np.argmax(scores + left, axis=1) == label
  return [100 * float(np.mean(right[np.isin(label, list(g))])) for g in groups]


def run_arm(arm: Arm, dataset: Dataset, groups: Groups) -> tuple[Matrices, float]:
  """Learns the groups in turn; the accuracies, and the mean drift of the last layer's class means.

  Every task begins with a fresh optimiser, and sees its own classes and the buffer alone.
  """
  check(arm)
  seed = arm.chosen.seed
  first = task_experiment(arm, dataset, groups[:1], Split(*(a[:0] for a in dataset.train)))
  probe, state = Probe(first), first.init()
  fresh = [s.opt_state for s in state.layers], [r.opt_state for r in state.readouts]
  found: dict[str, list[list[float]]] = {}
  stored: list[np.ndarray] = []
  kept = Split(*(a[:0] for a in dataset.train))
  for t, group in enumerate(groups):
    if arm.trunk == "trained" or (arm.trunk == "frozen" and t == 0):
      experiment = first if t == 0 else task_experiment(arm, dataset, groups[: t + 1], kept)
      state = begin_task(state, *fresh, seed, t)
      images, labels = experiment.images, experiment.labels
      state = train(experiment.trainer, experiment.feed, state, images, labels, experiment.plan)
    own = increments.only(dataset.train, group)
    if arm.buffer:
      kept = increments.join(kept, increments.exemplars(own, arm.buffer, seed))
    seen = [c for g in groups[: t + 1] for c in g]
    now = probe.means(state, own)
    stored = [a + b for a, b in zip(stored, now, strict=True)] if stored else now
    true = probe.means(state, increments.only(dataset.train, seen))
    scores, features = probe(state, dataset.test)
    if arm.trunk != "trained":
      scores = {}
    scores = {**scores, **by_means(features, stored, "stored"), **by_means(features, true, "true")}
    for name, values in scores.items():
      row = task_accuracies(values, dataset.test.label, seen, groups)
      found.setdefault(name, []).append(row)
  drift = float(np.mean(continual.drift(jnp.asarray(stored[-1]), jnp.asarray(true[-1]))))
  return {name: np.asarray(rows) for name, rows in found.items()}, drift


def task_experiment(arm: Arm, dataset: Dataset, groups: Groups, kept: Split) -> Experiment:
  """The run of the last of the groups, beside the exemplars of those before."""
  own = increments.only(dataset.train, groups[-1])
  data = own
  if len(kept.label):
    data = increments.join(own, increments.repeat(kept, len(own.label) // len(groups[-1])))
  competing: Sequence[int] = {
    "all": (),
    "seen": [c for g in groups for c in g],
    "current": groups[-1],
  }[arm.loss]
  chosen, name = arm.chosen, arm.chosen.method
  if arm.loss != "all":
    method = dataclasses.replace(chosen.methods[name], loss_classes=tuple(sorted(competing)))
    chosen = dataclasses.replace(chosen, methods={**chosen.methods, name: method})
  size = min(chosen.data.batch_size, len(data.label))
  chosen = dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, batch_size=size))
  return build(chosen, dataset._replace(train=data, validation=None))


def begin_task(state: TrainState, layers: list, readouts: list, seed: int, task: int) -> TrainState:
  """The state at the start of a task: parameters stay, optimisers, step and random numbers not."""
  return TrainState(
    jnp.zeros((), jnp.int32),
    jax.random.fold_in(jax.random.key(seed), task),
    tuple(dataclasses.replace(s, opt_state=o) for s, o in zip(state.layers, layers, strict=True)),
    tuple(
      dataclasses.replace(r, opt_state=o) for r, o in zip(state.readouts, readouts, strict=True)
    ),
    state.coupling,
  )


def remembered(
  arm: Arm, dataset: Dataset, groups: Groups, folder: pathlib.Path
) -> tuple[Matrices, float]:
  """`run_arm`, or what it found the last time."""
  parts = [config.fingerprint(arm.chosen), arm.loss, arm.buffer, arm.trunk, [*map(list, groups)]]
  name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
  path = folder / f"{name}.json"
  if path.exists():
    told = json.loads(path.read_text())
    return {k: np.asarray(v) for k, v in told["accuracy"].items()}, told["drift"]
  matrices, drift = run_arm(arm, dataset, groups)
  folder.mkdir(parents=True, exist_ok=True)
  plain = {k: v.tolist() for k, v in matrices.items()}
  workdir.write_json(path, {"arm": arm.label(), "accuracy": plain, "drift": drift})
  return matrices, drift


def rows_of(
  arm: Arm, outcomes: Sequence[tuple[Matrices, float]], locality: str, **columns: Any
) -> list[dict[str, Any]]:
  """One row a metric and answer, over the orders of the classes."""
  rows = []
  for name in outcomes[0][0]:
    matrices = [m[name] for m, _ in outcomes]
    shared = {
      **results.choices(arm.chosen),
      "preset": arm.label(),
      "groups": arm.groups,
      "loss_over": arm.loss,
      "buffer": arm.buffer,
      "trunk": arm.trunk,
      "readout": name,
      **columns,
    }
    for metric, measure in METRICS.items():
      values = [measure(m) for m in matrices]
      row = results.row(metric, values, locality=locality, **shared)
      if metric == "average_accuracy_percent":
        curves = [[float(np.mean(m[t, : t + 1])) for t in range(len(m))] for m in matrices]
        row["after_each_task"] = np.mean(curves, axis=0).round(3).tolist()
        row["drift"] = float(f"{np.mean([d for _, d in outcomes]):.4g}")
      rows.append(row)
  return rows


def table(rows: Sequence[Mapping[str, Any]], title: str, note: str) -> str:
  """Markdown: average accuracy and forgetting, a line an arm and answer."""
  accuracy, lost, new = METRICS
  lines = [
    f"# {title}",
    "",
    "| arm | answer | average accuracy % | forgetting % | new classes % | drift | orders |",
    "|---" * 7 + "|",
  ]
  by: dict[tuple[str, str], dict[str, Mapping[str, Any]]] = {}
  for r in rows:
    by.setdefault((r["preset"], r["readout"]), {})[r["metric"]] = r
  for (arm, readout), found in by.items():
    cells = [f"{found[m]['mean']:.1f} +- {found[m]['std'] or 0:.1f}" for m in (accuracy, lost, new)]
    one = found[accuracy]
    lines.append(
      f"| {arm} | {readout} | {' | '.join(cells)} | {one['drift']:.2f} | {len(one['values'])} |"
    )
  return "\n".join([*lines, "", note, ""])


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: pathlib.Path) -> None:
  """Accuracy on all classes seen so far, after every task, by the first answer of every arm."""
  first: dict[str, Mapping[str, Any]] = {}
  for r in rows:
    if "after_each_task" in r:
      first.setdefault(r["preset"], r)
  figure, ax = plt.subplots(figsize=(8, 1.5 + 0.3 * max(8, len(first))), layout="constrained")
  for i, (arm, r) in enumerate(first.items()):
    curve = r["after_each_task"]
    style, marker = ("-", "--", ":", "-.")[i % 4], "osD^v<>"[i % 7]
    label = f"{arm}: {r['readout']}"
    if len(curve) == 1:
      ax.axhline(curve[0], color="gray", linestyle=style, label=label)
    else:
      ax.plot(range(1, len(curve) + 1), curve, style, marker=marker, ms=4, label=label)
  ax.set(xlabel="tasks learned", ylabel="accuracy on classes seen, %", ylim=(0, 100), title=title)
  longest = max(len(r["after_each_task"]) for r in first.values())
  ax.set_xticks(range(1, longest + 1))
  ax.grid(alpha=0.3)
  figure.legend(loc="outside lower center", frameon=False, fontsize=7)
  figure.savefig(path, dpi=120)
  plt.close(figure)
