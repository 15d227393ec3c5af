"""Metrics of a matrix of accuracies, by hand; means of classes, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from fflax.analysis import continual

# Rows: after task 1, 2, 3. The first task was best before it was last trained on.
MATRIX = np.array([[0.9, 0.1, 0.0], [0.7, 0.8, 0.2], [0.5, 0.9, 1.0]])


def test_metrics_by_hand():
  assert continual.average_accuracy(MATRIX) == pytest.approx(0.8)
  # (0.9 - 0.5) and (0.8 - 0.9): the last row and column are not in the maximum.
  assert continual.forgetting(MATRIX) == pytest.approx((0.4 - 0.1) / 2)
  assert continual.backward_transfer(MATRIX) == pytest.approx((-0.4 + 0.1) / 2)
  assert continual.new_accuracy(MATRIX) == pytest.approx((0.9 + 0.8 + 1.0) / 3)


def test_forgetting_takes_the_best_of_all_tasks_before():
  better = MATRIX.copy()
  better[0, 1] = 0.95  # before task 2 was even trained
  assert continual.forgetting(better) == pytest.approx((0.4 + 0.05) / 2)


def test_one_task_forgets_nothing():
  one = np.array([[0.3]])
  assert continual.average_accuracy(one) == 0.3
  assert continual.forgetting(one) == continual.backward_transfer(one) == 0


@pytest.mark.parametrize("shape", [(2, 3), (4,), (0, 0)])
def test_other_shapes_are_refused(shape):
  with pytest.raises(ValueError, match=r"\[tasks, tasks\]"):
    continual.average_accuracy(np.zeros(shape))


def test_means_of_classes():
  rng = np.random.default_rng(0)
  x, label = rng.normal(size=(20, 5)), rng.integers(0, 3, 20)
  unit = lambda v: v / np.linalg.norm(v, axis=-1, keepdims=True)  # noqa: E731
  means = continual.class_means(jnp.asarray(x), jnp.asarray(label), 4)
  want = np.stack([unit(x)[label == c].mean(0) if c < 3 else np.zeros(5) for c in range(4)])
  np.testing.assert_allclose(means, want, atol=1e-6)
  scores = continual.mean_scores(jnp.asarray(x), means)
  np.testing.assert_allclose(scores[:, :3], unit(x) @ unit(want[:3]).T, atol=1e-5)
  assert not np.any(scores[:, 3])
  moved = continual.drift(means[:3], -2 * means[jnp.asarray([0, 1, 0])])
  np.testing.assert_allclose(moved[:2], 2.0, atol=1e-6)
  np.testing.assert_allclose(moved[2], 1 + unit(want[2]) @ unit(want[0]), atol=1e-5)
