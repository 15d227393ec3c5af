"""How far a run is from backprop: its control row, and the difference with its interval."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats


class Gap(NamedTuple):
  """Test error against that of the matched backprop control, on three scales.

  Points hide how far both are from perfect, so ratio and log-odds stand beside them (one number
  alone can make the same gap look wide or narrow).

  Attributes:
    points: the mean difference of the errors.
    half_width: of its 95 % interval; None with fewer than two seeds.
    ratio: of the mean errors; infinite if the control makes none.
    log_odds: of being right, the control's less the run's.
    paired: by seed; else the runs' seeds differ, and the interval is Welch's.
    control: name of the control's point.
  """

  points: float
  half_width: float | None
  ratio: float
  log_odds: float
  paired: bool
  control: str

  def in_points(self) -> str:
    """The difference with its interval."""
    width = "" if self.half_width is None else f" +- {self.half_width:.2f}"
    return f"{self.points:+.2f}{width}{'' if self.paired else ', unpaired'}"

  def __str__(self) -> str:
    return f"{self.in_points()}; x {self.ratio:.2f}, {self.log_odds:+.2f}; {self.control}"


def control_row(
  row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]
) -> Mapping[str, Any] | None:
  """The backprop row that a row is measured against.

  It has the row's data, network, setting (see `results.choices`) and numerics, is of single nets
  and has converged; among several, one of the same command (points of one study share the recipe),
  then of as many epochs, then the first. Rows of backprop itself, an outside library's too, have
  none.
  """
  if row["method"].startswith("backprop") or not row["values"]:
    return None

  def matched(r: Mapping[str, Any]) -> bool:
    same = ("dataset", "network", "setting", "numerics", "metric")
    alone = r["method"] == "backprop" and r.get("members", 1) == 1
    return alone and bool(r["values"]) and all(r.get(name) == row.get(name) for name in same)

  def order(r: Mapping[str, Any]) -> tuple[bool, bool]:
    return r["command"] != row["command"], r["epochs"] != row["epochs"]

  return min(filter(matched, rows), key=order, default=None)


def paired_gap(row: Mapping[str, Any], control: Mapping[str, Any] | None) -> Gap | None:
  """The difference of two rows with Student's interval: paired t, or Welch's for other seeds."""
  if control is None:
    return None
  mine, other = np.asarray(row["values"]), np.asarray(control["values"])
  points, name = float(mine.mean() - other.mean()), control["preset"]
  ratio = float(mine.mean() / other.mean()) if other.mean() else math.inf
  log_odds = _log_odds(other) - _log_odds(mine)
  paired = row["seeds"] == control["seeds"] and len(mine) == len(other)
  if min(len(mine), len(other)) < 2:
    return Gap(points, None, ratio, log_odds, paired, name)
  if paired:
    error, freedom = float(np.std(mine - other, ddof=1)) / math.sqrt(len(mine)), len(mine) - 1.0
  else:
    parts = [float(np.var(v, ddof=1)) / len(v) for v in (mine, other)]
    error = math.sqrt(sum(parts))
    below = sum(p**2 / (len(v) - 1) for p, v in zip(parts, (mine, other), strict=True))
    freedom = sum(parts) ** 2 / below if below else 1.0
  half_width = float(stats.t.ppf(0.975, freedom)) * error
  return Gap(points, half_width, ratio, log_odds, paired, name)


def _log_odds(errors: np.ndarray) -> float:
  """Of being right, from errors in percent; infinite without a mistake."""
  error = float(errors.mean()) / 100
  return math.log((1 - error) / error) if 0 < error < 1 else math.copysign(math.inf, 0.5 - error)
