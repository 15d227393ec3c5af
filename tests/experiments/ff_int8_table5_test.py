"""Table V of FF-INT8: what stands in its columns, and in the grids' published errors."""

import dataclasses
import json

import pytest

from experiments import config, results
from experiments.studies import table5
from experiments.studies.grids import GRIDS
from fflax.training.lookahead import LookaheadConfig

# Typed a second time, as errors: backprop in float32, int8, UI8, GDAI8, then FF-INT8.
ERRORS = {
  "MLP": (5.5, 47.6, 7.7, 6.2, 5.7),
  "MobileNet-V2": (8.5, 94.1, 12.8, 9.1, 8.9),
  "EfficientNet-B0": (10.6, 88.2, 14.7, 11.1, 11.4),
  "ResNet-18": (6.5, 92.8, 10.3, 7.1, 6.9),
}


@pytest.mark.parametrize("network", table5.PUBLISHED)
def test_the_grids_show_the_published_errors(network):
  published = GRIDS[table5.NETWORKS[network]]().published
  labels = ("float32", "int8 nearest", "int8 ui8", "int8 gdai8 approximation")
  names = [*(f"backprop, {label}" for label in labels), "look-ahead, int8"]
  assert published == dict(zip(names, ERRORS[network], strict=True))


def test_seconds_are_those_of_a_usual_step(tmp_path):
  """The first row compiles, one evaluates, and a cut run repeats a step."""
  rows = [(10, 9.0), (20, 1.0), (30, 1.5), (20, 1.0), (30, 1.0), (40, 5.0), (50, 1.1)]
  lines = [json.dumps({"step": step, "seconds": s}) + "\n" for step, s in rows]
  (tmp_path / "timing.jsonl").write_text("".join(lines))
  assert table5.seconds_of(tmp_path, 1000) == pytest.approx(1000 * 0.13)


def test_joules_grow_with_steps_and_fall_with_int8():
  preset = config.load_preset("ffint8_digits")
  shallow = dataclasses.replace(preset, networks={"mlp": {"sizes": (64,)}})
  strict = dataclasses.replace(shallow, lookahead=LookaheadConfig(), method="backprop")
  floats, integers = (
    table5.joules_of(dataclasses.replace(strict, numerics=n), 100) for n in ("float32", "int8")
  )
  assert 0 < integers < floats
  assert table5.joules_of(strict, 200) == pytest.approx(2 * floats)
  # At least the products' own energy: 32 examples of 3F - F1 MACs at 4.6 pJ (float32).
  macs = 2 * 64 * 64 + 3 * 64 * 10
  assert floats > 100 * 32 * macs * 4.6e-12


def test_ours_and_published_stand_side_by_side(tmp_path):
  columns = {"preset": "look-ahead, int8", "diverged": [2], "locality": "lookahead"}
  values = {"test_accuracy_percent": ([97.0, 98.0], 94.3), "train_seconds": ([60.0], 312.7),
            "modelled_train_joules": ([5.0], 1097.0), "step_megabytes": ([], None)}  # fmt: skip
  rows = [results.row(m, v, published=p, **columns) for m, (v, p) in values.items()]
  assert (
    "| look-ahead, int8 | 97.5 +- 0.71 (94.3) | 60.0 (312.7) | 5.0 (1097.0) | - | 1 | lookahead |"
  ) in table5.table("Title", rows).splitlines()
  table5.draw("Title", rows, tmp_path / "f.png")  # float32 backprop, its unit, is not there yet
  assert (tmp_path / "f.png").stat().st_size > 1000
