"""Accuracy against modelled energy: rows of a grid of p-bits, a table and a figure of them.

An answer by T samples costs T passes but for the image's own product; the mean field costs what
real units do. Energies are of products and p-bits alone, without memory and norms.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

from experiments.pbit_hardware import SAMPLES, WIDTHS, Pass, from_dict, pass_energy
from experiments.studies.pbit_grids import CHANNELWISE

matplotlib.use("Agg")
import matplotlib.pyplot as plt

NOTE = """Microjoules of one answer, modelled: products and p-bits, no memory. p-bits: counts read
as their binary code; in brackets with the read-out of every sample. Columns of another width than a
point was trained with (p-bits: float32) suppose that its error would not change."""


def energies(one: Pass, samples: int, real: Pass | None, table: str) -> dict[str, Any] | None:
  """Microjoules of an answer: width -> reading -> name of the p-bit.

  Args:
    one: a pass.
    samples: T, or 0: the mean field, or real units.
    real: the pass of the same net with real units, which the mean field costs.
    table: in `TABLES`.

  Returns:
    None if the answer's cost is not known.
  """
  if samples == 0 and one.products:
    if real is None:
      return None
    one = real
  return {
    width: {
      reading: {
        name: 1e-6
        * pass_energy(one, width, reading, samples=max(1, samples), table=table, pbit=pbit)
        for name, pbit in SAMPLES.items()
      }
      for reading in ("thermo", "code")
    }
    for width in WIDTHS
  }


def rows_of(study: Mapping[str, Any], table: str) -> list[dict[str, Any]]:
  """The grid's rows that ended, each with "energy_uj".

  Raises:
    ValueError: the study holds no passes: its grid asks for no samples.
  """
  costs = study.get("costs")
  if not costs:
    raise ValueError(f"study {study['study']!r} holds no firing rates: it is no grid of p-bits")
  passes = {
    label: {readout: from_dict(one) for readout, one in found["passes"].items()}
    for label, found in costs.items()
  }
  rows = []
  for row in study["rows"]:
    one = passes.get(row["preset"], {}).get(row["readout"])
    if one is None or not row["values"]:
      continue
    real = passes.get(CHANNELWISE, {}).get(row["readout"])
    found = energies(one, row["samples"], real, table)
    if found is not None:
      rows.append({**row, "random": bool(one.products), "energy_uj": found})
  return rows


def pareto(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
  """Those (energy, error) that no other beats in one and reaches in the other, by energy."""
  front: list[tuple[float, float]] = []
  for energy, error in sorted(points):
    if not front or error < front[-1][1]:
      front.append((energy, error))
  return front


def microjoules(row: Mapping[str, Any], width: str, sample: str = "no read-out") -> float:
  """Of a row, counts read as their code."""
  return row["energy_uj"][width]["code"][sample]


def in_panel(row: Mapping[str, Any], width: str) -> float | None:
  """The energy of a row where p-bits have weights of this width; real units have their own."""
  if row["random"]:
    return microjoules(row, width)
  own = row["numerics"]
  return microjoules(row, own) if own in WIDTHS else None


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> str:
  """Markdown: one line an answer."""
  lines = [
    f"# {title}",
    "",
    "| point | readout | samples | error % | " + " | ".join(f"{w}, uJ" for w in WIDTHS) + " |",
    "|---" * (4 + len(WIDTHS)) + "|",
  ]
  for row in rows:
    cells = []
    for width in WIDTHS:
      cell = f"{microjoules(row, width):.4g}"
      if row["random"] and row["samples"]:
        cell += f" ({microjoules(row, width, 'with read-out'):.4g})"
      cells.append(cell)
    samples = row["samples"] or ("mean field" if row["random"] else "-")
    lines.append(
      f"| {row['preset']} | {row['readout']} | {samples} | {row['mean']:.2f} +- "
      f"{row['std'] or 0:.2f} | {' | '.join(cells)} |"
    )
  return "\n".join([*lines, "", NOTE, ""])


def draw(rows: Sequence[Mapping[str, Any]], title: str, path: Any) -> None:
  """Error against energy: a line a point over its samples, a diamond its mean field; real units as
  stars; dotted what nothing beats. A row of panels a readout.
  """
  readouts = list(dict.fromkeys(r["readout"] for r in rows))
  widths = ("float32", "int8")
  figure, grid = plt.subplots(
    len(readouts), 2, figsize=(10, 3.6 * len(readouts)), layout="constrained", squeeze=False,
    sharex=True, sharey="row",
  )  # fmt: skip
  for line, readout in zip(grid, readouts, strict=True):
    for axes, width in zip(line, widths, strict=True):
      shown = [(in_panel(r, width), r) for r in rows if r["readout"] == readout]
      known = [(x, r) for x, r in shown if x is not None]
      for label in dict.fromkeys(r["preset"] for _, r in known):
        own = sorted(
          ((x, r) for x, r in known if r["preset"] == label), key=lambda pair: pair[1]["samples"]
        )
        sampled = [(x, r) for x, r in own if r["samples"]] or own
        bars = axes.errorbar(
          [x for x, _ in sampled],
          [r["mean"] for _, r in sampled],
          yerr=[r["std"] or 0 for _, r in sampled],
          marker="o" if sampled[0][1]["random"] else "*",
          ms=5 if sampled[0][1]["random"] else 11,
          lw=1,
          label=label,
        )
        for x, r in own:
          if r["random"] and not r["samples"]:
            axes.plot(x, r["mean"], "D", mfc="none", color=bars[0].get_color())
      front = pareto((x, r["mean"]) for x, r in known)
      axes.step(*zip(*front, strict=True), where="post", color="gray", ls=":", lw=1.5)
      axes.set(xscale="log", title=f"{readout}; p-bits with {width} weights")
      axes.grid(alpha=0.3)
    line[0].set_ylabel("test error %")
  for axes in grid[-1]:
    axes.set_xlabel("modelled uJ of an answer, products and p-bits")
  grid[0][0].legend(frameon=False, fontsize=8)
  figure.suptitle(title)
  figure.savefig(path, dpi=120)
  plt.close(figure)
