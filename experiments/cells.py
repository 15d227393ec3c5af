"""How the numbers of result files stand in tables."""

from collections.abc import Mapping
from typing import Any

from experiments.console import si


def is_accuracy(row: Mapping[str, Any]) -> bool:
  """Whether a row is the test error of a readout; layers have figures of their own."""
  return row["metric"] == "test_error_percent" and not row.get("readout", "").startswith("layer ")


def mean_and_spread(row: Mapping[str, Any]) -> str:
  """The mean and, of several values, their sample deviation."""
  return f"{row['mean']:.2f}" + ("" if row["std"] is None else f" +- {row['std']:.2f}")


def mean_of(row: Mapping[str, Any]) -> str:
  """Mean and sample deviation, and how many seeds diverged."""
  if row["mean"] is None:
    return "diverged"
  lost = f" ({len(row['diverged'])} diverged)" if row.get("diverged") else ""
  return mean_and_spread(row) + lost


def beside(cost: Mapping[str, Any], control: Mapping[str, Any], name: str, unit: str = "") -> str:
  """A cost and how many times the control's it is."""
  if not cost.get(name):
    return "-"
  times = f" ({cost[name] / control[name]:.2f})" if control.get(name) else ""
  return si(cost[name], unit) + times
