"""The locality matrix on toy steps that leak in known ways.

The library's central claim is measured with it: a matrix that cannot see a leak proves nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import locality

LAYERS = 4


def toy(reach, scale=1.0):
  """A step in which loss i moves layer j's parameter if `reach[i, j]`."""

  def moved(weights):
    shift = weights @ jnp.asarray(reach, jnp.float32)
    return tuple({"w": jnp.ones((2, 3)).at[1, 2].add(scale * s), "b": jnp.zeros(2)} for s in shift)

  return moved


PATTERNS = {
  "identity": np.eye(LAYERS),
  "lower": np.tril(np.ones((LAYERS, LAYERS))),
  "one leak down": np.eye(LAYERS) + np.eye(LAYERS, k=-1),
  "one leak up": np.eye(LAYERS) + np.eye(LAYERS, k=2),
  "last loss only": np.outer(np.arange(LAYERS) == LAYERS - 1, np.ones(LAYERS)),
  "nothing": np.zeros((LAYERS, LAYERS)),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_known_leaks_are_found_in_their_place(name):
  """Row: the loss; column: the layer that moves. A transposed matrix would pass on the identity."""
  matrix = locality.locality_matrix(toy(PATTERNS[name]), LAYERS)
  assert matrix.dtype == bool
  np.testing.assert_array_equal(matrix, PATTERNS[name] != 0)


def test_one_bit_of_one_parameter_counts():
  reach = np.eye(LAYERS)
  reach[2, 0] = 2.0**-23  # one unit in the last place of 1
  np.testing.assert_array_equal(locality.locality_matrix(toy(reach), LAYERS), reach != 0)


def test_movement_without_a_loss_is_not_a_leak():
  """Weight decay moves every parameter in every step: only differences from it count."""

  def moved(weights):
    return tuple({"w": 0.9 * jnp.ones(3) + weights[i]} for i in range(LAYERS))

  np.testing.assert_array_equal(locality.locality_matrix(moved, LAYERS), np.eye(LAYERS))


def gradient_step(stop):
  """Three layers h <- tanh(w h) with losses sum h**2; `stop` says where gradients are cut."""

  def moved(weights):
    def objective(ws):
      h, total = jnp.asarray([0.3, -0.8]), 0.0
      for i, w in enumerate(ws):
        h = jnp.tanh(w @ h)
        total += weights[i] * jnp.sum(h**2)
        h = jax.lax.stop_gradient(h) if i in stop else h
      return total

    ws = tuple(jnp.asarray([[0.7, 0.2], [-0.4, 0.9]]) for _ in range(3))
    return jax.tree.map(lambda w, g: w - 0.1 * g, ws, jax.grad(objective)(ws))

  return locality.locality_matrix(jax.jit(moved), 3)


def test_real_gradients():
  """All cuts: identity. No cut: lower triangle. One cut missing: that one leak."""
  np.testing.assert_array_equal(gradient_step({0, 1, 2}), np.eye(3))
  np.testing.assert_array_equal(gradient_step(()), np.tril(np.ones((3, 3))))
  np.testing.assert_array_equal(gradient_step({0}), [[1, 0, 0], [0, 1, 0], [0, 1, 1]])


@pytest.mark.parametrize(
  ("name", "measured", "allowed_by"),
  [
    ("identity", "strict", {"strict", "collaborative", "lookahead", "global"}),
    ("nothing", "strict", {"strict", "collaborative", "lookahead", "global"}),
    ("lower", "global", {"lookahead", "global"}),
    ("one leak down", "global", {"lookahead", "global"}),
    ("last loss only", "global", {"lookahead", "global"}),
    ("one leak up", "global", set()),
  ],
)
def test_declared_class_against_the_measured_one(name, measured, allowed_by):
  matrix = PATTERNS[name] != 0
  assert locality.measured_locality(matrix) == measured
  for declared in ("strict", "collaborative", "lookahead", "global"):
    assert locality.agrees(matrix, declared) == (declared in allowed_by)
