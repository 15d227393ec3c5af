"""Studies of many points: every grid is possible, and a table says what was not reached."""

import dataclasses

import numpy as np
import pytest

from experiments import config, pbit_hardware, results
from experiments.assembly import build, check
from experiments.firing import Product
from experiments.studies import comparison, points
from experiments.studies.grids import GRIDS, Grid


def test_changes_are_laid_over_the_preset():
  base = {"a": {"b": 1, "c": {"d": 2}}, "e": (1, 2)}
  merged = comparison.merge(base, {"a": {"c": {"d": 3}, "f": 4}, "e": (5,)})
  assert merged == {"a": {"b": 1, "c": {"d": 3}, "f": 4}, "e": (5,)}
  assert base == {"a": {"b": 1, "c": {"d": 2}}, "e": (1, 2)}


@pytest.mark.parametrize("name", GRIDS)
def test_every_point_can_run_and_differs_from_the_others(name):
  """A point with a field that its preset does not read would be a copy under another label."""
  study = GRIDS[name]()
  chosen = comparison.configurations(study, 3, "somewhere")
  assert list(chosen) == list(study.points)
  for point in chosen.values():
    check(point)
    assert (point.epochs, point.data.data_dir) == (3, "somewhere")
  assert len({config.fingerprint(c) for c in chosen.values()}) == len(chosen)
  assert set(study.published) <= set(study.points)


def test_an_impossible_point_is_named():
  wrong = Grid(
    "", "ff_digits", {"good": {}, "bad": {"networks": {"mlp": {"sizes": (3,)}}, "epochs": 0}}
  )
  with pytest.raises(ValueError, match="^point 'bad': epochs must be at least 1, not 0$"):
    comparison.configurations(wrong, None, "")


def test_table_and_figure_show_what_diverged(tmp_path):
  columns = {"seeds": [0, 1], "diverged": [], "locality": "strict"}
  rows = [
    results.row("e", [2.0, 3.0], **columns, preset="a", published=2.3),
    results.row(
      "e", [], **{**columns, "seeds": [], "diverged": [0, 1]}, preset="b", published=None
    ),
  ]
  assert (rows[1]["mean"], rows[1]["std"]) == (None, None)
  study = Grid("Title", "ff_digits", {}, {}, "A note.")
  lines = comparison.table(study, rows).splitlines()
  assert "| a | 2.50 +- 0.71 | 2 | 0 | strict | 2.3 |" in lines
  assert "| b | - | 0 | 2 | strict |  |" in lines
  assert lines[-1] == "A note."
  comparison.draw(study, rows, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000


def test_answers_of_one_state_stand_in_one_line(tmp_path):
  columns = {"seeds": [0], "diverged": [], "locality": "strict", "published": None}
  rows = [
    results.row("e", [10.0 * i + s], **columns, preset=label, readout=readout, samples=s)
    for i, (label, ways) in enumerate({"pbits": (1, 0), "real": (0,)}.items())
    for readout in ("a", "b")
    for s in ways
  ]
  study = Grid("Title", "bsff_digits", {}, samples=(1, 0), readouts=("a", "b"))
  lines = comparison.table(study, rows).splitlines()
  ways = [f"{r}, {how}, error %" for r in "ab" for how in ("1 sample", "mean field")]
  assert lines[2] == f"| | {' | '.join(ways)} | seeds | diverged | locality | published % |"
  assert lines[4:6] == [
    "| pbits | 1.00 | 0.00 | 1.00 | 0.00 | 1 | 0 | strict |  |",
    "| real | - | 10.00 | - | 10.00 | 1 | 0 | strict |  |",
  ]
  comparison.draw(study, rows, tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000


def test_readouts_of_one_state_are_columns_without_samples_too():
  columns = {"seeds": [0], "diverged": [], "locality": "strict", "published": None, "preset": "a"}
  rows = [results.row("e", [v], **columns, readout=r) for r, v in (("one", 1.0), ("two", 2.0))]
  lines = comparison.table(Grid("Title", "ff_digits", {}), rows).splitlines()
  assert lines[2] == "| | one, error % | two, error % | seeds | diverged | locality | published % |"
  assert lines[4] == "| a | 1.00 | 2.00 | 1 | 0 | strict |  |"


def test_points_are_asked_for_every_answer_of_one_state(tmp_path, monkeypatch):
  """Trained once; the answers differ, and are those of runs with that number of samples."""
  changes = {
    "networks": {"cfse": {"channels": (10,), "groups": (1,), "pool_after": (1,)}},
    "epochs": 1,
    "data": {"batch_size": 100},
  }
  study = Grid("T", "bsff_digits", {"p": changes}, samples=(2, 0), readouts=("softmax_last",))
  chosen = comparison.configurations(study, None, "")["p"]
  runs = []

  def run_in(experiment, state, folder):
    runs.append(folder)
    return state

  monkeypatch.setattr(points, "run_in", run_in)
  monkeypatch.setattr(points, "prove_locality", lambda experiment: np.eye(1, dtype=bool))
  point = points.run_point(chosen, [3], tmp_path, study.samples)
  assert len(runs) == 1
  assert list(point.tests) == [2, 0]
  experiment = build(dataclasses.replace(chosen, seed=3, eval_samples=2))
  state = experiment.init()
  data = experiment.dataset.test
  wanted = experiment.evaluator("test", data)(state)["test/accuracy/last_layer"]
  assert point.tests[2][0]["accuracy/last_layer"] == float(wanted)
  rows = points.rows_of(point, study, "p", [3], "command")
  assert [(r["samples"], r["readout"], r["seeds"]) for r in rows] == [
    (2, "softmax_last", [3]), (0, "softmax_last", [3]),
  ]  # fmt: skip
  costs = points.costs_of(point, study)
  one = pbit_hardware.from_dict(costs["passes"]["softmax_last"])
  assert one.macs == 9 * 64 * 10
  assert [p.name for p in one.products] == ["softmax_last"]
  assert one.products[0].thermo == pytest.approx(10 * 160 * costs["firing"][0][0]["mean_count"])


def test_the_mean_of_passes():
  one, two = (pbit_hardware.Pass(5, 6, [Product("a", 7, 2.0 * i, 1.0 * i, 9)]) for i in (1, 3))
  assert pbit_hardware.mean([one, two]) == one._replace(products=[Product("a", 7, 4.0, 2.0, 9)])
