"""Result rows: the schema that the report reads."""

import numpy as np
import pytest

from experiments import results


def test_a_row_has_sample_statistics_and_every_row_says_how_local_its_method_is():
  row = results.row("speedup", [1.0, 2.0, 4.0], locality="strict", rival="none")
  assert (row["locality"], row["rival"], row["values"]) == ("strict", "none", [1.0, 2.0, 4.0])
  assert row["mean"] == pytest.approx(7 / 3, rel=1e-5)
  assert row["std"] == pytest.approx(np.std([1, 2, 4], ddof=1), rel=1e-3)
  assert results.row("speedup", [1.0], locality="strict")["std"] is None
  with pytest.raises(TypeError, match="locality"):
    results.row("speedup", [1.0])


def test_speedups_are_ratios_round_by_round_and_take_any_column():
  seconds = {"mine": [1.0, 2.0, 4.0], "theirs": [2.0, 6.0, 4.0]}
  (row,) = results.speedups(
    seconds, "mine", ["theirs", "mine", "absent"], locality="strict", seconds={"label": [1.0]}
  )
  assert (row["rival"], row["mean"], row["median"]) == ("theirs", 2.0, 2.0)
  assert row["seconds"] == {"label": [1.0]}
