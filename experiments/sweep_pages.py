"""What a sweep says: rows in the schema of the results, a table, and a figure."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from experiments import results
from experiments.sweep_axes import Point, Settings, label

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_MOST_PANELS = 6


def rows_of(
  points: Sequence[tuple[Point, Mapping[str, Any]]], command: str
) -> list[dict[str, Any]]:
  """One row for all seeds of the same settings.

  Args:
    points: with what each has left, see `sweeps.read_point`.
    command: that reproduces them.
  """
  alike: dict[str, list[tuple[Point, Mapping[str, Any]]]] = {}
  for point, one in points:
    alike.setdefault(label(_settings(point)), []).append((point, one))
  rows = []
  for name, own in alike.items():
    chosen, first = own[0][0].config, own[0][1]
    readout = chosen.readouts[0]
    good = [(p, one["accuracy"]) for p, one in own if not one["diverged"]]
    seeds = [p.config.seed for p, _ in good]
    key = f"accuracy/{readout}"
    held_out = [round(100 * a["validation"][key], 4) for _, a in good if "validation" in a]
    columns = {
      **results.choices(chosen),
      "preset": name or "as configured",
      "settings": _settings(own[0][0]),
      "locality_matrix": first["locality_matrix"],
      "seeds": seeds,
      "diverged": [p.config.seed for p, one in own if one["diverged"]],
      "readout": readout,
      "validation_accuracy_percent": held_out,
      "published": None,
      "command": command,
      "cost": None,
    }
    errors = [100 * (1 - a["test"][key]) for _, a in good]
    rows.append(results.row("test_error_percent", errors, locality=first["locality"], **columns))
  return rows


def _settings(point: Point) -> Settings:
  return {n: v for n, v in point.settings.items() if n != "seed"}


def best(rows: Sequence[Mapping[str, Any]]) -> tuple[Mapping[str, Any] | None, str]:
  """The best row and by what: the validation split, where there is one."""
  good = [r for r in rows if r["values"]]
  if not good:
    return None, ""
  if all(r["validation_accuracy_percent"] for r in good):
    found = max(good, key=lambda r: np.mean(r["validation_accuracy_percent"]))
    return found, "by validation accuracy"
  return min(good, key=lambda r: r["mean"]), "by test error, so its error is an optimistic one"


def lines_of(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
  """Titles and cells of the table: a line a row."""
  names = list(rows[0]["settings"])
  head = [*names, "test error %", "validation accuracy %", "seeds", "diverged", "locality"]
  cells = []
  for r in rows:
    error = f"{r['mean']:.2f} +- {r['std'] or 0:.2f}" if r["values"] else "-"
    held_out = r["validation_accuracy_percent"]
    values = [label({n: v}).partition("=")[2] for n, v in r["settings"].items()]
    seen = f"{np.mean(held_out):.2f}" if held_out else "-"
    counts = [str(len(r["seeds"])), str(len(r["diverged"]))]
    cells.append([*values, error, seen, *counts, r["locality"]])
  return head, cells


def markdown(title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str]) -> str:
  """The table as a page."""
  head, cells = lines_of(rows)
  found = [f"# {title}", "", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
  found += [f"| {' | '.join(line)} |" for line in cells]
  return "\n".join([*found, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def draw(title: str, rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> pathlib.Path | None:
  """A panel an axis: every row's error with its spread, and the mean over the other axes.

  Returns:
    The file, or None where no axis has two values or nothing was trained to the end.
  """
  good = [r for r in rows if r["values"]]
  names = list(rows[0]["settings"])
  varied = [n for n in names if len({json.dumps(r["settings"][n]) for r in good}) > 1]
  varied = varied[:_MOST_PANELS]
  if not varied:
    return None
  size = (3.6 * len(varied) + 0.4, 3.4)
  figure, panels = plt.subplots(1, len(varied), figsize=size, layout="constrained", squeeze=False)
  for axes, name in zip(panels[0], varied, strict=True):
    values = [r["settings"][name] for r in good]
    errors = np.array([r["mean"] for r in good])
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    ticks = sorted(set(values)) if numeric else list(dict.fromkeys(values))
    places = np.array(values, float) if numeric else np.array([ticks.index(v) for v in values])
    spread = [r["std"] or 0 for r in good]
    axes.errorbar(places, errors, yerr=spread, fmt="o", ms=4, alpha=0.6, color="#0072B2")
    known = np.unique(places)
    if len(known) < len(places):
      means = [errors[places == x].mean() for x in known]
      axes.plot(known, means, "k--", lw=1, marker="_", ms=10, label="mean over the other axes")
      axes.legend(frameon=False, fontsize=7)
    if numeric and min(ticks) > 0 and max(ticks) / min(ticks) >= 10:
      axes.set_xscale("log")
    if not numeric:
      names_of = [label({name: v}).partition("=")[2] for v in ticks]
      axes.set_xticks(range(len(ticks)), names_of, rotation=30, ha="right")
    axes.set(xlabel=name)
    axes.grid(alpha=0.3)
  panels[0][0].set_ylabel("test error %")
  figure.suptitle(title, fontsize=9)
  unfinished = path.with_name(f".{path.name}.unfinished")
  figure.savefig(unfinished, format="png", dpi=120)
  plt.close(figure)
  unfinished.replace(path)
  return path
