"""The diagnosis of a run against its own trainer; figure and table against the diagnosis."""

import io
import json

import numpy as np
import pytest
from rich.console import Console

from experiments import figures
from experiments.assembly import build
from experiments.config import ExperimentConfig
from experiments.diagnosis import diagnose, layer_features, table
from fflax.methods.local_losses import LocalLossesConfig
from tests.methods.tiny import jit


def run(**options):
  config = ExperimentConfig(
    method="local_losses",
    methods={"local_losses": LocalLossesConfig(**options)},
    network="small_cnn",
    networks={"small_cnn": {"channels": (3, 5)}},
    readouts=("softmax_head",) if options.get("loss") == "sim" else ("score_sum",),
    eval_batch_size=64,
  )
  experiment = build(config)
  return experiment, experiment.init()


@pytest.fixture(scope="module")
def found():
  experiment, state = run()
  return diagnose(experiment, state, examples=150), experiment, state


def test_numbers_are_the_trainer_s(found):
  found, experiment, state = found
  assert found["examples"] == 150
  image = experiment.preprocess(None, experiment.dataset.test.image[:150])
  label = experiment.dataset.test.label[:150]
  answers = jit(experiment.trainer.answer)(state, image)
  predictions = [np.argmax(scores, -1) for scores in answers.layers]
  for row, prediction in zip(found["layers"], predictions, strict=True):
    assert row["accuracy"] == pytest.approx(np.mean(prediction == label))
    assert 0 < row["grid_probe"]["accuracy"] <= 1
  summed = np.argmax(answers.readouts["score_sum"], -1)
  assert found["readouts"] == {"score_sum": pytest.approx(np.mean(summed == label))}
  differ = np.mean(predictions[0] != predictions[1])
  np.testing.assert_allclose(found["disagreement"], [[0, differ], [differ, 0]])
  either = np.mean((predictions[0] == label) | (predictions[1] == label))
  assert found["oracle_accuracy"] == pytest.approx(either)
  assert json.loads(json.dumps(found))["scored_layers"] == ["conv_1", "conv_2"]


def test_features_are_read_before_the_norm(found):
  _, experiment, state = found
  image = experiment.preprocess(None, experiment.dataset.test.image[:7])
  acts = [
    np.asarray(o.act) for o in jit(lambda x: experiment.trainer.layer_outs(state, x, None))(image)
  ]
  features = layer_features(experiment, state, 7, batch_size=4)
  for act, layer in zip(acts, features, strict=True):
    size, side, _, channels = act.shape
    np.testing.assert_allclose(layer["scalar"], (act**2).mean((1, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(layer["mean"], act.mean((1, 2)), rtol=1e-3, atol=1e-6)
    bins = (act**2).reshape(size, 2, side // 2, 2, side // 2, channels).mean((2, 4))
    np.testing.assert_allclose(layer["grid"], bins.reshape(size, -1), rtol=1e-4, atol=1e-6)


def test_table_and_figure_show_it(found, tmp_path, monkeypatch):
  found = found[0]
  console = Console(width=100, record=True, file=io.StringIO())
  console.print(table(found))
  text, row = console.export_text(), found["layers"][1]
  for value in (100 * row["accuracy"], 100 * found["oracle_accuracy"]):
    assert f"{value:.2f}" in text
  assert f"{row['mean_probe']['fano']:.3f}" in text
  drawn = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
  figures.diagnosis(found, tmp_path)
  left, middle, right = drawn[0].axes[:3]
  np.testing.assert_allclose(
    left.lines[0].get_ydata(), [100 * r["accuracy"] for r in found["layers"]]
  )
  np.testing.assert_allclose(
    middle.lines[0].get_ydata(), [r["neighbour_bits"] for r in found["layers"]]
  )
  np.testing.assert_allclose(right.images[0].get_array(), 100 * np.array(found["disagreement"]))


def test_layers_without_scores_are_said_to_have_none(tmp_path):
  found = diagnose(*run(loss="sim"), examples=60, probe=False)
  assert [row["accuracy"] for row in found["layers"]] == [None, None]
  assert "oracle_accuracy" not in found
  assert list(found["readouts"]) == ["softmax_head"]
  assert table(found).row_count == 3
  assert figures.diagnosis(found, tmp_path / "d.png").exists()
