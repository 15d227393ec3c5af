"""The memory audit as ratios at equal micro-batch, a Markdown table and a figure."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

from experiments import results

matplotlib.use("Agg")
import matplotlib.pyplot as plt

_MIB = 2**20
_NOTE = """The peak of a step holds its state (weights, the optimiser's two moments, with
accumulation the sum of the gradients), nearly the same for every method; its batch; and
temporaries: activations, their gradients, and the gradient of the weights, of one layer at a
time for a strict method and of all layers for backprop. At a small micro-batch state and
gradients of weights weigh most, and a local rule can save little of the whole. At a large one
it saves what stands above its largest layer, and that layer bounds it: the largest map of the
VGG nets is two fifths of all of their activations, and its layer holds several such maps at
once. Backprop that rematerialises keeps inputs of layers alone, for a forward pass more, and
comes as near. What a library for convolutions takes for itself is not in the compiler's
account."""


def ratios(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
  """Every strict variant's peak over that of backprop's variants with as many steps an update.

  Beside the ratio of the peaks stands that of the temporaries alone.
  """
  found = []
  peaks = [r for r in rows if r["metric"] == "peak_bytes" and r["values"]]
  for mine in peaks:
    for other in peaks:
      alike = all(mine[name] == other[name] for name in ("network", "dataset", "micro_batch"))
      alike = alike and mine["accumulate"] == other["accumulate"]
      if not alike or mine["locality"] != "strict" or other["locality"] == "strict":
        continue
      temporaries = mine["memory"]["temporaries"] / other["memory"]["temporaries"]
      found.append(
        results.row(
          "memory_ratio",
          [mine["mean"] / other["mean"]],
          locality=mine["locality"],
          preset=f"{mine['preset']}, micro-batch {mine['micro_batch']}",
          network=f"{mine['network']}, {mine['dataset']}",
          rival=other["preset"],
          micro_batch=mine["micro_batch"],
          temporaries_ratio=float(f"{temporaries:.4g}"),
          command=mine["command"],
        )
      )
  return found


def table(rows: Sequence[Mapping[str, Any]], compared: Sequence[Mapping[str, Any]]) -> str:
  """Peaks with their temporaries by micro-batch, images a second, ratios, and how to read them."""
  peaks = [r for r in rows if r["metric"] == "peak_bytes"]
  rates = [r for r in rows if r["metric"] == "images_per_second"]
  micro = sorted({r["micro_batch"] for r in peaks})
  first = peaks[0]
  lines = [f"# Memory of a training step: {first['network']}, {first['dataset']}", ""]
  lines += ["MiB at the peak (of these, temporaries), by the compiler, by micro-batch:", ""]
  lines += _grid(peaks, micro, _cell)
  state = {r["preset"]: r["memory"]["state"] for r in peaks if r["values"]}
  told = ", ".join(f"{name} {size / _MIB:.0f}" for name, size in state.items())
  lines += ["", f"State, MiB: {told}."]
  if rates:
    lines += ["", "Images a second, median of the rounds (measured peak, MiB):", ""]
    lines += _grid(rates, micro, lambda r: _rate(r, peaks))
  if compared:
    lines += ["", "Ratio of the peaks (of the temporaries) at equal micro-batch:", ""]
    pairs = [(r["preset"].rpartition(", micro-batch")[0] + " / " + r["rival"], r) for r in compared]
    named = [{**r, "preset": name} for name, r in pairs]
    lines += _grid(named, micro, lambda r: f"{r['mean']:.2f} ({r['temporaries_ratio']:.2f})")
  return "\n".join([*lines, "", " ".join(_NOTE.split()), ""])


def _grid(rows: Sequence[Mapping[str, Any]], micro: Sequence[int], cell) -> list[str]:
  lines = [f"| | {' | '.join(map(str, micro))} |", "|---" * (len(micro) + 1) + "|"]
  for name in dict.fromkeys(r["preset"] for r in rows):
    own = {r["micro_batch"]: cell(r) for r in rows if r["preset"] == name}
    lines.append(f"| {name} | {' | '.join(own.get(m, '') for m in micro)} |")
  return lines


def _cell(row: Mapping[str, Any]) -> str:
  if not row["values"]:
    return "too large"
  return f"{row['mean'] / _MIB:.0f} ({row['memory']['temporaries'] / _MIB:.0f})"


def _rate(row: Mapping[str, Any], peaks: Sequence[Mapping[str, Any]]) -> str:
  if not row["values"]:
    return "too large"
  same = ("preset", "micro_batch")
  own = next(r for r in peaks if all(r[name] == row[name] for name in same))
  peak = own["memory"].get("device_peak")
  return f"{np.median(row['values']):.0f}" + (f" ({peak / _MIB:.0f})" if peak else "")


def draw(rows: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
  """Peak on the left and temporaries on the right, by micro-batch; backprop dashed."""
  figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
  peaks = [r for r in rows if r["metric"] == "peak_bytes" and r["values"]]
  for axis, what in zip(axes, ("peak", "temporaries"), strict=True):
    for name in dict.fromkeys(r["preset"] for r in peaks):
      own = [r for r in peaks if r["preset"] == name]
      style = "-o" if own[0]["locality"] == "strict" else "--o"
      x = [r["micro_batch"] for r in own]
      axis.plot(x, [r["memory"][what] / _MIB for r in own], style, ms=4, label=name)
    axis.set(xlabel="micro-batch", ylabel=f"{what}, MiB", xscale="log", yscale="log")
    axis.grid(alpha=0.3, which="both")
    if peaks:
      axis.set_xticks(sorted({r["micro_batch"] for r in peaks}))
      axis.get_xaxis().set_major_formatter(matplotlib.ticker.ScalarFormatter())
      axis.minorticks_off()
  if peaks:
    axes[0].legend(frameon=False, fontsize=7)
    figure.suptitle(f"{peaks[0]['network']}, {peaks[0]['dataset']}")
  figure.savefig(path, dpi=120)
  plt.close(figure)
