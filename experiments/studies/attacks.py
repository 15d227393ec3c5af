"""Trained runs under attack: what is tried, what is left of the accuracy, a table and a figure."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from experiments import config, results
from experiments.assembly import Experiment, build
from experiments.batches import in_batches
from experiments.console import console
from experiments.ensembles import check_test_split
from experiments.studies.points import trained
from fflax.analysis import robustness
from fflax.core.readouts import READOUTS
from fflax.data.augment import make_preprocess
from fflax.data.normalize import Normalization, statistics
from fflax.types import Array, TrainState

matplotlib.use("Agg")
import matplotlib.pyplot as plt

GRADIENT_FREE = 100
"""Examples of the attack without gradients, which asks for very many answers."""

MATCHED = 0.5
"""Percent by which clean accuracies may differ between presets that are called equally accurate."""


class Attacks(NamedTuple):
  """What is tried; strengths in units of pixels in [0, 1].

  Attributes:
    sigmas: of Gaussian noise.
    radii: of FGSM and PGD.
    steps, restarts: of PGD.
    directions: of the attack without gradients; 0 leaves it out.
  """

  sigmas: tuple[float, ...]
  radii: tuple[float, ...]
  steps: int = 40
  restarts: int = 5
  directions: int = 64


class Target(NamedTuple):
  """One readout of one trained run.

  Attributes:
    answer: `(state, images [B, ...] in [0, 1]) -> [B, K]`, as deployed; jitted.
    state: of the run.
    images, labels: what is attacked, in [0, 1].
    batch_size: examples at a time.
    seed: of noise and starts.
  """

  answer: Callable[[TrainState, Array], Array]
  state: TrainState
  images: np.ndarray
  labels: np.ndarray
  batch_size: int
  seed: int

  def accuracy(self, images: np.ndarray) -> float:
    """In percent, of attacked versions of the first images."""
    scores = in_batches(lambda x: self.answer(self.state, x), self.batch_size, images)
    return 100 * float(np.mean(np.argmax(scores, axis=1) == self.labels[: len(images)]))


def check(experiment: Experiment) -> None:
  """Refuses data that are no images: their units would not be pixels.

  Raises:
    ValueError: one sentence.
  """
  if experiment.dataset.test.image.ndim != 4:
    name = experiment.config.data.name
    raise ValueError(f"robustness is measured on images in [0, 1]: data set {name!r} has none")


def check_presets(presets: Mapping[str, config.ExperimentConfig], readouts: Sequence[str]) -> None:
  """Refuses, before anything is trained, what could not be attacked or compared in the end.

  Raises:
    ValueError: a readout is unknown or no preset's, a preset has none of them, its data are no
      images, or the presets do not share their test split; one sentence.
  """
  for readout in readouts:
    if readout not in READOUTS:
      raise ValueError(f"unknown readout {readout!r}; there are {', '.join(READOUTS)}")
    if not any(readout in one.readouts for one in presets.values()):
      raise ValueError(f"no preset has the readout {readout!r}")
  for name, one in presets.items():
    if not set(readouts) & set(one.readouts):
      raise ValueError(f"preset {name!r} has none of the readouts {', '.join(readouts)}")
  datasets = []
  for one in presets.values():
    experiment = build(one)
    check(experiment)
    datasets.append(experiment.dataset)
  check_test_split(datasets, "the presets of this study", images=True)


def target(experiment: Experiment, state: TrainState, readout: str, examples: int) -> Target:
  """The readout of a run, as a function of pixels in [0, 1]."""
  data, split = experiment.config.data, experiment.dataset.test
  mean, std = statistics(experiment.dataset, cast(Normalization, data.normalization))
  standardize = make_preprocess(1.0, mean, std)

  @jax.jit
  def answer(state: TrainState, x: Array) -> Array:
    return experiment.trainer.answer(state, standardize(None, x)).readouts[readout]

  images = split.image[:examples].astype(np.float32) / np.float32(experiment.dataset.max_value)
  size = min(experiment.config.eval_batch_size, len(images))
  return Target(answer, state, images, split.label[:examples], size, experiment.config.seed)


def attack(
  one: Target, attacks: Attacks
) -> tuple[dict[str, dict[float, float]], dict[float, np.ndarray]]:
  """Accuracy by attack and strength (0: clean), and the images of PGD by radius."""
  numbers = np.arange(len(one.labels))

  def key(rows: Array, salt: int) -> Array:
    # One key a batch, of its first example.
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(one.seed), salt), rows[0])

  @jax.jit
  def noise(state: TrainState, x: Array, y: Array, rows: Array, sigma: Array) -> Array:
    del state, y
    return robustness.gaussian(key(rows, 0), x, sigma)

  @jax.jit
  def fgsm(state: TrainState, x: Array, y: Array, rows: Array, radius: Array) -> Array:
    del rows
    return robustness.fgsm(functools.partial(one.answer, state), x, y, radius)

  @jax.jit
  def pgd(state: TrainState, x: Array, y: Array, rows: Array, radius: Array) -> Array:
    scores = functools.partial(one.answer, state)
    attack = functools.partial(robustness.pgd, steps=attacks.steps, restarts=attacks.restarts)
    found = [
      attack(scores, x, y, radius, key(rows, 1 + i), loss=loss)
      for i, loss in enumerate(robustness.LOSSES)
    ]
    return robustness.strongest(scores, y, *found)

  @jax.jit
  def blind(state: TrainState, x: Array, y: Array, rows: Array, radius: Array) -> Array:
    scores = functools.partial(one.answer, state)
    return robustness.pgd(
      scores, x, y, radius, key(rows, 9), steps=attacks.steps, directions=attacks.directions
    )

  def craft(fn: Callable, strength: float, count: int | None = None) -> np.ndarray:
    rows = (one.images[:count], one.labels[:count], numbers[:count])
    value = jnp.float32(strength)
    return in_batches(lambda x, y, i: fn(one.state, x, y, i, value), one.batch_size, *rows)

  clean = one.accuracy(one.images)
  found = {name: {0.0: clean} for name in ("gaussian", "fgsm", "pgd")}
  kept: dict[float, np.ndarray] = {}
  for sigma in attacks.sigmas:
    found["gaussian"][sigma] = one.accuracy(craft(noise, sigma))
  few = min(GRADIENT_FREE, len(one.labels))
  without: dict[str, dict[float, float]] = {"gradient-free": {}, f"pgd, first {few}": {}}
  for radius in attacks.radii:
    found["fgsm"][radius] = one.accuracy(craft(fgsm, radius))
    kept[radius] = craft(pgd, radius)
    found["pgd"][radius] = one.accuracy(kept[radius])
    if attacks.directions:
      without["gradient-free"][radius] = one.accuracy(craft(blind, radius, few))
      without[f"pgd, first {few}"][radius] = one.accuracy(kept[radius][:few])
  return {**found, **{k: v for k, v in without.items() if v}}, kept


Values = dict[tuple[str, str, str, float], list[float]]
"""(preset, readout, attack, strength) -> accuracy in percent, one a seed."""


def measure(
  presets: Mapping[str, config.ExperimentConfig],
  readouts: Sequence[str],
  seeds: Sequence[int],
  attacks: Attacks,
  examples: int,
  folder: pathlib.Path,
) -> tuple[Values, dict[str, str]]:
  """Every preset trained (or resumed) with every seed, and attacked; and the runs' localities."""
  values: Values = {}
  localities: dict[str, str] = {}
  for seed in seeds:
    first: dict[str, tuple[Target, dict]] = {}
    for preset, chosen in presets.items():
      experiment, state = trained(dataclasses.replace(chosen, seed=seed), folder)
      localities[preset] = experiment.trainer.locality
      for readout in (r for r in readouts if r in chosen.readouts):
        one = target(experiment, state, readout, examples)
        found, images = attack(one, attacks)
        first.setdefault(preset, (one, images))
        for name, by_strength in found.items():
          for strength, accuracy in by_strength.items():
            values.setdefault((preset, readout, name, strength), []).append(accuracy)
        told = ", ".join(f"{a:.1f} at {s:.3g}" for s, a in found["pgd"].items())
        console.print(f"seed {seed}  {preset:24s} {readout:12s} PGD: {told} %")
    for preset, (one, _) in first.items():
      for source in (s for s in first if s != preset):
        readout = next(r for r in readouts if r in presets[preset].readouts)
        for strength, images in first[source][1].items():
          key = (preset, readout, f"transfer from {source}", strength)
          values.setdefault(key, []).append(one.accuracy(images))
  return values, localities


def rows_of(
  values: Mapping[tuple[str, str, str, float], Sequence[float]],
  presets: Mapping[str, config.ExperimentConfig],
  localities: Mapping[str, str],
  **columns: Any,
) -> list[dict[str, Any]]:
  """One row a preset, readout, attack and strength."""
  return [
    results.row(
      "test_accuracy_percent",
      accuracies,
      locality=localities[preset],
      **results.choices(presets[preset]),
      preset=preset,
      readout=readout,
      attack=name,
      strength=strength,
      **columns,
    )
    for (preset, readout, name, strength), accuracies in values.items()
  ]


def mismatch(rows: Sequence[Mapping[str, Any]]) -> str:
  """A sentence about clean accuracies that differ between presets by more than `MATCHED`, or ""."""
  clean = [r for r in rows if r["attack"] == "pgd" and r["strength"] == 0]
  pairs = [(a, b) for a, b in itertools.permutations(clean, 2) if a["preset"] != b["preset"]]
  if not pairs:
    return ""
  high, low = max(pairs, key=lambda pair: pair[0]["mean"] - pair[1]["mean"])
  gap = high["mean"] - low["mean"]
  if gap <= MATCHED:
    return ""
  told = [f"{r['preset']} ({r['readout']}) {r['mean']:.2f} %" for r in (high, low)]
  return (
    f"Clean accuracies are not matched: they differ by up to {gap:.2f} points, {told[0]} against "
    f"{told[1]}; where accuracy is lost under attack, part of the difference is there before it."
  )


def table(rows: Sequence[Mapping[str, Any]], title: str, note: str) -> str:
  """Markdown: a table an attack, its strengths in columns."""
  lines = [f"# {title}", ""]
  for name in dict.fromkeys(r["attack"] for r in rows):
    own = [r for r in rows if r["attack"] == name]
    strengths = sorted({r["strength"] for r in own})
    heads = " | ".join(f"{s:.4g}" if s else "clean" for s in strengths)
    lines += [f"## {name}", "", f"| test accuracy % | readout | {heads} | seeds |"]
    lines += ["|---" * (len(strengths) + 3) + "|"]
    for preset, readout in dict.fromkeys((r["preset"], r["readout"]) for r in own):
      mine = {r["strength"]: r for r in own if (r["preset"], r["readout"]) == (preset, readout)}
      found = [mine[s] for s in strengths]
      cells = " | ".join(f"{r['mean']:.2f} +- {r['std'] or 0:.2f}" for r in found)
      count = len(found[0]["values"])
      lines.append(f"| {preset} | {readout} | {cells} | {count} |")
    lines.append("")
  return "\n".join([*lines, note, ""])


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: pathlib.Path) -> None:
  """A panel an attack: accuracy against strength, a line a preset and readout."""
  names = [n for n in ("gaussian", "fgsm", "pgd") if any(r["attack"] == n for r in rows)]
  figure, axes = plt.subplots(
    1, len(names), figsize=(3.6 * len(names), 3.2), layout="constrained", sharey=True, squeeze=False
  )
  for ax, name in zip(axes[0], names, strict=True):
    own = [r for r in rows if r["attack"] == name]
    for i, (preset, readout) in enumerate(dict.fromkeys((r["preset"], r["readout"]) for r in own)):
      mine = [r for r in own if (r["preset"], r["readout"]) == (preset, readout)]
      mine.sort(key=lambda r: r["strength"])
      ax.errorbar(
        [r["strength"] for r in mine],
        [r["mean"] for r in mine],
        yerr=[r["std"] or 0 for r in mine],
        marker="osD^v"[i % 5],
        linestyle=("-", "--", ":", "-.")[i % 4],
        ms=4,
        label=f"{preset}, {readout}",
      )
    what = "sigma" if name == "gaussian" else "radius"
    ax.set(title=name, xlabel=f"{what}, pixels in [0, 1]", ylim=(0, 100))
    ax.grid(alpha=0.3)
  axes[0, 0].set_ylabel("test accuracy %")
  axes[0, -1].legend(frameon=False, fontsize=7)
  figure.suptitle(title, fontsize=9)
  figure.savefig(path, dpi=120)
  plt.close(figure)
