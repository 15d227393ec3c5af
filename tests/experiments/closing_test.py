"""The end of a run: what is written, and which figures a run can have."""

import json

import numpy as np
import pytest

from experiments import closing, figures
from experiments.assembly import Experiment, build
from experiments.config import from_mapping
from fflax.data.dataset import Dataset, Split

ROW = '{"step": 1, "epoch": 1.0, "train/local_1/loss": 1.0, "test/accuracy/score_sum": 0.5}\n'


@pytest.fixture(scope="module")
def local() -> Experiment:
  """A net of local receptive fields, whose first kernel `[points, patch, units]` is no image."""
  rng = np.random.default_rng(0)
  split = Split(rng.integers(0, 255, (20, 6, 6, 1), np.uint8), np.arange(20, dtype=np.int32) % 3)
  options = {"features": (4,), "fields": (3,), "strides": (3,)}
  values = {
    "network": "local_mlp",
    "networks": {"local_mlp": options},
    "data": {"batch_size": 10},
  }
  values["methods"] = {"forward_forward": {"supervision": "hybrid"}}
  values["readouts"] = ("softmax_head",)
  return build(from_mapping(values), Dataset("tiny", split, None, split, 3, 255))


def test_a_kernel_that_is_no_image_is_left_out(local, tmp_path):
  """Its bias is 2-D: drawn in the kernel's place it would be a wrong picture or a traceback."""
  (tmp_path / "metrics.jsonl").write_text(ROW)
  lines = closing.draw_figures(local, local.init(), tmp_path)
  assert [line.split()[0] for line in lines] == ["figure"] * len(lines)
  drawn = {p.name for p in (tmp_path / "figures").iterdir()}
  assert drawn == {"curves.png", "goodness.png"}


def test_a_figure_that_fails_costs_neither_the_summary_nor_the_others(
  local, tmp_path, monkeypatch, capsys
):
  def refuse(*_: object) -> None:
    assert (tmp_path / "summary.json").exists()
    raise ValueError("nothing to draw")

  monkeypatch.setattr(figures, "goodness_histograms", refuse)
  (tmp_path / "metrics.jsonl").write_text(ROW)
  closing.close_run(local, local.init(), np.eye(1, dtype=bool), tmp_path)
  assert json.loads((tmp_path / "summary.json").read_text())["accuracy"]["test"]
  assert (tmp_path / "figures" / "curves.png").exists()
  assert "figure    goodness left out: nothing to draw" in capsys.readouterr().out
