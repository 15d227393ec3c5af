"""The diagnosis of a run against its own trainer; figure and table against the diagnosis."""

import io
import json

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from experiments import figures
from experiments.assembly import build
from experiments.config import ExperimentConfig
from experiments.diagnosis import diagnose, layer_features, table
from fflax.data.dataset import Dataset, Split
from fflax.methods.local_losses import LocalLossesConfig
from tests.methods.tiny import jit


def run(channels=(3, 5), data=None, **options):
  config = ExperimentConfig(
    method="local_losses",
    methods={"local_losses": LocalLossesConfig(**options)},
    network="small_cnn",
    networks={
      "small_cnn": {"channels": channels, "pool_after": tuple(range(1, len(channels) + 1))}
    },
    readouts=("softmax_head",) if options.get("loss") == "sim" else ("score_sum",),
    eval_batch_size=64,
  )
  experiment = build(config, data)
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
  # Two layers: there is no pair without the first, and a NaN would be no JSON.
  assert json.loads(json.dumps(found, allow_nan=False))["scored_layers"] == ["conv_1", "conv_2"]
  assert found["mean_disagreement_without_first"] is None


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


def a_set(labels) -> Dataset:
  """Random images with these test labels, of three classes."""
  images = np.random.default_rng(0).integers(0, 255, (100, 6, 6, 1), np.uint8)
  train = Split(images, np.arange(100, dtype=np.int32) % 3)
  test = Split(images[: len(labels)], np.asarray(labels, np.int32))
  return Dataset("made up", train, None, test, 3, 255)


@pytest.mark.parametrize(
  ("labels", "probed", "note"),
  [
    ([0, 1] * 8 + [2], True, "Probes leave out 1 of 3 classes: not 5 examples of each."),
    ([0] * 9 + [1, 1, 2, 2], False, "No probes: no two classes have 5 examples."),
  ],
)
def test_classes_with_too_few_examples_are_not_probed(labels, probed, note):
  """No part of such a class is left to judge; a set of few examples has some."""
  one_layer = {"channels": (3,), "features": "goodness"}
  found = diagnose(*run(data=a_set(labels), **one_layer))
  assert ("grid_probe" in found["layers"][0]) == probed
  assert found["notes"] == [note] and note in table(found).caption
  json.dumps(found, allow_nan=False)
  console = Console(width=80, record=True, file=io.StringIO())
  console.print(table(found))
  assert "…" not in console.export_text(), "a number is cut off in a usual terminal"


def test_too_few_examples_are_refused_before_any_work():
  experiment, _ = run(data=a_set([0, 0, 1, 2, 1]))
  with pytest.raises(ValueError, match="needs more than 4 test examples"):
    diagnose(experiment, None, examples=4)


def test_learned_temperatures_and_a_single_layer_are_shown(tmp_path, monkeypatch):
  """T as it is in this state; one layer disagrees with none, and the figure says no number."""
  experiment, state = run(channels=(3,), features="goodness")
  state.layers[0].params["method"]["alpha"] = jnp.asarray(1.0)
  found = diagnose(experiment, state, examples=40, probe=False)
  assert found["layers"][0]["temperature"] == pytest.approx(0.5 + 1.5 / (1 + np.exp(-1)))
  assert [c.header for c in table(found).columns][1:3] == ["%", "T"]
  drawn = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: drawn.append(figure))
  figures.diagnosis(found, tmp_path)
  left, _, right = drawn[0].axes[:3]
  assert [t.get_text() for t in left.get_xticklabels()] == ["conv_1, T 1.60"]
  assert right.get_title() == "disagreement" and found["mean_disagreement"] is None
