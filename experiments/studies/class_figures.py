"""The class sweep as a Markdown table and a figure."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from scipy import stats

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def half_width(values: Sequence[float]) -> float:
  """Of Student's 95 % interval of the mean; 0 for a single value."""
  n = len(values)
  return float(stats.t.ppf(0.975, n - 1) * stats.sem(values)) if n > 1 else 0.0


def table(rows: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]]) -> str:
  """Accuracies by number of classes, then the paired differences and their contrasts."""
  labels = list(dict.fromkeys(r["preset"] for r in rows))
  by = {(r["preset"], r["classes"]): r for r in rows}
  lines = ["# Teacher-student sweep over the number of classes", ""]
  lines += [
    f"Test accuracy % (train - test), {len(rows[0]['seeds'])} seeds, {rows[0]['steps']} steps"
  ]
  lines += ["", f"| classes | {' | '.join(labels)} |", "|---" * (len(labels) + 1) + "|"]
  for k in dict.fromkeys(r["classes"] for r in rows):
    cells = []
    for label in labels:
      r = by[label, k]
      gap = float(np.mean(r["train_accuracy_percent"])) - (100 - r["mean"])
      cells.append(f"{100 - r['mean']:.2f} +- {r['std'] or 0:.2f} ({gap:.1f})")
    lines.append(f"| {k} | {' | '.join(cells)} |")
  for one in compared:
    lines += ["", f"{one['method']} minus {one['rival']}, points, paired by seed:", ""]
    lines += ["| classes | difference (95 %) | wins |", "|---|---|---|"]
    for k, values in one["differences"].items():
      mean, wins = float(np.mean(values)), f"{one['wins'][k]} of {len(values)}"
      lines.append(f"| {k} | {mean:+.2f} +- {half_width(values):.2f} | {wins} |")
    if "contrast" in one:
      c = one["contrast"]
      told = {"single observations": "naive", "seeds": "cluster", "paired t": "paired_t"}
      intervals = ", ".join(
        f"{name} [{c[key][0]:+.2f}, {c[key][1]:+.2f}]" for name, key in told.items() if c[key]
      )
      lines += ["", f"Low {c['low']:+.2f}, high {c['high']:+.2f}: {c['value']:+.2f}; {intervals}."]
  return "\n".join(lines) + "\n"


def draw(
  rows: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]], path: pathlib.Path
) -> None:
  """Accuracies on the left, paired differences with their intervals on the right."""
  figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
  for label in dict.fromkeys(r["preset"] for r in rows):
    own = [r for r in rows if r["preset"] == label]
    left.errorbar(
      [r["classes"] for r in own],
      [100 - r["mean"] for r in own],
      yerr=[r["std"] or 0 for r in own],
      marker="o",
      capsize=2,
      label=label,
    )
  for one in compared:
    right.errorbar(
      [int(k) for k in one["differences"]],
      [float(np.mean(v)) for v in one["differences"].values()],
      yerr=[half_width(v) for v in one["differences"].values()],
      marker="o",
      capsize=2,
      label=f"{one['method']} - {one['rival']}",
    )
  right.axhline(0, color="gray", lw=0.8)
  left.set(xlabel="classes", ylabel="test accuracy %")
  right.set(xlabel="classes", ylabel="difference, points (95 %)")
  for axes in (left, right):
    axes.grid(alpha=0.3)
    if axes.has_data():
      axes.legend(frameon=False, fontsize=8)
  figure.savefig(path, dpi=120)
  plt.close(figure)
