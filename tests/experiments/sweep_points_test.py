"""Points in one program are the runs that they would be alone."""

import pytest

from experiments import config, sweep_points
from experiments.assembly import build
from experiments.sweep_axes import grid, with_values
from fflax.training.loop import train

BASE = with_values(
  config.load_preset("ff_digits"),
  {"mlp.sizes": (24, 16), "epochs": 2, "eval_every": 1, "readouts": ("score_sum",)},
)
TRACED = ["optimizer.learning_rate", "forward_forward.theta"]


@pytest.fixture(scope="module")
def points():
  axes = {"optimizer.learning_rate": (0.003, 0.03), "forward_forward.theta": (1.0, 2.0)}
  found, _ = grid(BASE, {"seed": (3, 4), **axes})
  return [found[1], found[6]]  # they differ in everything


@pytest.fixture(scope="module")
def dataset():
  return build(BASE).dataset


def test_a_point_of_a_program_is_the_run_of_its_own(points, dataset):
  """Seeds, learning rate and threshold under one vmap against the library's own loop."""
  seeds = {p.config.seed: dataset for p in points}
  told = []
  found = sweep_points.run_together(points, TRACED, seeds, lambda *one: told.append(one))
  assert [epoch for epoch, _ in told] == [1, 2]
  # The second: were a number of the first compiled for both, its run would be another.
  own, rows = build(points[1].config, dataset), []
  train(
    own.trainer, own.feed, own.init(), own.images, own.labels, own.plan,
    evaluate=own.evaluator("test", dataset.test), on_row=rows.append,
  )  # fmt: skip
  assert len(rows) == 2
  for epoch, row in enumerate(rows):
    want = {k.removeprefix("test/"): v for k, v in row.items() if k.startswith("test/")}
    got = {k: v for k, v in found[1]["history"][epoch].items() if k != "epoch"}
    # Sums run in another order under vmap: an answer of 360 may differ.
    assert got == pytest.approx(want, abs=1.1 / 360)
    assert told[epoch][1][1] == got
  assert found[1]["accuracy"]["test"] == got
  assert abs(found[0]["accuracy"]["test"]["accuracy/score_sum"] - got["accuracy/score_sum"]) > 0.05
  assert [one["diverged"] for one in found] == [None, None]
