"""The results table of the front page: every preset that was run in full, in one line."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments import config
from experiments.cells import beside, is_accuracy, mean_of
from experiments.gaps import control_row, paired_gap

_HEAD = (
  "data", "method", "preset", "numerics", "readout", "locality", "test error %", "seeds",
  "published %", "against backprop, points", "training MACs (of backprop)",
  "step memory (of backprop)",
)  # fmt: skip
_COMMAND = "experiments.studies.seeds"


def front_table(studies: Sequence[Mapping[str, Any]]) -> str:
  """Markdown: a line for each study of one preset, by the preset's first readout.

  Shortened runs and comparisons of many points have pages of their own.
  """
  everything = [row for study in studies for row in study["rows"] if is_accuracy(row)]
  lines = []
  for study in studies:
    own = [row for row in study["rows"] if is_accuracy(row) and _COMMAND in row["command"]]
    if own and "_short_" not in study["study"]:
      row = _chosen(own)
      lines.append((row["dataset"], row["method"], study["study"], _cells(row, everything)))
  head = [f"| {' | '.join(_HEAD)} |", "|---" * len(_HEAD) + "|"]
  return "\n".join([*head, *(f"| {' | '.join(cells)} |" for *_, cells in sorted(lines))])


def _chosen(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
  """Of one run: that of the preset's first readout, if the run had it."""
  first = config.load_preset(rows[0]["preset"]).readouts[0]
  return next((row for row in rows if row["readout"] == first), rows[0])


def _cells(row: Mapping[str, Any], everything: Sequence[Mapping[str, Any]]) -> list[str]:
  cost = row.get("cost") or {}
  control = cost.get("control") or {}
  gap = paired_gap(row, control_row(row, everything))
  data = row["setting"]["data"]
  held = [f"{data['validation']:,} held out"] if data["validation"] else []
  changes = [f"{n} {v}" for n, v in data["augment"].items() if v and not isinstance(v, str)]
  epochs = "epoch" if row["epochs"] == 1 else "epochs"
  return [
    ", ".join([row["dataset"], *held, *changes]),
    row["method"],
    f"`{row['preset']}`, {row['epochs']:,} {epochs}",
    row["numerics"],
    row["readout"],
    row["locality"],
    mean_of(row),
    str(len(row["seeds"])),
    "-" if row.get("published") is None else f"{row['published']:g}",
    "-" if gap is None else gap.in_points(),
    beside(cost, control, "training_macs"),
    beside(cost, control, "step_bytes", "B"),
  ]
