"""Trained runs that stop early: what accuracy is left at what cost; a table and a figure."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments import config, results
from experiments.assembly import Experiment, build
from experiments.card import Task, prediction_cost, traced_trainer
from experiments.console import console, si
from experiments.exporting import layer_scores
from experiments.studies.points import trained
from fflax.core import early_exit
from fflax.core.early_exit import Confidence
from fflax.core.readouts import READOUTS, ReadoutConfig, make_readout
from fflax.data.dataset import Split
from fflax.types import Array, TrainState

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CURVE = 60
"""Points kept of a curve."""
_LEAST_SPAN = 4.0  # percent of accuracy, of a panel


class Answer(NamedTuple):
  """One way of answering, by one trained run.

  Attributes:
    how: "stops within 0.5 %", "always after dense_2" or "readout softmax_head".
    accuracy: on the test set, percent.
    macs: of an image, on average.
    threshold: of a rule; None: nothing to decide.
    use: the layer after which it stops -> percent of the test images.
  """

  how: str
  accuracy: float
  macs: float
  threshold: float | None
  use: dict[str, float]


class Run(NamedTuple):
  """What was measured of one seed: its answers, and (macs, accuracy) for a range of thresholds."""

  answers: list[Answer]
  curve: list[tuple[float, float]]


def check_presets(presets: Mapping[str, config.ExperimentConfig], readout: str) -> None:
  """Refuses, before anything is trained, runs that cannot stop early by that readout.

  Raises:
    ValueError: one sentence.
  """
  if readout not in READOUTS:
    raise ValueError(f"unknown readout {readout!r}; there are {', '.join(READOUTS)}")
  if make_readout(readout, ReadoutConfig(), 2).view != "scores":
    raise ValueError(f"readout {readout!r} reads features of all layers: use 'score_sum'")
  for name, one in presets.items():
    experiment = build(one)
    if experiment.method.score_views is None:
      raise ValueError(f"preset {name!r} cannot stop early: its layers give no class scores")
    if experiment.method.heard_scores is not None:
      raise ValueError(
        f"preset {name!r} cannot stop early: its layers' answers wait for all layers"
      )
    if experiment.dataset.validation is None:
      raise ValueError(f"preset {name!r} holds out nothing to fit thresholds on: use --validation")


def macs_by_layer(experiment: Experiment, layers: Sequence[int]) -> list[float]:
  """MACs of one image's class scores from the layers up to each of `layers`, all views counted."""
  data = experiment.dataset
  task = Task(data.train.image.shape[1:], data.num_classes, data.name)
  trainer = traced_trainer(experiment.config, task)

  def up_to(layer: int) -> float:
    cost = prediction_cost(trainer, task, lambda answers: answers.layers[: layer + 1])
    return cost.per_example(1).total("macs")

  return [up_to(layer) for layer in layers]


def readout_macs(experiment: Experiment) -> dict[str, float]:
  """MACs of one image's answer by each readout of the run."""
  data = experiment.dataset
  task = Task(data.train.image.shape[1:], data.num_classes, data.name)
  trainer = traced_trainer(experiment.config, task)
  return {
    name: prediction_cost(trainer, task, name).per_example(1).total("macs")
    for name in experiment.config.readouts
  }


def measure(
  experiment: Experiment,
  state: TrainState,
  readout: str,
  confidence: Confidence,
  epsilons: Sequence[float],
) -> Run:
  """Fits rules on the validation split and measures them on the test split.

  Args:
    experiment: with a validation split.
    state: after training.
    readout: of class scores, whose answers by depth may stand.
    confidence: see `early_exit.ExitRule`.
    epsilons: percent of the validation examples that a rule may lose.
  """
  chosen, data = experiment.config, experiment.dataset
  assert data.validation is not None
  own = make_readout(readout, chosen.readout, data.num_classes)

  def by_depth(split: Split) -> tuple[tuple[int, ...], Array]:
    scores = layer_scores(experiment, experiment.trainer, state, split)
    return early_exit.answers_by_depth(own, scores)

  (layers, held_out), (_, answers) = by_depth(data.validation), by_depth(data.test)
  names = [experiment.trainer.layer_names[i] for i in layers]
  macs = np.array(macs_by_layer(experiment, layers))
  right = np.asarray(jnp.argmax(answers, -1)) == data.test.label[None]
  found = [
    Answer(f"always after {name}", 100 * right[e].mean(), macs[e], None, {name: 100.0})
    for e, name in enumerate(names)
  ]
  rules = {
    epsilon: early_exit.fit(held_out, jnp.asarray(data.validation.label), epsilon / 100, confidence)
    for epsilon in epsilons
  }
  for epsilon, rule in rules.items():
    depth = np.asarray(early_exit.stop(rule, answers)[0])
    accuracy = 100 * right[depth, np.arange(len(depth))].mean()
    use = {name: 100 * float(np.mean(depth == e)) for e, name in enumerate(names)}
    how = f"stops, losing {epsilon:g} % at most"
    found.append(Answer(how, accuracy, macs[depth].mean(), float(rule.threshold), use))
  whole = experiment.evaluator("test", data.test)(state)
  for name, cost in readout_macs(experiment).items():
    accuracy = 100 * float(whole[f"test/accuracy/{name}"])
    found.append(Answer(f"readout {name}", accuracy, cost, None, {}))
  rule = next(iter(rules.values()))
  return Run(found, _curve(early_exit.confidences(rule, answers), right, macs))


def _curve(confidence: Array, right: np.ndarray, macs: np.ndarray) -> list[tuple[float, float]]:
  """Mean MACs and accuracy on the test set as the threshold rises, thinned out."""
  size = right.shape[1]
  _, hits = early_exit.by_threshold(confidence, jnp.asarray(right, jnp.int32))
  shares = jnp.broadcast_to(jnp.asarray(macs / macs[-1], jnp.float32)[:, None], right.shape)
  _, costs = early_exit.by_threshold(confidence, shares)
  kept = np.unique(np.linspace(0, len(hits) - 1, CURVE).round().astype(int))
  rows = zip(np.asarray(costs)[kept], np.asarray(hits)[kept], strict=True)
  return [(float(macs[-1] * c / size), float(100 * h / size)) for c, h in rows]


def measure_preset(
  chosen: config.ExperimentConfig,
  seeds: Sequence[int],
  folder: pathlib.Path,
  readout: str,
  confidence: Confidence,
  epsilons: Sequence[float],
) -> tuple[Experiment, list[Run]]:
  """A preset trained (or resumed) with every seed, and measured."""
  runs = []
  for seed in seeds:
    experiment, state = trained(dataclasses.replace(chosen, seed=seed), folder)
    runs.append(measure(experiment, state, readout, confidence, epsilons))
    for one in runs[-1].answers:
      told = f"{one.accuracy:6.2f} %  {si(one.macs, '')} MACs"
      console.print(f"seed {seed}  {one.how:32s} {told}")
  return experiment, runs


def rows_of(
  preset: str, experiment: Experiment, runs: Sequence[Run], readout: str, **columns: Any
) -> list[dict[str, Any]]:
  """One row a way of answering, over the seeds."""
  rows = []
  full = readout_cost(runs[0])
  for answers in zip(*(run.answers for run in runs), strict=True):
    first = answers[0]
    macs = float(np.mean([one.macs for one in answers]))
    rows.append(
      results.row(
        "test_accuracy_percent",
        [one.accuracy for one in answers],
        locality=experiment.trainer.locality,
        **results.choices(experiment.config),
        preset=preset,
        readout=first.how.removeprefix("readout ") if "readout" in first.how else readout,
        answer=first.how,
        macs=[float(one.macs) for one in answers],
        macs_percent=100 * macs / full,
        thresholds=[one.threshold for one in answers],
        use=[one.use for one in answers],
        **columns,
      )
    )
  return rows


def readout_cost(run: Run) -> float:
  """MACs of the full depth: of the last layer that a prediction may always go on to."""
  return [one.macs for one in run.answers if one.how.startswith("always")][-1]


def table(rows: Sequence[Mapping[str, Any]], title: str, note: str) -> str:
  """Markdown: a table a preset, a line a way of answering."""
  lines = [f"# {title}", ""]
  for preset in dict.fromkeys(r["preset"] for r in rows):
    lines += [f"## {preset}", "", "| answer | test accuracy % | MACs | of all % | stops after |"]
    lines += ["|---" * 5 + "|"]
    for r in (r for r in rows if r["preset"] == preset):
      accuracy = f"{r['mean']:.2f}" + ("" if r["std"] is None else f" +- {r['std']:.2f}")
      use = {n: np.mean([u[n] for u in r["use"]]) for n in r["use"][0]}
      told = ", ".join(f"{n} {share:.1f} %" for n, share in use.items() if len(use) > 1)
      cost = si(float(np.mean(r["macs"])), "")
      lines.append(f"| {r['answer']} | {accuracy} | {cost} | {r['macs_percent']:.1f} | {told} |")
    lines.append("")
  return "\n".join([*lines, note, ""])


def draw(
  rows: Sequence[Mapping[str, Any]],
  curves: Mapping[str, Sequence[Sequence[tuple[float, float]]]],
  path: pathlib.Path,
) -> None:
  """A panel a preset: accuracy against cost as the threshold rises, and every way of answering."""
  figure, axes = plt.subplots(
    1, len(curves), figsize=(3.1 * len(curves), 3.4), layout="constrained", squeeze=False
  )
  looks = {
    "always": ("s", "tab:blue", "fixed depth"),
    "stops": ("o", "tab:red", "threshold, as fitted"),
  }
  for ax, (preset, runs) in zip(axes[0], curves.items(), strict=True):
    own = [r for r in rows if r["preset"] == preset]
    for number, curve in enumerate(runs):
      cost, accuracy = np.array(curve).T
      label = "" if number else "any threshold, each seed"
      ax.plot(cost / 1e3, accuracy, color="tab:red", lw=0.8, alpha=0.5, label=label)
    for kind, (marker, color, label) in looks.items():
      mine = [r for r in own if r["answer"].startswith(kind)]
      cost = [np.mean(r["macs"]) / 1e3 for r in mine]
      spread = [r["std"] or 0 for r in mine]
      ax.errorbar(cost, [r["mean"] for r in mine], spread, fmt=marker, color=color, label=label)
    for r in (r for r in own if r["answer"].startswith("readout")):
      ax.plot(np.mean(r["macs"]) / 1e3, r["mean"], "k*", mfc="none", label="readouts, all layers")
    low, high = ax.get_ylim()
    # Without a least span, a difference of one image would fill a panel.
    beyond = max(0.0, _LEAST_SPAN - (high - low)) / 2
    ax.set(title=preset, xlabel="thousand MACs an image", ylim=(low - beyond, high + beyond))
    ax.set_xlim(left=0)
    ax.grid(alpha=0.3)
  axes[0, 0].set_ylabel("test accuracy %")
  handles, labels = axes[0, 0].get_legend_handles_labels()
  unique = dict(zip(labels, handles, strict=True))
  axes[0, -1].legend(unique.values(), unique.keys(), frameon=False, fontsize=7)
  figure.savefig(path, dpi=120)
  plt.close(figure)
