"""Studies of many points: every grid is possible, and a table says what was not reached."""

import pytest

from experiments import config, results
from experiments.assembly import check
from experiments.studies import comparison
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
    "", "ff_digits", {"good": {}, "bad": {"networks": {"mlp": {"depth": 3}}, "epochs": 0}}
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
