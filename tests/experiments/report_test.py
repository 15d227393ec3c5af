"""The page of all results: gaps by hand, what a row says of its cost, files that are none."""

import json

import numpy as np
import pytest
from scipy import stats

from experiments import config, gaps, marked, report, results
from experiments.card import Task, traced_trainer
from experiments.controls import matched_backprop
from experiments.front_table import front_table
from experiments.row_costs import row_costs

COLUMNS = {
  "dataset": "digits", "network": "mlp 8", "numerics": "float32", "epochs": 3, "seeds": [0, 1, 2],
  "command": "python -m a", "readout": "score_sum", "preset": "p", "published": None,
}  # fmt: skip


def row(method, values, **changes):
  columns = {**COLUMNS, "method": method, **changes}
  return results.row("test_error_percent", values, locality="strict", **columns)


def test_the_control_has_the_same_data_network_setting_and_numerics():
  mine = row("hyperspherical", [1.0])
  other = [
    row("backprop", [0.05], members=4),
    row("backprop", [0.07], setting={"activation": "tanh"}),
    row("backprop", [0.1], dataset="mnist"),
    row("backprop", [0.2], network="mlp 9"),
    row("backprop", [0.3], numerics="int8"),
    row("backprop", []),
    row("forward_forward", [0.4]),
    row("backprop", [3.0], command="another", epochs=9),
  ]
  assert gaps.control_row(mine, other[:7]) is None
  assert gaps.control_row(mine, other)["mean"] == 3.0
  other.append(row("backprop", [4.0], command="another"))
  assert gaps.control_row(mine, other)["mean"] == 4.0  # as many epochs
  other.append(row("backprop", [5.0], epochs=9))
  assert gaps.control_row(mine, other)["mean"] == 5.0  # a point of the same study
  assert gaps.control_row(row("backprop (qwix)", [1.0]), other) is None


def test_gaps_are_paired_by_seed_where_they_can_be():
  mine, control = [3.0, 3.5, 4.5], [2.0, 3.0, 3.5]
  paired = gaps.paired_gap(row("a", mine), row("backprop", control))
  interval = stats.ttest_rel(mine, control).confidence_interval()
  assert paired.paired
  assert paired.points == pytest.approx(np.mean(mine) - np.mean(control))
  assert paired.half_width == pytest.approx((interval.high - interval.low) / 2)
  assert paired.ratio == pytest.approx(np.mean(mine) / np.mean(control))
  odds = [(100 - np.mean(v)) / np.mean(v) for v in (mine, control)]
  assert paired.log_odds == pytest.approx(np.log(odds[1] / odds[0]))
  assert str(paired) == "+0.83 +- 0.72; x 1.29, +0.27; p"
  other = gaps.paired_gap(row("a", mine), row("backprop", control[:2], seeds=[4, 5]))
  interval = stats.ttest_ind(mine, control[:2], equal_var=False).confidence_interval()
  assert not other.paired
  assert other.half_width == pytest.approx((interval.high - interval.low) / 2)
  single = gaps.paired_gap(row("a", [3.0], seeds=[0]), row("backprop", [2.0], seeds=[0]))
  assert str(single) == "+1.00; x 1.50, +0.42; p"
  perfect = gaps.paired_gap(row("a", [3.0]), row("backprop", [0.0]))
  assert (perfect.ratio, perfect.log_odds) == (np.inf, np.inf)


def test_costs_of_a_row_are_those_of_its_products_and_its_control():
  chosen = config.load_preset("hff_digits")
  found = row_costs(chosen, Task((8, 8, 1), 10, "digits"), memory=False)
  weights = [64 * 256, 256 * 256, 256 * 256]
  scores = 3 * 256 * 10
  # One pass forward, one for the gradients of weights; of prototypes and features both ways.
  assert found["training_macs"] == 2 * sum(weights) + 3 * scores
  assert found["prediction_macs"]["score_sum"] == sum(weights) + scores
  # Backprop has a head, and the gradients of all inputs but the image's.
  head = 256 * 10
  assert found["control"]["training_macs"] == 3 * (sum(weights) + head) - weights[0]
  assert found["step_bytes"] is None
  assert row_costs(config.load_preset("bp_digits"), memory=False)["control"] is None


def test_a_control_has_one_view():
  """Label maps and statistics or scales by view would be of nothing in it."""
  parted = config.from_mapping(
    {
      "network": "small_cnn",
      "networks": {
        "small_cnn": {"channels": (4, 4), "batch_norm": True, "norm_groups": 2, "label_maps": 10}
      },
      "methods": {"forward_forward": {"label_style": "channels", "goodness": "mean"}},
      "numerics": "int8",
      "int8": {"scale_groups": 2, "weight_scale": "channel"},
      "schedule": "greedy",
      "epochs_per_layer": 3,
      "data": {"batch_size": 4},
    }
  )
  task = Task((8, 8, 1), 10, "digits")
  for head in (None, "cosine"):
    control = matched_backprop(parted, head)
    options = control.networks["small_cnn"]
    assert (options["label_maps"], options["norm_groups"], options["channels"]) == (0, 1, (4, 4))
    assert (control.int8.scale_groups, control.int8.weight_scale) == (1, "channel")
    assert control.epochs_per_layer == 0
    assert traced_trainer(control, task).locality == "global"


def write(folder, name, rows):
  study = {"study": name, "commit": "abc", "versions": {"jax": "1"}, "device": "cpu", "rows": rows}
  (folder / f"{name}.json").write_text(json.dumps(study))


def test_the_page_holds_every_number_with_its_command_and_figure(tmp_path):
  cost = {
    "training_macs": 3e6, "prediction_macs": {"score_sum": 1e6}, "step_bytes": 2**20,
    "control": {"training_macs": 2e6, "step_bytes": 2**21},
  }  # fmt: skip
  write(tmp_path, "one", [
    row("hyperspherical", [3.0, 3.5, 4.5], cost=cost, published=2.5),
    row("backprop", [2.0, 3.0, 3.5]),
    row("hyperspherical", [9.0] * 3, readout="layer dense_1"),
    row("forward_forward", [], preset="<b>"),
    row("forward_forward", [7.0, 8.0], preset="half", seeds=[0, 1], diverged=[2]),
  ])  # fmt: skip
  write(tmp_path, "two", [
    results.row("speedup", [2.0, 4.0], locality="strict", rival="torch", preset="fast")
  ])  # fmt: skip
  (tmp_path / "one.png").write_bytes(b"figure")
  report.make_report(tmp_path, tmp_path)
  text = (tmp_path / "report.md").read_text()
  line = (
    "| hyperspherical | p | mlp 8 | float32 | score_sum | 3.67 +- 0.76 | 3 | strict | "
    "+0.83 +- 0.72; x 1.29, +0.27; p | 3.00 M (1.50) | 1.00 M | 1.05 MB (0.50) | 2.5 | one |"
  )
  assert line in text.splitlines()
  assert "| speedup | fast | - | torch | 3.00 +- 1.41 | - | cpu | two |" in text.splitlines()
  assert "| diverged |" in text
  assert "| 7.50 +- 0.71 (1 diverged) |" in text
  assert "9.00" not in text  # layers have figures of their own
  assert "![one](one.png)" in text
  assert "`python -m a`" in text
  page = (tmp_path / "report.html").read_text()
  assert "data:image/png;base64,ZmlndXJl" in page
  assert "&lt;b&gt;" in page
  assert "<b>" not in page


@pytest.mark.parametrize("content", [None, "{", "[]", '{"rows": [{}]}', '{"rows": []}'])
def test_a_folder_without_results_or_with_others_is_refused(tmp_path, content):
  if content is not None:
    (tmp_path / "odd.json").write_text(content)
  with pytest.raises(ValueError, match="result file"):
    report.make_report(tmp_path, tmp_path)
  assert not (tmp_path / "report.md").exists()


def test_the_front_page_shows_the_results_that_are_there(repo_root):
  """A result file that came or went without `make report` shows here."""
  first, last = marked.marks("results")
  shown = (repo_root / "README.md").read_text().partition(first)[2].partition(last)[0]
  assert shown.strip() == front_table(results.read_studies(results.FOLDER)).strip()


def test_the_front_table_has_a_line_for_every_preset_run_in_full(tmp_path):
  """By the preset's own readout, beside a control of another study; no points, nothing short."""
  augment = {"shift": 2, "shift_fill": "zero", "flip": False}
  own = {
    "command": "python -m experiments.studies.seeds --config=c",
    "setting": {"data": {"validation": 1000, "augment": augment}},
  }
  write(tmp_path, "hff", [
    row("hyperspherical", [9.0, 9.0, 9.0], preset="hff_digits", readout="last_layer", **own),
    row("hyperspherical", [3.0, 3.5, 4.5], preset="hff_digits", published=2.5, **own),
  ])  # fmt: skip
  write(tmp_path, "bp", [row("backprop", [2.0, 3.0, 3.5], preset="bp_digits", **own)])
  write(tmp_path, "hff_short_1_epochs", [row("hyperspherical", [1.0], preset="hff_digits", **own)])
  write(tmp_path, "grid", [row("backprop", [1.5], preset="a point")])
  lines = front_table(results.read_studies(tmp_path)).splitlines()
  where = "digits, 1,000 held out, shift 2"
  assert lines[2:] == [
    f"| {where} | backprop | `bp_digits`, 3 epochs | float32 | score_sum | strict "
    "| 2.83 +- 0.76 | 3 | - | - | - | - |",
    f"| {where} | hyperspherical | `hff_digits`, 3 epochs | float32 | score_sum | strict "
    "| 3.67 +- 0.76 | 3 | 2.5 | +0.83 +- 0.72 | - | - |",
  ]
