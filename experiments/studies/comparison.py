"""From a grid to configurations, and from its rows to a table and a figure."""

import pathlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import matplotlib

from experiments import config
from experiments.cells import mean_and_spread

matplotlib.use("Agg")
import matplotlib.pyplot as plt


class Grid(NamedTuple):
  """A comparison.

  Attributes:
    title: of the table and the figure.
    preset: the configuration that all points start from, a name in `experiments/configs`.
    points: label -> changed fields, nested as in `ExperimentConfig`.
    published: label -> test error in percent, where a paper states one.
    note: what a reader of the table must know.
    samples: how points whose units are random answer, each of these ways from the same trained
      state: by the mean of so many sampled passes, or 0 by the mean field; none: as the preset.
    readouts: that answer; none: the first of the preset.
  """

  title: str
  preset: str
  points: Mapping[str, Mapping[str, Any]]
  published: Mapping[str, float] = MappingProxyType({})
  note: str = ""
  samples: tuple[int, ...] = ()
  readouts: tuple[str, ...] = ()


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
  """The study as a Markdown table, in the order of the grid: one line a point."""
  variants = list(dict.fromkeys(map(_variant, rows)))
  titles = ["test error %"] if len(variants) == 1 else [f"{v}, error %" for v in variants]
  lines = [
    f"# {grid.title}",
    "",
    f"| | {' | '.join(titles)} | seeds | diverged | locality | published % |",
    "|---" * (len(titles) + 5) + "|",
  ]
  points: dict[str, list[Mapping[str, Any]]] = {}
  for r in rows:
    points.setdefault(r["preset"], []).append(r)
  for label, found in points.items():
    values = {_variant(r): mean_and_spread(r) for r in found if r["values"]}
    cells = " | ".join(values.get(v, "-") for v in variants)
    r = found[0]
    published = "" if r["published"] is None else f"{r['published']:.1f}"
    lines.append(
      f"| {label} | {cells} | {len(r['seeds'])} | {len(r['diverged'])} | {r['locality']} "
      f"| {published} |"
    )
  return "\n".join([*lines, "", grid.note, ""]).rstrip() + "\n"


def _variant(row: Mapping[str, Any]) -> str:
  """By which readout, and how, a row's state answered."""
  if "samples" not in row:
    return str(row.get("readout", ""))
  samples = row["samples"]
  how = f"{samples} sample{'s' * (samples != 1)}" if samples else "mean field"
  return f"{row['readout']}, {how}"


def draw(grid: Grid, rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Every point's error with its spread, published values as open diamonds."""
  finished = [r for r in rows if r["values"]]
  labels = list(dict.fromkeys(r["preset"] for r in finished))
  variants = list(dict.fromkeys(map(_variant, finished)))
  height = 1 + 0.28 * len(labels) + 0.2 * (len(variants) if len(variants) > 1 else 0)
  figure, axes = plt.subplots(figsize=(7, height), layout="constrained")
  places = {label: len(labels) - 1 - i for i, label in enumerate(labels)}
  for i, variant in enumerate(variants):
    own = [r for r in finished if _variant(r) == variant]
    axes.errorbar(
      [r["mean"] for r in own],
      [places[r["preset"]] + 0.6 * (0.5 - (i + 0.5) / len(variants)) for r in own],
      xerr=[r["std"] or 0 for r in own],
      fmt="o",
      ms=4,
      label=variant,
    )
  told = {(r["published"], places[r["preset"]]) for r in finished if r["published"]}
  if told:
    axes.plot(*zip(*told, strict=True), "D", mfc="none", color="gray", label="published")
  if told or len(variants) > 1:
    axes.legend(frameon=False, fontsize=8)
  axes.set(xlabel="test error %", title=grid.title, xlim=(0, None))
  axes.set_yticks(list(places.values()), labels)
  axes.grid(axis="x", alpha=0.3)
  figure.savefig(path, dpi=120)
  plt.close(figure)
