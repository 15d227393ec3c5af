"""The gradient of sampled p-bits: by enumeration, closed forms and statistics."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import pbit_units as units
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_gradients import local_expectation
from fflax.core.pbits import emit, pbit
from tests.core.pbit_enumeration import window_distribution, words_of

CLASSES, CHANNELS, LABEL = 3, 6, 1
SCALE = np.array([0.7, 0.4, 0.5, 0.8, 0.5, 0.7])
SHIFT = np.array([-0.5, 0.3, 0.2, -0.4, 0.1, -0.3])
SEEDS = jnp.zeros((2, 7, 2), jnp.uint32)


def true_gradient(v: np.ndarray, config: PbitConfig) -> np.ndarray:
  """Of the expected surprisal of one 2x2 window, `[4, C]`, by enumeration and differences."""
  outcomes = np.array(list(itertools.product(range(config.units + 1), repeat=CHANNELS)))
  squares = (SCALE * outcomes + SHIFT) ** 2
  goodness = squares.reshape(-1, CLASSES, CHANNELS // CLASSES).mean(-1)
  surprisal = np.log(np.exp(goodness).sum(1)) - goodness[:, LABEL]
  chances = np.array([window_distribution(v[:, c], config) for c in range(CHANNELS)])
  step, gradient = 1e-4, np.zeros_like(v)
  for site, c in itertools.product(range(4), range(CHANNELS)):
    moved = []
    for sign in (1, -1):
      other = v[:, c].copy()
      other[site] += sign * step
      changed = chances.copy()
      changed[c] = window_distribution(other, config)
      p = np.prod(changed[np.arange(CHANNELS), outcomes], axis=1)
      moved.append(p @ surprisal)
    gradient[site, c] = (moved[0] - moved[1]) / (2 * step)
  return gradient


def expected_estimate(v: np.ndarray, config: PbitConfig, estimator: str) -> np.ndarray:
  """The mean of an estimator over every sample of one 2x2 window, `[4, C]`, float64."""
  chances = np.array([window_distribution(v[:, c], config) for c in range(CHANNELS)])
  mean = np.zeros_like(v)
  for c in range(CHANNELS):
    own = list(itertools.product(*(words_of(x, config) for x in v[:, c])))
    rest = list(itertools.product(range(config.units + 1), repeat=CHANNELS - 1))
    words = np.zeros((len(own), len(rest), 4, CHANNELS), np.uint16)
    # Of the other channels only the pooled count matters: all of it at the first site.
    others = [d for d in range(CHANNELS) if d != c]
    words[:, :, 0, others] = (1 << np.array(rest)) - 1
    words[..., c] = np.array([[w for w, _ in sites] for sites in own])[:, None]
    weights = np.prod([[p for _, p in sites] for sites in own], axis=1)[:, None] * np.prod(
      chances[np.array(others), np.array(rest)], axis=1
    )
    word = words.reshape(-1, 2, 2, CHANNELS)
    gradient = np.asarray(estimate(config, estimator, v.astype(np.float32), word), np.float64)
    mean[:, c] = weights.reshape(-1) @ gradient.reshape(-1, 4, CHANNELS)[..., c]
  return mean


@functools.partial(jax.jit, static_argnums=(0, 1))
def estimate(config: PbitConfig, estimator: str, v: jax.Array, word: jax.Array) -> jax.Array:
  """The estimate of the gradient of each example's surprisal, `[N, 2, 2, C]`."""
  v = jnp.broadcast_to(v.reshape(1, 2, 2, CHANNELS), word.shape)
  a, b = jnp.asarray(SCALE, jnp.float32), jnp.asarray(SHIFT, jnp.float32)
  if estimator == "local_expectation":
    label = jnp.full(len(word), LABEL)
    return local_expectation(v, word, label, CLASSES, config, 2, a, b) * len(word)

  def loss(v):
    config_ = PbitConfig(config.units, estimator, pool=config.pool)
    z, square = emit(config_, 2, units.to_windows(v, 2), units.to_windows(word, 2), SEEDS)
    a_, b_ = a[None, None, None], b[None, None, None]
    squares = a_**2 * square + 2 * a_ * b_ * z + b_**2
    goodness = squares.reshape(len(word), CLASSES, -1).mean(-1)
    return jnp.sum(jax.nn.logsumexp(goodness, axis=1) - goodness[:, LABEL])

  return jax.grad(loss)(v)


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def gradient(v: jax.Array, config: PbitConfig, window: int, of: int) -> jax.Array:
  """Of the sum of the counts (0) or of the squares (1) of one sample."""
  return jax.grad(lambda v: pbit(jax.random.key(7), v, config, window)[of].sum())(v)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
  return float(np.sum(a * b) / np.sqrt(np.sum(a * a) * np.sum(b * b)))


@pytest.mark.parametrize(("size", "pool"), [(1, "count"), (2, "count"), (2, "bitwise")])
def test_estimators_against_the_true_gradient(size, pool):
  config = PbitConfig(size, pool=pool)
  v = np.random.default_rng(3).normal(0, 1, (4, CHANNELS))
  truth = true_gradient(v, config)
  exact = expected_estimate(v, config, "local_expectation")
  np.testing.assert_allclose(exact, truth, atol=1e-6)
  surprisal = cosine(expected_estimate(v, config, "surprisal"), truth)
  autodiff = cosine(expected_estimate(v, config, "ste_autodiff"), truth)
  assert surprisal > 0.99
  assert autodiff < surprisal - 0.003


@pytest.mark.parametrize("noise", ["independent", "shared"])
@pytest.mark.parametrize("pool", ["count", "bitwise"])
@pytest.mark.parametrize("window", [1, 2])
def test_surprisal_is_exact_where_the_loss_is_linear(window, pool, noise):
  """The mean over all samples is the derivative of `g E[z] + q E[z^2]`."""
  config = PbitConfig(2, pool=pool, noise=noise)
  v, g, q = np.array([-0.6, 1.4, 0.2, 0.9]), 0.7, -0.3
  samples = list(itertools.product(*(words_of(x, config) for x in v)))
  word = jnp.array([[w for w, _ in s] for s in samples], jnp.uint16).reshape(-1, 2, 2, 1)
  weights = np.prod([[p for _, p in s] for s in samples], axis=1)

  def sampled(v):
    v = jnp.broadcast_to(v, word.shape)
    z, square = emit(config, window, *(units.to_windows(x, window) for x in (v, word)), SEEDS)
    return g * z + q * square

  def expected(v):
    z, square = units.mean_field(v, config, window)
    return jnp.sum(g * z + q * square)

  def weighted(v):
    out = sampled(v)
    return jnp.sum(jnp.sum(out.reshape(len(weights), -1), axis=1) * weights.astype(np.float32))

  x = jnp.asarray(v, jnp.float32).reshape(1, 2, 2, 1)
  found, want = (jax.jit(jax.grad(f))(x) for f in (weighted, expected))
  np.testing.assert_allclose(found, want, rtol=2e-5, atol=1e-6)


VARIANTS = [("xor", False), ("xor", True), ("and_not", False), ("and_not", True)]


def test_binary_slopes_are_unbiased_and_xor_varies_less():
  v = jnp.array([-0.6, 1.4, 0.2, 0.9]).reshape(2, 2, 1)
  keys = jax.random.split(jax.random.key(5), 4096)

  def gradients(config):
    def loss(v, key):
      z, square = pbit(key, v, config, 2)
      return jnp.sum(0.7 * z + 0.4 * square)

    return np.asarray(jax.jit(jax.vmap(lambda k: jax.grad(loss)(v, k)))(keys), np.float64)

  def expected(v):
    z, square = units.mean_field(v, PbitConfig(3), 2)
    return jnp.sum(0.7 * z + 0.4 * square)

  truth, variance = jax.grad(expected)(v), {}
  for sampler, reuse in VARIANTS:
    found = gradients(PbitConfig(3, "binary_slope", sampler, reuse))
    error = found.std(0) / len(keys) ** 0.5
    np.testing.assert_array_less(abs(found.mean(0) - truth), 4 * error, err_msg=f"{sampler, reuse}")
    variance[sampler, reuse] = found.var(0)
  np.testing.assert_array_less(variance["xor", False], variance["and_not", False])
  np.testing.assert_array_less(gradients(PbitConfig(3)).var(0), variance["xor", False])


def test_slope_bits_have_mean_and_variance_of_the_formulas():
  """One site, one unit: the gradient of the count is the slope itself."""
  v = jnp.full((1 << 16,), 0.9)
  p = float(units.probability(v[0], 1))
  w = p * (1 - p)
  for sampler, variance in (("xor", w / 2 - w * w), ("and_not", w - w * w)):
    for reuse in (False, True):
      config = PbitConfig(1, "binary_slope", sampler, reuse)
      slope = np.asarray(gradient(v, config, 1, 0), np.float64)
      assert set(np.unique(slope)) == {0.0, 0.5 if sampler == "xor" else 1.0}
      assert abs(slope.mean() - w) < 4 * (variance / v.size) ** 0.5
      assert abs(slope.var() - variance) < 0.01 * variance + 4 * (variance / v.size) ** 0.5


def unit_effects(word, size, window=2, **settings):
  """The sum of flip effects on the square at each site: slope 1, cotangent 1."""
  config = PbitConfig(size, "ste_identity", **settings)
  word = jnp.asarray(word, jnp.uint16)[..., None]
  view = [units.to_windows(x, window) for x in (jnp.zeros(word.shape), word)]
  out, back = jax.vjp(lambda v: emit(config, window, v, view[1], SEEDS)[1], view[0])
  return np.asarray(back(jnp.ones(out.shape))[0]).reshape(word.shape[:-1])


def test_ties_teach_every_tied_site_and_losers_none():
  np.testing.assert_array_equal(unit_effects([[0, 0], [0, 0]], 1), [[1, 1], [1, 1]])
  np.testing.assert_array_equal(unit_effects([[0, 1], [0, 0]], 1), [[0, 1], [0, 0]])
  np.testing.assert_array_equal(unit_effects([[1, 1], [0, 0]], 1), [[0, 0], [0, 0]])
  # Counts 2 and 1 of M = 2: only the winner's units, each beside one that is on.
  np.testing.assert_array_equal(unit_effects([[3, 1], [0, 0]], 2), [[6, 0], [0, 0]])
  # Counts 1 and 1: a unit that is off would lift its site above the other.
  np.testing.assert_array_equal(unit_effects([[1, 2], [0, 0]], 2), [[3, 3], [0, 0]])
  # Bit by bit: unit 1 is on elsewhere for all but the first site, unit 2 nowhere.
  bitwise = unit_effects([[1, 0], [0, 0]], 2, pool="bitwise")
  np.testing.assert_array_equal(bitwise, [[1 + 3, 3], [3, 3]])


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_flip_effects_are_integers_within_their_bound(size):
  words = np.arange(1 << size).reshape(1, -1)
  effect = unit_effects(words, size, window=1)
  counts = np.array([w.bit_count() for w in words[0].tolist()])
  brute = [
    sum((n + 1) ** 2 - n**2 for n in (c - (w >> m & 1) for m in range(size)))
    for w, c in zip(words[0].tolist(), counts, strict=True)
  ]
  np.testing.assert_array_equal(effect[0], brute)
  assert effect.max() == size * (2 * size - 1)
  rng = np.random.default_rng(size)
  pooled = unit_effects(rng.integers(0, 1 << size, (20, 20)), size)
  assert pooled.max() <= size * (2 * size - 1)
  assert np.all(pooled == np.round(pooled))
  assert pooled.min() >= 0


def test_pooled_effects_are_the_brute_force_differences():
  rng = np.random.default_rng(0)
  for pool in ("count", "bitwise"):
    words = rng.integers(0, 8, (2, 2))

    def z(words, pool=pool):
      flat = [int(w) for w in words.ravel()]
      if pool == "count":
        return max(w.bit_count() for w in flat)
      return (flat[0] | flat[1] | flat[2] | flat[3]).bit_count()

    want = np.zeros((2, 2))
    for y, x, m in itertools.product(range(2), range(2), range(3)):
      on, off = words.copy(), words.copy()
      on[y, x] |= 1 << m
      off[y, x] &= ~(1 << m)
      want[y, x] += z(on) ** 2 - z(off) ** 2
    np.testing.assert_array_equal(unit_effects(words, 3, pool=pool), want)


def test_autodiff_control_teaches_the_first_of_tied_sites_only():
  v = jnp.zeros((2, 2, 1))
  for pool in ("count", "bitwise"):
    config = PbitConfig(2, "ste_autodiff", pool=pool)
    word = jnp.array([[0, 3], [3, 0]], jnp.uint16)[..., None]
    view = [units.to_windows(x, 2) for x in (v, word)]
    found = jax.grad(lambda x, c=config, w=view[1]: emit(c, 2, x, w, SEEDS)[1].sum())(view[0])
    slope = float(units.count_variance(jnp.zeros(()), config))
    np.testing.assert_allclose(found.reshape(2, 2), [[0, 2 * 2 * slope], [0, 0]], rtol=1e-6)


def test_score_passes_no_gradient():
  v = jnp.linspace(-2, 2, 16).reshape(4, 4, 1)
  np.testing.assert_array_equal(gradient(v, PbitConfig(3, "score"), 2, 1), jnp.zeros_like(v))


def test_identity_control_is_the_surprisal_without_its_slope():
  v = jnp.linspace(-2, 2, 64).reshape(8, 8, 1)
  one, slope = (gradient(v, PbitConfig(1, e), 2, 1) for e in ("ste_identity", "surprisal"))
  p = units.probability(v, 1)
  assert float(one.sum()) > 4
  np.testing.assert_allclose(slope, one * p * (1 - p), rtol=1e-6)


@pytest.mark.parametrize("size", [1, 3, 7, 16])
def test_counts_are_integers_with_their_square_and_the_key_decides(size):
  v = 3 * jax.random.normal(jax.random.key(0), (2, 5, 4, 3)) + 1
  run = jax.jit(pbit, static_argnums=(2, 3))
  key, config = jax.random.key(1), PbitConfig(size)
  count, square = run(key, v, config, 1)
  assert count.dtype == square.dtype == jnp.float32
  np.testing.assert_array_equal(square, count * count)
  assert set(np.unique(count)) <= set(range(size + 1))
  assert len(np.unique(count)) > min(size, 4)
  np.testing.assert_array_equal(count, run(key, v, config, 1)[0])
  assert np.any(count != run(jax.random.key(2), v, config, 1)[0])
  for estimator in ("binary_slope", "ste_autodiff", "score"):
    np.testing.assert_array_equal(count, run(key, v, PbitConfig(size, estimator), 1)[0])
  # The same bits, pooled.
  pooled = run(key, v, config, 2)[0]
  want = np.asarray(count)[:, :4].reshape(2, 2, 2, 2, 2, 3).max(axis=(2, 4))
  np.testing.assert_array_equal(pooled, want)
  keys = jax.random.split(key, 3)
  stacked = jax.vmap(lambda k: pbit(k, v, config, 2)[0])(keys)
  for got, k in zip(stacked, keys, strict=True):
    np.testing.assert_array_equal(got, run(k, v, config, 2)[0])


def test_a_dropped_row_gets_no_gradient_and_half_precision_keeps_its_type():
  v = jnp.zeros((5, 4, 1), jnp.bfloat16)
  found = gradient(v, PbitConfig(7), 2, 1)
  assert found.dtype == jnp.bfloat16
  np.testing.assert_array_equal(found[4], jnp.zeros((4, 1), jnp.bfloat16))
  assert float(jnp.abs(found[:4]).sum()) > 0


@pytest.mark.parametrize(("size", "floor"), [(1, 1.4612), (2, 0.15258), (3, 0.00111)])
def test_the_loss_on_counts_has_its_floor(size, floor):
  """Ten classes, the own one saturated: G is M^2 for it and 0 for the others."""
  v = jnp.where(jnp.arange(20) // 2 == 4, 60.0, -60.0).reshape(1, 1, 1, 20)
  square = pbit(jax.random.key(0), jnp.tile(v, (1, 4, 4, 1)), PbitConfig(size), 2)[1]
  goodness = square.reshape(4, 10, 2).mean(axis=(0, 2))
  np.testing.assert_allclose(jax.nn.logsumexp(goodness) - goodness[4], floor, rtol=2e-3)


def test_local_expectation_at_borders_and_its_refusals():
  config, key = PbitConfig(2), jax.random.key(0)
  v = jax.random.normal(key, (3, 5, 4, 6))
  word = units.draw(jax.random.bits(key, (2, 2)), v, config)
  label = jnp.array([0, 1, 2])
  run = jax.jit(local_expectation, static_argnums=(3, 4, 5))
  found = run(v, word, label, 3, config, 2)
  assert found.shape == v.shape
  np.testing.assert_array_equal(found[:, 4], jnp.zeros((3, 4, 6)))
  whole = run(v[:, :4], word[:, :4], label, 3, config, 2)
  np.testing.assert_array_equal(found[:, :4], whole)
  with pytest.raises(ValueError, match="independent noise, not 'shared'"):
    local_expectation(v, word, label, 3, PbitConfig(2, noise="shared"))
  with pytest.raises(ValueError, match="4 classes do not divide 6 channels"):
    local_expectation(v, word, label, 4, config)
