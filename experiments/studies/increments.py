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

from experiments import cli, config, results, workdir
from experiments.assembly import Experiment, build
from experiments.batches import in_batches
from experiments.studies.arms import Arm, check
from fflax.analysis import continual
from fflax.data import increments
from fflax.data.dataset import Dataset, Split
from fflax.training.loop import Diverged, Interrupted, train
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


class Outcome(NamedTuple):
  """What became of an arm with one order of the classes.

  Attributes:
    matrices: see there.
    drift: `1 - cos` of the last layer's stored class means with the true ones, the mean of classes.
  """

  matrices: Matrices
  drift: float


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


def run_arm(arm: Arm, dataset: Dataset, groups: Groups) -> Outcome:
  """Learns the groups in turn.

  Every task begins with a fresh optimiser, and sees its own classes and the buffer alone.

  Raises:
    Diverged: a loss is not finite any more.
    Stopped: a signal came.
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
      try:
        state = train(experiment.trainer, experiment.feed, state, images, labels, experiment.plan)
      except Interrupted as stop:
        raise cli.Stopped(f"{stop}; arms that were done before are kept") from stop
    own = increments.only(dataset.train, group)
    if arm.buffer:
      kept = increments.join(kept, increments.exemplars(own, arm.buffer, seed))
    seen = [c for g in groups[: t + 1] for c in g]
    few = increments.exemplars(own, arm.shots, seed) if arm.shots and t else own
    now = probe.means(state, few)
    stored = [a + b for a, b in zip(stored, now, strict=True)] if stored else now
    true = probe.means(state, increments.only(dataset.train, seen))
    scores, features = probe(state, dataset.test)
    if arm.trunk != "trained":
      scores = {}
    scores |= by_means(features, stored, "stored")
    if not arm.shots:  # those of the same trunk with all images
      scores |= by_means(features, true, "true")
    for name, values in scores.items():
      row = task_accuracies(values, dataset.test.label, seen, groups)
      found.setdefault(name, []).append(row)
  drift = float(np.mean(continual.drift(jnp.asarray(stored[-1]), jnp.asarray(true[-1]))))
  return Outcome({name: np.asarray(rows) for name, rows in found.items()}, drift)


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


def remembered(arm: Arm, dataset: Dataset, groups: Groups, folder: pathlib.Path) -> Outcome | None:
  """`run_arm`, or what it found the last time; None if it diverged.

  Raises:
    Stopped: a signal came; nothing of this arm is kept.
  """
  parts = [config.fingerprint(arm.chosen), arm.loss, arm.buffer, arm.trunk, [*map(list, groups)]]
  parts += [arm.shots] if arm.shots else []
  name = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
  path = folder / f"{name}.json"
  if path.exists():
    told = json.loads(path.read_text())
    if "diverged" in told:
      return None
    return Outcome({k: np.asarray(v) for k, v in told["accuracy"].items()}, told["drift"])
  folder.mkdir(parents=True, exist_ok=True)
  try:
    outcome = run_arm(arm, dataset, groups)
  except Diverged as error:
    workdir.write_json(path, {"arm": arm.label(), "diverged": str(error)})
    return None
  plain = {k: v.tolist() for k, v in outcome.matrices.items()}
  workdir.write_json(path, {"arm": arm.label(), "accuracy": plain, "drift": outcome.drift})
  return outcome


def rows_of(
  arm: Arm,
  outcomes: Sequence[Outcome | None],
  locality: str,
  *,
  seeds: Sequence[int],
  **columns: Any,
) -> list[dict[str, Any]]:
  """One row a metric and answer, over the orders of the classes in which the arm did not diverge.

  Args:
    arm: whose they are.
    outcomes: one a seed; None: it diverged.
    locality: of the run.
    seeds: of the orders.
    **columns: more of the rows.
  """
  done = [o for o in outcomes if o is not None]
  rows = []
  for name in done[0].matrices if done else arm.chosen.readouts[:1]:
    matrices = [o.matrices[name] for o in done]
    shared = {
      **results.choices(arm.chosen),
      "preset": arm.label(),
      "groups": arm.groups,
      "loss_over": arm.loss,
      "buffer": arm.buffer,
      "trunk": arm.trunk,
      "shots": arm.shots,
      "readout": name,
      "seeds": [s for s, o in zip(seeds, outcomes, strict=True) if o is not None],
      "diverged": [s for s, o in zip(seeds, outcomes, strict=True) if o is None],
      **columns,
    }
    for metric, measure in METRICS.items():
      values = [measure(m) for m in matrices]
      row = results.row(metric, values, locality=locality, **shared)
      if metric == "average_accuracy_percent" and done:
        curves = [[float(np.mean(m[t, : t + 1])) for t in range(len(m))] for m in matrices]
        row["after_each_task"] = np.mean(curves, axis=0).round(3).tolist()
        row["drift"] = float(f"{np.mean([o.drift for o in done]):.4g}")
      rows.append(row)
  return rows


def percent(row: Mapping[str, Any]) -> str:
  """Mean and deviation of a row in percent, and in how many orders the arm diverged."""
  gone = len(row["diverged"])
  told = f"{gone} diverged" if gone else ""
  if row["mean"] is None:
    return told
  return f"{row['mean']:.1f} +- {row['std'] or 0:.1f}{', ' + told if told else ''}"


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
    cells = " | ".join(percent(found[m]) for m in (accuracy, lost, new))
    one = found[accuracy]
    drift = f"{one['drift']:.2f}" if "drift" in one else ""
    lines.append(f"| {arm} | {readout} | {cells} | {drift} | {len(one['values'])} |")
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
  longest = max((len(r["after_each_task"]) for r in first.values()), default=1)
  ax.set_xticks(range(1, longest + 1))
  ax.grid(alpha=0.3)
  if first:  # otherwise every arm diverged
    figure.legend(loc="outside lower center", frameon=False, fontsize=7)
  figure.savefig(path, dpi=120)
  plt.close(figure)
