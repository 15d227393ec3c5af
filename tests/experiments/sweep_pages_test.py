"""What a sweep says: rows that the report reads, the best by the right split, a table, a figure."""

import json

import pytest

from experiments import config, results, sweep_pages
from experiments.sweep_axes import grid

AXES = {"seed": (0, 1), "optimizer.learning_rate": (0.01, 0.1, 1.0), "mlp.sizes": ((8,), (8, 4))}


def finished(validation: bool):
  points, _ = grid(config.load_preset("ff_digits"), AXES)
  found = []
  for point in points:
    rate, wide = point.config.optimizer.learning_rate, len(point.settings["mlp.sizes"])
    test = {"accuracy/score_sum": 0.9 - rate / 10 - wide / 100 - point.config.seed / 50}
    # The validation split prefers what the test split does not.
    held = {"validation": {"accuracy/score_sum": 0.5 + rate}} if validation else {}
    gone = "the loss is not finite" if rate == 1.0 and point.config.seed == 1 else None
    one = {"diverged": gone, "accuracy": None if gone else {**held, "test": test}}
    found.append((point, {**one, "locality": "strict", "locality_matrix": [[1]]}))
  return found


@pytest.mark.parametrize("validation", [False, True])
def test_seeds_share_a_row_and_the_best_is_chosen_by_validation(validation, tmp_path):
  rows = sweep_pages.rows_of(finished(validation), "python -m experiments.sweep")
  assert len(rows) == 6
  first = rows[0]
  assert first["preset"] == "optimizer.learning_rate=0.01, mlp.sizes=8"
  assert first["values"] == pytest.approx([11.1, 13.1])
  assert (first["seeds"], first["diverged"], first["network"]) == ([0, 1], [], "mlp 8")
  assert (rows[-1]["seeds"], rows[-1]["diverged"]) == ([0], [1])

  best, why = sweep_pages.best(rows)
  assert best["settings"]["optimizer.learning_rate"] == (1.0 if validation else 0.01)
  assert ("validation" in why) == validation
  (tmp_path / "sweep.json").write_text(json.dumps(results.as_study("sweep", rows)))
  assert results.read_studies(tmp_path)[0]["rows"] == json.loads(json.dumps(rows))

  text = sweep_pages.markdown("Sweep", rows, ["a note"]).splitlines()
  seen = "51.00" if validation else "-"
  assert f"| 0.01 | 8 | 12.10 +- 1.41 | {seen} | 2 | 0 | strict |" in text
  assert text[-1] == "- a note"
  path = sweep_pages.draw("Sweep", rows, tmp_path / "sweep.png")
  assert path.read_bytes().startswith(b"\x89PNG")


def test_there_may_be_nothing_to_draw_or_to_choose(tmp_path):
  rows = sweep_pages.rows_of(finished(False), "")
  lost = [{**r, "values": [], "mean": None, "std": None, "seeds": []} for r in rows]
  assert sweep_pages.best(lost) == (None, "")
  assert sweep_pages.draw("Sweep", lost, tmp_path / "a.png") is None
  assert sweep_pages.draw("Sweep", rows[:1], tmp_path / "a.png") is None
  assert "| - | - | 0 | 0 |" in sweep_pages.markdown("Sweep", lost, [])
