"""The study of early exit in its shortest form: costs by hand, answers beside the evaluation's."""

import dataclasses

import jax.numpy as jnp
import matplotlib.image
import pytest

from experiments import config
from experiments.assembly import build
from experiments.studies import early_exit as study
from experiments.studies import exits
from fflax.data import sources
from fflax.data.dataset import Split
from tests.methods.tiny import made_up_state


def presets(**changes):
  base = config.load_preset("hff_digits")
  data = dataclasses.replace(base.data, validation=40, batch_size=8)
  options = {"networks": {"mlp": {"sizes": (16, 12)}}, "data": data, "eval_batch_size": 20}
  return {"hff": dataclasses.replace(base, **{**options, **changes})}


def test_measured_answers_and_costs(tmp_path):
  digits = sources.load("digits", validation=40)
  few = digits._replace(
    train=Split(*(a[:24] for a in digits.train)), test=Split(*(a[:60] for a in digits.test))
  )
  experiment = build(presets()["hff"], few)
  state = made_up_state(experiment.trainer, experiment.example())
  state = dataclasses.replace(state, step=jnp.ones((), jnp.int32))
  run = exits.measure(experiment, state, "score_sum", "softmax", [0.0, 99.0])
  answers = {one.how: one for one in run.answers}
  whole = experiment.evaluator("test", few.test)(state)
  full = answers["readout score_sum"]
  # Products with the weights, and cosines with one prototype a class.
  first, second = 64 * 16 + 10 * 16, 16 * 12 + 10 * 12
  assert answers["always after dense_1"].macs == first
  assert answers["always after dense_2"].macs == full.macs == first + second
  assert full.accuracy == pytest.approx(100 * float(whole["test/accuracy/score_sum"]))
  assert answers["always after dense_2"].accuracy == pytest.approx(full.accuracy)
  assert answers["always after dense_1"].accuracy == pytest.approx(
    100 * float(whole["test/dense_1/accuracy"])
  )
  loose, tight = answers["stops, losing 99 % at most"], answers["stops, losing 0 % at most"]
  assert loose.threshold == 0 and loose.macs == first and loose.use["dense_1"] == 100
  assert loose.accuracy == pytest.approx(answers["always after dense_1"].accuracy)
  assert tight.threshold > 0
  assert tight.macs == pytest.approx(first + second * tight.use["dense_2"] / 100)
  (low, at_first), (high, at_last) = run.curve[0], run.curve[-1]
  assert low == pytest.approx(first) and high == pytest.approx(first + second)
  assert at_first == pytest.approx(loose.accuracy) and at_last == pytest.approx(full.accuracy)

  rows = exits.rows_of("hff", experiment, [run, run], "score_sum", seeds=[0, 1], command="c")
  assert len(rows) == 7 and {row["metric"] for row in rows} == {"test_accuracy_percent"}
  assert {row["readout"] for row in rows} == {"score_sum", "last_layer", "vote"}
  text = exits.table(rows, "Title", "Note.")
  share = f"{100 * first / (first + second):.1f}"
  assert f"| {share} | dense_1 100.0 %, dense_2 0.0 % |" in text
  exits.draw(rows, {"hff": [run.curve, run.curve]}, tmp_path / "figure.png")
  assert min(matplotlib.image.imread(tmp_path / "figure.png").shape[:2]) > 100


def test_what_cannot_stop_early_is_refused_before_any_work():
  with pytest.raises(ValueError, match="unknown readout 'best'"):
    exits.check_presets(presets(), "best")
  with pytest.raises(ValueError, match="'softmax_head' reads features of all layers"):
    exits.check_presets(presets(), "softmax_head")
  data = dataclasses.replace(presets()["hff"].data, validation=0)
  with pytest.raises(ValueError, match="'hff' holds out nothing to fit thresholds on"):
    exits.check_presets(presets(data=data), "score_sum")
  assert study.percents(["0", "0.5"]) == [0.0, 0.5]
  for values in (["few"], ["100"], ["-1"], ["nan"], []):
    with pytest.raises(ValueError, match="^--epsilons takes percents from 0 to below 100"):
      study.percents(values)
