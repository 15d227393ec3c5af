"""Goodness and its gradient against closed forms and numpy.

A wrong factor here only rescales learning rates and thresholds, so nothing else would notice it.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import goodness, losses
from fflax.core.pooling import grid_features
from fflax.types import LayerOut

_NUMPY = {
  "sum": lambda h: np.sum(np.square(h)),
  "mean": lambda h: np.mean(np.square(h)),
  "unsquared": np.sum,
}


@pytest.mark.parametrize("kind", goodness.GOODNESS)
@pytest.mark.parametrize("shape", [(37,), (5, 4, 3)])
def test_value_against_numpy(kind, shape):
  """All axes of one example count, also for maps; no axis is forgotten."""
  h = np.random.default_rng(0).normal(size=shape)
  value = goodness.GOODNESS[kind](jnp.asarray(h, jnp.float32))
  assert value.shape == () and value.dtype == jnp.float32
  np.testing.assert_allclose(value, _NUMPY[kind](h), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", goodness.GOODNESS)
def test_bfloat16_activities_are_summed_in_float32(kind):
  """In bfloat16 1001 ones would sum to 1000, and goodness - theta would be off by whole units."""
  value = goodness.GOODNESS[kind](jnp.ones(1001, jnp.bfloat16))
  assert value.dtype == jnp.float32
  assert value == (1 if kind == "mean" else 1001)


@pytest.mark.parametrize("width", [1, 8, 1000])
def test_sum_and_mean_cut_the_same_examples(width):
  """One theta per unit: z of "sum" is exactly `width` times z of "mean"."""
  h = jax.random.normal(jax.random.key(0), (width,))
  z = {
    kind: goodness.GOODNESS[kind](h) - goodness.threshold(0.7, kind, width)
    for kind in ("sum", "mean")
  }
  np.testing.assert_allclose(z["sum"], width * z["mean"], rtol=1e-4, atol=1e-4)
  assert goodness.threshold(0.7, "unsquared", 10) == pytest.approx(7.0)


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize(("kind", "temperature"), [("sum", 1.0), ("mean", 1.0), ("sum", 3.0)])
def test_layer_gradient_is_the_published_update(kind, temperature, maximize):
  """dL/dW = (1/B) [-u_pos' ((1 - p_pos) h_pos) + u_neg' (p_neg h_neg)], the Matlab update."""
  rng = np.random.default_rng(1)
  rows, inputs, width, theta = 16, 7, 11, 0.4
  u = rng.normal(size=(2, rows, inputs))
  w, b = 0.5 * rng.normal(size=(inputs, width)), 0.1 * rng.normal(size=width)
  cut = theta if kind == "mean" else theta * width

  def loss(params):
    h = jax.nn.relu(jnp.asarray(u, jnp.float32) @ params[0] + params[1][None, None, :])
    g = jax.vmap(jax.vmap(goodness.GOODNESS[kind]))(h)
    level = goodness.threshold(theta, kind, width)
    return jnp.mean(losses.logistic_loss(g[0], g[1], level, temperature, maximize))

  got = jax.grad(loss)((jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)))

  h = np.maximum(u @ w + b, 0)
  g = np.sum(h**2, -1) * (1 / width if kind == "mean" else 1)
  sign = 1 if maximize else -1
  p = 1 / (1 + np.exp(-sign * (g - cut) / temperature))
  factor = sign / temperature / rows * (1 / width if kind == "mean" else 1)
  signal = factor * np.stack([-(1 - p[0])[:, None] * h[0], p[1][:, None] * h[1]])
  np.testing.assert_allclose(got[0], np.einsum("vbi,vbj->ij", u, signal), rtol=2e-5, atol=1e-6)
  np.testing.assert_allclose(got[1], signal.sum((0, 1)), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(("shape", "grid"), [((3, 6, 4, 2), 2), ((3, 5, 3, 2), 2), ((3, 7), 2)])
def test_goodness_on_a_grid_is_the_mean_square_of_every_bin(shape, grid):
  """Bins of odd maps overlap; units without a place keep their own squares."""
  h = np.random.default_rng(2).normal(size=shape)
  if len(shape) == 2:
    want = h**2
  else:
    edges = [[(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in shape[1:3]]
    bins = [(h**2)[:, a:b, c:d].mean((1, 2)) for a, b in edges[0] for c, d in edges[1]]
    want = np.concatenate(bins, axis=-1)
  act = jnp.asarray(h, jnp.float32)
  got = grid_features(goodness.squared_activities(LayerOut(act, act, act)), grid)
  np.testing.assert_allclose(got, want, rtol=1e-5)
  own = LayerOut(*[jnp.zeros(shape)] * 3, act_square=jnp.asarray(h**2, jnp.float32))
  given = grid_features(goodness.squared_activities(own), grid)
  np.testing.assert_allclose(given, want, rtol=1e-5)


def test_a_bounded_temperature_begins_in_the_middle_and_stays_inside():
  at = lambda alpha: float(goodness.bounded_temperature(jnp.float32(alpha), 0.5, 2.0))  # noqa: E731
  assert at(0.0) == pytest.approx(1.25)
  assert at(1.0) == pytest.approx(0.5 + 1.5 / (1 + np.exp(-1.0)), rel=1e-6)
  assert 0.5 < at(-10) < at(10) < 2.0
