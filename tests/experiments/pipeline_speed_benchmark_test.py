"""The benchmark of pipelines at sizes that take no time: it runs, and costs are counted right.

What it measures is not tested.
"""

import functools
import time

import pytest

from experiments.assembly import build
from experiments.benchmarks import pipeline_speed
from experiments.config import load_preset
from experiments.staging import choose_stages, layer_costs
from fflax.training.pipeline import make_pipeline
from tests.experiments.assembly_test import tiny

WIDTHS, BATCH = (12, 12, 6), 4


def test_smoke():
  experiment = pipeline_speed.make_experiment(WIDTHS, BATCH, (6, 6, 1))
  costs = layer_costs(experiment)
  # Positive and negative view, forward and weight gradient; the label stands before the image.
  assert costs == tuple(2 * 2 * BATCH * n for n in (46 * 12, 12 * 12, 12 * 6))
  sizes = choose_stages(experiment, 2)
  assert sizes == (1, 2)
  times = pipeline_speed.stage_seconds(experiment, sizes, 3)
  runs = {
    "one core": pipeline_speed.alone(experiment, 3),
    "pipeline": pipeline_speed.pipelined(
      experiment, functools.partial(make_pipeline, sizes=(3,)), 3
    ),
  }
  seconds: dict[str, list[float]] = {name: [] for name in runs}
  for name, run in runs.items():
    for _ in range(2):
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
  rows = pipeline_speed.rows(experiment, sizes, seconds, times, 3)
  values = {(r["metric"], r["preset"]): r["values"] for r in rows}
  assert len(values["speedup", "measured"]) == 2
  assert all(r["preset"] != "one program" for r in rows)
  seconds["one program"] = seconds["pipeline"]
  both = pipeline_speed.rows(experiment, sizes, seconds, times, 3)
  one = [r for r in both if r["preset"] == "one program"]
  assert [r["rival"] for r in one] == ["one core", "pipeline"] and one[1]["values"] == [1, 1]
  # Three batches in stages of 552 and 216.
  [predicted] = values["predicted_speedup", "of multiply-accumulates"]
  assert predicted == pytest.approx(3 * 768 / (768 + 2 * 552), rel=1e-5)


@pytest.mark.slow
def test_counted_bound_of_vgg8():
  """DTG-FF's VGG8 at 32x32 on four devices: 3.13, within 5 % with its heads counted."""
  experiment = build(load_preset("dtg_cifar10"), tiny(32, 32, 3))
  costs = layer_costs(experiment)
  assert choose_stages(experiment, 4) == (2, 1, 1, 3)
  assert sum(costs) / max(costs[0] + costs[1], costs[2], costs[3]) == pytest.approx(3.13, rel=0.05)
