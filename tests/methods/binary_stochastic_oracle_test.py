"""Binary stochastic FF's estimators against the exact gradient, by enumerating all samples."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.pbit_config import PbitConfig
from fflax.methods.binary_stochastic import (
  ESTIMATORS,
  BinaryStochasticConfig,
  binary_stochastic,
)
from fflax.networks.activations import Pbits
from fflax.types import LayerOut

K, CHANNELS, ROWS = 3, 12, 2
LABEL = jnp.asarray([2, 0], jnp.int32)
V = jnp.asarray(np.random.default_rng(0).normal(0.5, 1.0, (ROWS, CHANNELS)), jnp.float32)


def goodness64(u):
  return (u.astype(np.float64) ** 2).reshape(*u.shape[:-1], K, -1).mean(-1)


def surprisal64(u, label):
  g = goodness64(u)
  return np.log(np.exp(g).sum(-1)) - g[..., label]


def exact_gradient():
  """Of the mean expected surprisal with one unit a channel, by all 2^C samples of each row."""
  samples = np.array(list(itertools.product((0, 1), repeat=CHANNELS)))
  rows = []
  for v, y in zip(np.asarray(V, np.float64), np.asarray(LABEL), strict=True):
    p = 1 / (1 + np.exp(-(v - 0.5)))
    chance = np.prod(np.where(samples == 1, p, 1 - p), axis=1)
    rows.append((chance * surprisal64(samples, y)) @ (samples - p) / ROWS)
  return np.stack(rows)


def sampled_gradients(name, keys):
  """One gradient for every key, `[N, B, C]`."""
  units, error = ESTIMATORS[name]
  activation = Pbits(PbitConfig(units=1, estimator=units))
  method = binary_stochastic(BinaryStochasticConfig(error=error), K)

  def loss(v, key):
    own, other = jax.random.split(key)
    act, square = activation.emit(own, v)
    log_prob = activation.log_prob(own, v) if units == "score" else None
    out = LayerOut(v, act, act, square, log_prob, act, square)
    out = jax.tree.map(lambda a: a[None], out)
    return method.local_loss({}, {}, out, LABEL, None, other)[0]

  # A few thousand at a time: above 16,384 examples XLA's CPU backend (0.10.2) gets a cross-entropy
  # with constant labels wrong, see experiments/benchmarks/README.md.
  many = jax.jit(jax.vmap(jax.grad(loss), (None, 0)))
  return np.concatenate([np.asarray(many(V, k), np.float64) for k in keys.reshape(-1, 4000)])


@pytest.mark.parametrize("name", [n for n in ESTIMATORS if not n.startswith("ste")])
def test_the_mean_of_an_estimator_is_the_exact_gradient(name):
  """Within its standard error, and for those of first order in a flip within their bias, too."""
  number = 40000 if name.startswith("reinforce") else 8000
  found = sampled_gradients(name, jax.random.split(jax.random.key(1), number))
  mean, error = found.mean(0), found.std(0) / number**0.5
  want = exact_gradient()
  if name == "reinforce_baseline":  # the batch's mean holds the example's own surprisal
    want = want * (1 - 1 / ROWS)
  bias = 0.0 if name.startswith("reinforce") else 0.12 * np.abs(want).max()
  assert np.all(np.abs(mean - want) <= 5 * error + bias), (mean - want) / np.abs(want).max()
  cosine = (mean * want).sum() / np.sqrt((mean**2).sum() * (want**2).sum())
  assert cosine > 0.97, cosine


def test_straight_through_controls_are_worse_than_flips():
  keys = jax.random.split(jax.random.key(2), 8000)
  want = exact_gradient()

  def cosine(name):
    mean = sampled_gradients(name, keys).mean(0)
    return (mean * want).sum() / np.sqrt((mean**2).sum() * (want**2).sum())

  assert cosine("surprisal") > 0.99 > cosine("ste_autodiff")


def test_the_loss_is_the_mean_surprisal_whatever_the_estimator():
  u = np.random.default_rng(1).integers(0, 2, (ROWS, CHANNELS))
  want = np.mean([surprisal64(row, y) for row, y in zip(u, np.asarray(LABEL), strict=True)])
  act = jnp.asarray(u, jnp.float32)[None]
  out = LayerOut(act, act, act, act**2, jnp.zeros((1, ROWS)), act, act**2)
  for error in ("exact", "binary", "reinforce", "reinforce_baseline"):
    method = binary_stochastic(BinaryStochasticConfig(error=error), K)
    loss, (_, metrics) = method.local_loss({}, {}, out, LABEL, None, jax.random.key(0))
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    assert {"goodness_pos", "goodness_neg", "train_accuracy"} == set(metrics)


@pytest.mark.parametrize("error", ["exact", "binary", "reinforce", "reinforce_baseline"])
def test_what_stands_above_the_units_learns_under_every_estimator(error):
  """A norm's scale has no part in the sample: its gradient is the surprisal's own, or its mean."""
  u = jnp.asarray(np.random.default_rng(1).integers(0, 2, (ROWS, CHANNELS)), jnp.float32)
  method = binary_stochastic(BinaryStochasticConfig(error=error), K)

  def loss(scale, key):
    y = (scale[None] * u)[None]
    out = LayerOut(y, y, y, y**2, jnp.zeros((1, ROWS)))
    return method.local_loss({}, {}, out, LABEL, None, key)[0]

  keys = jax.random.split(jax.random.key(0), 4000)
  slopes = jax.vmap(jax.grad(loss), (None, 0))(jnp.ones(CHANNELS), keys)
  g = goodness64(np.asarray(u))
  error_ = np.exp(g) / np.exp(g).sum(-1, keepdims=True) - np.eye(K)[np.asarray(LABEL)]
  each = 2 / ROWS * np.repeat(error_, CHANNELS // K, -1) / (CHANNELS // K) * np.asarray(u) ** 2
  np.testing.assert_allclose(slopes.mean(0), each.sum(0), atol=0.02)
  assert np.abs(each.sum(0)).max() > 0.05


def test_reinforce_without_a_log_probability_is_refused():
  act = jnp.ones((1, ROWS, CHANNELS))
  method = binary_stochastic(BinaryStochasticConfig(error="reinforce"), K)
  with pytest.raises(ValueError, match="activation 'pbits' with estimator 'score'"):
    method.local_loss({}, {}, LayerOut(act, act, act), LABEL, None, jax.random.key(0))
  with pytest.raises(ValueError, match="'guess'"):
    binary_stochastic(BinaryStochasticConfig(error="guess"), K)
