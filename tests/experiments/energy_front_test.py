"""Energies of answers by hand, and the front of what is not beaten."""

import pytest

from experiments import pbit_hardware, results
from experiments.firing import Product
from experiments.pbit_hardware import Pass
from experiments.studies import energy_front
from experiments.studies.pbit_grids import CHANNELWISE

RANDOM = Pass(100.0, 40.0, [Product("b", 900, 700.0, 500.0, 16)])
REAL = Pass(1000.0)


def make_study(**changes):
  points = {"M = 1": (RANDOM, "float32", (1, 4, 0)), CHANNELWISE: (REAL, "float32", (0,)),
            "int8": (REAL, "int8", (0,))}  # fmt: skip
  columns = {"seeds": [0, 1], "locality": "strict", "dataset": "digits", "readout": "a"}
  rows = [
    results.row("e", [10.0 - s, 12.0 - s], **columns, preset=label, numerics=numerics, samples=s)
    for label, (_, numerics, samples) in points.items()
    for s in samples
  ]
  costs = {
    label: {"firing": [], "passes": {"a": pbit_hardware.as_dict(one)}}
    for label, (one, *_) in points.items()
  }
  return {"study": "s", "rows": rows, "costs": costs, **changes}


def test_energies_by_hand():
  rows = energy_front.rows_of(make_study(), "horowitz_45nm")
  got = {(r["preset"], r["samples"]): r["energy_uj"] for r in rows}
  want = {  # pJ: width, reading, p-bit
    ("M = 1", 1, "float32", "code", "no read-out"): 100 * 4.6 + 500 * 0.9 + 40 * 0.002,
    ("M = 1", 4, "float32", "thermo", "no read-out"): 100 * 4.6 + 4 * (700 * 0.9 + 40 * 0.002),
    ("M = 1", 4, "int8", "code", "with read-out"): 100 * 0.3
    + 4 * (500 * 0.1 * 16 / 32 + 40 * 1.70709),
    ("M = 1", 0, "float16", "code", "with read-out"): 1000 * 1.5,  # the mean field is real
    (CHANNELWISE, 0, "float32", "code", "no read-out"): 1000 * 4.6,
    ("int8", 0, "int8", "thermo", "no read-out"): 1000 * 0.3,
  }
  for (label, samples, width, reading, sample), pj in want.items():
    assert got[label, samples][width][reading][sample] == pytest.approx(1e-6 * pj)


def test_what_is_not_known_is_left_out():
  study = make_study()
  del study["costs"][CHANNELWISE]
  found = [(r["preset"], r["samples"]) for r in energy_front.rows_of(study, "horowitz_45nm")]
  assert found == [("M = 1", 1), ("M = 1", 4), ("int8", 0)]
  study["rows"][0]["values"] = []
  assert len(energy_front.rows_of(study, "horowitz_45nm")) == 2
  with pytest.raises(ValueError, match="no grid of p-bits"):
    energy_front.rows_of(make_study(costs={}), "horowitz_45nm")


def test_the_front():
  points = [(3.0, 5.0), (1.0, 9.0), (2.0, 9.0), (4.0, 6.0), (1.0, 10.0), (5.0, 1.0)]
  assert energy_front.pareto(points) == [(1.0, 9.0), (3.0, 5.0), (5.0, 1.0)]


def test_table_and_figure(tmp_path):
  rows = energy_front.rows_of(make_study(), "horowitz_45nm")
  text = energy_front.table_of(rows, "T")
  assert "| M = 1 | a | 4 | 7.00 +- 1.41 | 0.00226 (0.002533) |" in text
  assert "| M = 1 | a | mean field | 11.00 +- 1.41 | 0.0046 | 0.0015 | 0.0003 |" in text
  assert "| int8 | a | - |" in text
  # Real units stand where they were trained, whatever the panel's p-bits have.
  by_label = {(r["preset"], r["samples"]): r for r in rows}
  for width in ("float32", "int8"):
    assert energy_front.in_panel(by_label["int8", 0], width) == pytest.approx(3e-4)
    assert energy_front.in_panel(by_label[CHANNELWISE, 0], width) == pytest.approx(4.6e-3)
  energy_front.draw(rows, "T", tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000
