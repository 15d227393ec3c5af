"""The memory audit: cells at equal micro-batch, ratios of like with like, a study that goes on."""

import json

import pytest
from absl import flags
from absl.testing import flagsaver

from experiments import cli, results
from experiments.card import Task, traced_trainer
from experiments.studies import memory_audit, memory_cells, memory_figures
from experiments.studies.memory_cells import CLASSES, GLOBAL, METHODS, Cell, cells, configuration


@pytest.fixture(scope="module", autouse=True)
def parsed_flags():
  if not flags.FLAGS.is_parsed():
    flags.FLAGS(["memory_audit"])


def test_every_method_comes_plain_accumulated_and_where_it_can_rematerialised():
  found = cells(list(METHODS), "mlp", 4, [2, 8], 8)
  variants = {m: [c.variant for c in found if c.micro == m] for m in (2, 8)}
  assert [v for v in variants[2] if v.startswith("dtg")] == ["dtg", "dtg, accumulated"]
  assert [v for v in variants[8] if v.startswith("dtg")] == ["dtg"]
  assert "backprop, accumulated, rematerialized" in variants[2]
  assert "backprop, rematerialized" in variants[8]
  for cell in found:
    chosen = configuration(cell)
    assert chosen.data.batch_size * chosen.optimizer.accumulate == 8 or cell.accumulate == 1
    assert chosen.rematerialize == cell.rematerialize <= (cell.method in GLOBAL)
    if cell.micro == cell.accumulate * 8:
      trainer = traced_trainer(chosen, Task((8, 8, 3), CLASSES, ""), plain=False)
      assert (trainer.locality == "global") == (cell.method in GLOBAL)
  with pytest.raises(ValueError, match="^unknown method 'ff'; there are dtg, "):
    cells(["ff"], "mlp", 8, [2], 8)
  with pytest.raises(ValueError, match="must divide the batch of 8, which 3 does not$"):
    cells(["dtg"], "mlp", 8, [3], 8)


def test_a_cell_counts_state_and_batch_apart_and_is_timed():
  plain = memory_cells.measure(Cell("dtg", "mlp", 4, 3), rounds=2)
  summed = memory_cells.measure(Cell("dtg", "mlp", 4, 3, accumulate=4))
  rival = memory_cells.measure(Cell("backprop", "mlp", 4, 3, accumulate=4))
  weights = plain["gradients"]
  assert plain["batch"] == 4 * 3 * (4 * 4 * 3 + 1)
  # Two moments, or two moments and a sum of gradients, beside weights and fixed readouts.
  assert 3 * weights < plain["state"] < summed["state"] < 5 * weights
  assert summed["state"] - plain["state"] == pytest.approx(weights, abs=100)
  for found in (plain, summed, rival):
    assert found["arguments"] == pytest.approx(found["state"] + found["batch"], abs=1000)
    whole = found["arguments"] + found["outputs"] - found["alias"] + found["temporaries"]
    assert found["peak"] == whole
  assert len(plain["images_per_second"]) == 2 and min(plain["images_per_second"]) > 0
  assert (plain["locality"], rival["locality"]) == ("strict", "global")
  assert "images_per_second" not in summed


def test_memory_that_does_not_suffice_is_a_result(monkeypatch):
  def refuse(*args):
    raise memory_cells.jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory\nmore")

  monkeypatch.setattr(memory_cells, "compiled_step", refuse)
  found = memory_cells.measure(Cell("dtg", "mlp", 4, 3))
  assert found["failed"] == "RESOURCE_EXHAUSTED: out of memory"
  assert "peak" not in found and found["images_per_second"] == []


def test_a_study_that_was_cut_goes_on_and_compares_like_with_like(tmp_path, monkeypatch):
  """Peaks are 100 MiB and 1 MiB an example for DTG-FF, 2 for backprop, 8 of it at most."""
  monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
  measured = []

  def measure(cell):
    if len(measured) == 5:
      raise KeyboardInterrupt
    measured.append(cell)
    local = cell.method == "dtg"
    temporaries = cell.micro * (1 if local else 2) * 2**20
    sizes = {"temporaries": temporaries, "peak": 100 * 2**20 + temporaries, "state": 2**20}
    locality = "strict" if local else "global"
    if cell.rematerialize and cell.micro == 8:
      return {"locality": locality, "failed": "RESOURCE_EXHAUSTED", "images_per_second": []}
    return {"locality": locality, **sizes}

  monkeypatch.setattr(memory_audit, "measure", measure)
  values = {"methods": "dtg; backprop", "micro": ["8", "4"], "batch": 8, "cells": str(tmp_path)}
  with flagsaver.flagsaver(network="mlp", size=4, **values):
    with pytest.raises(KeyboardInterrupt):
      memory_audit.main([])
    done = measured.copy()
    measured.clear()
    assert memory_audit.main([]) == 0
  assert len(done) == 5 and len(measured) == 3 and not set(done) & set(measured)
  path = tmp_path / "results" / "memory_audit_mlp_4.json"
  study = json.loads(path.read_text())
  found = {(r["preset"], r["rival"]): r for r in study["rows"] if r["metric"] == "memory_ratio"}
  assert {key: r["mean"] for key, r in found.items()} == {
    ("dtg, micro-batch 4", "backprop"): pytest.approx(104 / 108, rel=1e-5),
    ("dtg, accumulated, micro-batch 4", "backprop, accumulated"): pytest.approx(
      104 / 108, rel=1e-5
    ),
    ("dtg, accumulated, micro-batch 4", "backprop, accumulated, rematerialized"): pytest.approx(
      104 / 108, rel=1e-5
    ),
    ("dtg, micro-batch 8", "backprop"): pytest.approx(108 / 116, rel=1e-5),
  }
  assert all(r["temporaries_ratio"] == 0.5 for r in found.values())
  text = path.with_suffix(".md").read_text()
  assert "| backprop | 108 (8) | 116 (16) |" in text
  assert "| backprop, rematerialized |  | too large |" in text
  assert "| dtg / backprop | 0.96 (0.50) | 0.93 (0.50) |" in text
  assert path.with_suffix(".png").stat().st_size > 1000
  results.read_studies(path.parent)


def test_the_table_shows_throughput_and_the_measured_peak(tmp_path):
  cell = Cell("dtg", "mlp", 4, 8)
  sizes = {"temporaries": 2**20, "peak": 2**21, "state": 2**20, "device_peak": 3 * 2**20}
  found = {"locality": "strict", **sizes, "images_per_second": [10.0, 30.0, 20.0]}
  rows = memory_audit._rows(cell, found, "command")
  assert "| dtg | 20 (3) |" in memory_figures.table(rows, [])
  memory_figures.draw(rows, tmp_path / "figure.png")


@pytest.mark.parametrize(
  ("values", "message"),
  [
    ({"methods": ""}, "--methods needs at least one method"),
    ({"micro": []}, "--micro needs at least one micro-batch"),
    ({"micro": ["7"]}, "must divide the batch of 128"),
    ({"network": "nothing"}, "unknown network 'nothing'"),
  ],
)
def test_bad_input_is_refused(tmp_path, values, message):
  given = flagsaver.flagsaver(**{"cells": str(tmp_path), **values})
  with given, pytest.raises(cli.UsageError, match=message):
    memory_audit.main([])
