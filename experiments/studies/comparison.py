"""From a grid to configurations, and from its rows to a table and a figure."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from experiments import config
from experiments.studies.grids import Grid

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def merge(values: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
  """`values` with `changes` laid over it, mapping by mapping."""
  merged = dict(values)
  for name, change in changes.items():
    old = merged.get(name)
    if isinstance(change, Mapping) and isinstance(old, Mapping):
      change = merge(old, change)
    merged[name] = change
  return merged


def configurations(grid: Grid, epochs: int | None, data_dir: str) -> dict[str, Any]:
  """Label -> the configuration of a point (its seed is the preset's).

  Raises:
    ValueError: a point is impossible; the sentence names it.
  """
  base = config.as_dict(config.load_preset(grid.preset))
  common: dict[str, Any] = {"data": {"data_dir": data_dir}} if data_dir else {}
  if epochs is not None:
    common["epochs"] = epochs
  found = {}
  for label, changes in grid.points.items():
    try:
      found[label] = config.from_mapping(merge(merge(base, common), changes))
    except ValueError as error:
      raise ValueError(f"point {label!r}: {error}") from error
  return found


def table(grid: Grid, rows: Sequence[Mapping[str, Any]]) -> str:
  """The study as a Markdown table, in the order of the grid."""
  lines = [
    f"# {grid.title}",
    "",
    "| | test error % | seeds | diverged | locality | published % |",
    "|---|---|---|---|---|---|",
  ]
  for r in rows:
    value = f"{r['mean']:.2f} +- {r['std'] or 0:.2f}" if r["values"] else "-"
    published = "" if r["published"] is None else f"{r['published']:.1f}"
    lines.append(
      f"| {r['preset']} | {value} | {len(r['seeds'])} | {len(r['diverged'])} | {r['locality']} "
      f"| {published} |"
    )
  return "\n".join([*lines, "", grid.note, ""]).rstrip() + "\n"


def draw(grid: Grid, rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Every point's error with its spread, published values as open diamonds."""
  finished = [r for r in rows if r["values"]]
  figure, axes = plt.subplots(figsize=(7, 1 + 0.28 * len(finished)), layout="constrained")
  places = np.arange(len(finished))[::-1]
  axes.errorbar(
    [r["mean"] for r in finished], places, xerr=[r["std"] or 0 for r in finished], fmt="o", ms=4
  )
  told = [(r["published"], y) for r, y in zip(finished, places, strict=True) if r["published"]]
  if told:
    axes.plot(*zip(*told, strict=True), "D", mfc="none", color="gray", label="published")
    axes.legend(frameon=False)
  axes.set(xlabel="test error %", title=grid.title, xlim=(0, None))
  axes.set_yticks(places, [r["preset"] for r in finished])
  axes.grid(axis="x", alpha=0.3)
  figure.savefig(path, dpi=120)
  plt.close(figure)
