"""The sweep over the number of classes: its seeds together equal seeds alone."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import config
from experiments.assembly import build
from experiments.studies import class_figures, class_points
from fflax.training.chunk import make_chunk


def small(**changes):
  base = config.load_preset("synth_deepsup")
  data = dataclasses.replace(base.data, num_classes=3)
  return dataclasses.replace(
    base, networks={**base.networks, "mlp": {"sizes": (16, 16)}}, data=data, **changes
  )


def test_seeds_together_equal_the_same_run_alone():
  chosen, steps = small(), 30
  found = class_points.point(chosen, [7, 8], steps)
  experiment = build(dataclasses.replace(chosen, seed=8))
  state, _ = make_chunk(experiment.trainer, experiment.feed, steps)(
    experiment.init(), experiment.images, experiment.labels, steps
  )
  alone = experiment.evaluator("test", experiment.dataset.test)(state)
  # Sums over a batch run in another order under vmap: a few of 5,000 answers may differ.
  assert found["test"][1] == pytest.approx(float(alone["test/accuracy/score_sum"]), abs=2e-3)
  layers = [float(alone[f"test/{n}/accuracy"]) for n in experiment.trainer.layer_names]
  assert found["layers"][1] == pytest.approx(layers, abs=2e-3)
  assert found["test"][0] != found["test"][1]


def test_an_ensemble_answers_by_the_mean_softmax_of_its_own_nets(monkeypatch):
  """Two seeds, so that nets which stray to the other seed would be seen."""
  states = []
  answers = class_points._answers

  def keep(experiment, members):
    own = answers(experiment, members)
    return lambda s, x, y: states.append((experiment, s, x, y)) or own(s, x, y)

  monkeypatch.setattr(class_points, "_answers", keep)
  found = class_points.point(small(), [7, 8], 20, members=3)
  experiment, state, images, labels = states[-1]
  logits = jax.vmap(lambda s, x: experiment.trainer.answer(s, x).readouts["score_sum"])(
    state, images
  )
  powers = np.exp(np.asarray(logits, np.float64))
  chances = (powers / powers.sum(-1, keepdims=True)).reshape(2, 3, *powers.shape[1:])
  label = np.asarray(labels).reshape(2, 3, -1)[:, 0]
  for i in range(2):
    want = np.mean(chances[i].mean(0).argmax(-1) == label[i])
    assert found["test"][i] == pytest.approx(want, abs=1e-3)
    test = build(dataclasses.replace(small(), seed=7 + i)).dataset.test
    np.testing.assert_array_equal(label[i], test.label)
  assert len({tuple(row) for row in found["layers"]}) == 6


def test_data_whose_statistics_differ_between_seeds_are_refused():
  chosen = small()
  chosen = dataclasses.replace(
    chosen, data=dataclasses.replace(chosen.data, normalization="dataset")
  )
  with pytest.raises(ValueError, match="^a sweep needs data 'synthetic'[^\n]*$"):
    class_points.point(chosen, [0], 1)


def test_differences_are_paired_and_wins_counted(tmp_path):
  mine, other = {5: [0.5, 0.7], 50: [0.4, 0.6]}, {5: [0.51, 0.68], 50: [0.3, 0.5]}
  (found,) = class_points.analysis({"a": mine, "b": other}, low=20)
  assert found["differences"] == {"5": [-1.0, 2.0], "50": [10.0, 10.0]}
  assert found["wins"] == {"5": 1, "50": 2}
  assert found["contrast"]["value"] == pytest.approx(9.5)
  rows = [
    {"preset": name, "classes": k, "mean": 100 - 100 * np.mean(v), "std": 1.0, "seeds": [0, 1],
     "steps": 30, "train_accuracy_percent": [90.0]}
    for name, own in {"a": mine, "b": other}.items() for k, v in own.items()
  ]  # fmt: skip
  text = class_figures.table(rows, [found])
  assert "| 50 | 50.00 +- 1.00 (40.0) | 40.00 +- 1.00 (50.0) |" in text.splitlines()
  assert "| 5 | +0.50 +- 19.06 | 1 of 2 |" in text.splitlines()
  assert "Low +0.50, high +10.00: +9.50" in text
  class_figures.draw(rows, [found], tmp_path / "figure.png")
  assert (tmp_path / "figure.png").stat().st_size > 1000
  assert "contrast" not in class_points.analysis({"a": mine, "b": other}, low=50)[0]
