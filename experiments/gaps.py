"""How far a run is from backprop: its control row, and the difference with its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Gap(NamedTuple):
  """Test error minus that of the matched backprop control, in points.

  Attributes:
    points: the mean difference.
    half_width: of its 95 % interval; None with fewer than two seeds.
    paired: by seed; else the runs' seeds differ, and the interval is Welch's.
    control: name of the control's point.
  """

  points: float
  half_width: float | None
  paired: bool
  control: str

  def __str__(self) -> str:
    width = "" if self.half_width is None else f" +- {self.half_width:.2f}"
    return f"{self.points:+.2f}{width}" + ("" if self.paired else ", unpaired")


def control_row(
  row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
  """The backprop row that a row is measured against.

  It has the row's data, network and numerics and has converged; among several, one of the same
  command (points of one study share the recipe), then of as many epochs, then the best. Rows of
  backprop itself, an outside library's too, have none.
  """
  if row["method"].startswith("backprop") or not row["values"]:
    return None
  same = ("dataset", "network", "numerics", "metric")
  found = [
    r
    for r in rows
    if r["method"] == "backprop" and r["values"] and all(r[name] == row[name] for name in same)
  ]

  def order(r: Mapping[str, Any]) -> tuple[bool, bool, float]:
    return r["command"] != row["command"], r["epochs"] != row["epochs"], r["mean"]

  return min(found, key=order, default=None)


def paired_gap(row: Mapping[str, Any], control: Mapping[str, Any] | None) -> Gap | None:
  """The difference of two rows with Student's interval: paired t, or Welch's for other seeds."""
  if control is None:
    return None
  mine, other = np.asarray(row["values"]), np.asarray(control["values"])
  points, name = float(mine.mean() - other.mean()), control["preset"]
  paired = row["seeds"] == control["seeds"] and len(mine) == len(other)
  if min(len(mine), len(other)) < 2:
    return Gap(points, None, paired, name)
  if paired:
    error, freedom = float(np.std(mine - other, ddof=1)) / math.sqrt(len(mine)), len(mine) - 1.0
  else:
    parts = [float(np.var(v, ddof=1)) / len(v) for v in (mine, other)]
    error = math.sqrt(sum(parts))
    below = sum(p**2 / (len(v) - 1) for p, v in zip(parts, (mine, other), strict=True))
    freedom = sum(parts) ** 2 / below if below else 1.0
  return Gap(points, float(stats.t.ppf(0.975, freedom)) * error, paired, name)
