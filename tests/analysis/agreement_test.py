"""Agreement of layers against loops over examples, and limiting cases."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from fflax.analysis import agreement

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 4, 60)
PREDICTIONS = np.where(RNG.uniform(size=(3, 60)) < 0.6, LABELS, RNG.integers(-1, 4, (3, 60)))


def test_against_loops():
  right = [[p == y for p, y in zip(row, LABELS, strict=True)] for row in PREDICTIONS]
  accuracy = agreement.layer_accuracy(PREDICTIONS, LABELS)
  np.testing.assert_allclose(accuracy, [sum(row) / 60 for row in right])
  oracle = sum(any(column) for column in zip(*right, strict=True)) / 60
  assert agreement.oracle_accuracy(PREDICTIONS, LABELS) == pytest.approx(oracle)
  assert oracle > accuracy.max()
  differ, kappa = (
    agreement.disagreement(PREDICTIONS),
    agreement.error_correlation(PREDICTIONS, LABELS),
  )
  pairs = []
  for i in range(3):
    for j in range(3):
      want = sum(a != b for a, b in zip(PREDICTIONS[i], PREDICTIONS[j], strict=True)) / 60
      assert differ[i, j] == pytest.approx(want)
      assert kappa[i, j] == pytest.approx(cohen_kappa_score(right[i], right[j]))
      pairs += [want] if i != j else []
  assert agreement.mean_off_diagonal(differ) == pytest.approx(sum(pairs) / 6)


def test_equal_layers():
  same = np.tile(PREDICTIONS[:1], (4, 1))
  np.testing.assert_array_equal(agreement.disagreement(same), np.zeros((4, 4)))
  single = agreement.layer_accuracy(same, LABELS)[0]
  assert agreement.oracle_accuracy(same, LABELS) == single
  np.testing.assert_allclose(agreement.error_correlation(same, LABELS), np.ones((4, 4)))
  assert np.isnan(agreement.error_correlation(np.stack([LABELS] * 2), LABELS)).all()
  assert np.isnan(agreement.mean_off_diagonal(np.zeros((1, 1))))


def test_the_oracle_of_guessers():
  guesses = RNG.integers(0, 5, (3, 20_000))
  found = agreement.oracle_accuracy(guesses, RNG.integers(0, 5, 20_000))
  want = agreement.oracle_chance(3, 5)
  assert want == pytest.approx(1 - 0.8**3)
  assert abs(found - want) < 4 * (want * (1 - want) / 20_000) ** 0.5


def test_shapes_are_named():
  with pytest.raises(ValueError, match=r"\[3, 60\] and labels \[59\]"):
    agreement.layer_accuracy(PREDICTIONS, LABELS[1:])
