"""Similarity matching against a float64 loop, closed forms, and gradients at dead features."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.similarity import channel_deviations, similarity_loss, similarity_matrix
from tests.training.tiny_layers import jit

loss, matrix = jit(similarity_loss), jit(similarity_matrix)


def by_hand(x):
  """Row by row, in float64, with numpy's own standard deviation."""
  if x.ndim == 4 and x.shape[-1] > 3 and x.shape[1] > 1:
    x = np.stack([[row[..., c].std(ddof=1) for c in range(x.shape[-1])] for row in x])
  x = x.reshape(len(x), -1)
  x = [row - row.mean() for row in x]
  x = [row / (1e-8 + np.linalg.norm(row)) for row in x]
  return np.array([[np.dot(a, b) for b in x] for a in x])


@pytest.mark.parametrize(
  "shape",
  [(6, 9), (6, 3, 4, 5), (6, 3, 3, 3), (6, 1, 4, 5)],  # the last two are flattened
)
def test_against_a_loop(shape):
  rng = np.random.default_rng(0)
  x = rng.normal(size=shape)
  onehot = np.eye(4)[rng.integers(0, 4, shape[0])]
  want = by_hand(x)
  np.testing.assert_allclose(matrix(x), want, atol=1e-6)
  wanted_loss = np.mean((want - by_hand(onehot)) ** 2)
  np.testing.assert_allclose(loss(x, onehot), wanted_loss, rtol=1e-5)


def test_labels_and_invariances():
  """1 within a class, -1/(K-1) between; a sample's own scale and offset do not count."""
  label = np.array([0, 3, 3, 1, 0])
  want = np.where(label[:, None] == label[None], 1, -1 / 3)
  np.testing.assert_allclose(matrix(np.eye(4)[label]), want, atol=1e-6)
  rng = np.random.default_rng(1)
  x, scale, shift = rng.normal(size=(5, 12)), rng.uniform(0.5, 3, (5, 1)), rng.normal(size=(5, 1))
  np.testing.assert_allclose(matrix(scale * x + shift), by_hand(x), atol=1e-6)


@pytest.mark.parametrize("classes", [2, 10])
def test_closed_forms_of_large_balanced_batches(classes):
  """Perfect features cost 0, uncorrelated ones 1/(K-1), collapsed ones K/(K-1)."""
  label = np.arange(40 * classes) % classes
  onehot = np.eye(classes)[label]
  np.testing.assert_allclose(loss(onehot, onehot), 0, atol=1e-6)
  rng = np.random.default_rng(0)
  same = np.tile(rng.normal(size=(1, 7)), (len(label), 1))
  np.testing.assert_allclose(loss(same, onehot), classes / (classes - 1), rtol=1e-5)
  noise = rng.normal(size=(len(label) + 1, len(label)))
  apart = np.linalg.qr(np.c_[np.ones(len(label) + 1), noise])[0][:, 1:].T  # centred, orthogonal
  np.testing.assert_allclose(loss(apart, onehot), 1 / (classes - 1), rtol=0.05)


def test_gradients_are_finite_where_features_are_dead():
  """The slope of a deviation is NaN at a constant channel, and dead channels do occur."""
  x = np.random.default_rng(0).normal(size=(4, 3, 3, 5))
  x[0] = 0  # a dead example
  x[1, :, :, 2] = 7  # a constant channel
  onehot = np.eye(4)
  grad = jit(jax.grad(similarity_loss))(jnp.asarray(x, jnp.float32), onehot)
  assert np.isfinite(grad).all()
  assert np.abs(grad[2]).max() > 0
  np.testing.assert_array_equal(jit(channel_deviations)(x)[1, 2], 0)
  # Against differences of the float64 loop, at an example that is alive.
  step, base = np.zeros_like(x), lambda y: np.mean((by_hand(y) - by_hand(onehot)) ** 2)
  step[3, 1, 2, 4] = 1e-5
  slope = (base(x + step) - base(x - step)) / 2e-5
  np.testing.assert_allclose(grad[3, 1, 2, 4], slope, rtol=1e-3)
