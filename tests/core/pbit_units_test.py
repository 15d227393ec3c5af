"""Samples and expectations of tied p-bits against tables, enumeration and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import pbit_units as units
from fflax.core.pbit_config import PbitConfig
from fflax.core.quantize import seed_words
from tests.core.pbit_enumeration import window_distribution, words_of

V = np.array([-4.0, -2, 0, 2, 4, 8], np.float32)
MEANS = {  # of the count for each of V, then its variance, from the specification of the method
  1: ".0110 .0759 .3775 .8176 .9707 .9994  .0109 .0701 .2350 .1491 .0285 .0006",
  2: ".0151 .1052 .5600 1.4400 1.8948 1.9979  .0149 .0986 .3842 .3842 .0986 .0021",
  3: ".0166 .1162 .6358 1.8176 2.7124 2.9939  .0164 .1094 .4543 .6192 .2477 .0061",
  7: ".0174 .1225 .6817 2.1162 3.9707 6.6953  .0173 .1157 .4991 .8777 .9370 .2647",
}


@pytest.mark.parametrize("size", MEANS)
def test_mean_and_variance_of_the_table(size):
  config = PbitConfig(units=size)
  mean, variance = np.array(MEANS[size].split(), float).reshape(2, -1)
  np.testing.assert_allclose(units.expected_count(V, config), mean, atol=6e-5)
  np.testing.assert_allclose(units.count_variance(V, config), variance, atol=6e-5)
  first, second = units.mean_field(jnp.asarray(V), config)
  exact = [[n.bit_count() for n, _ in words_of(v, config)] for v in V]
  chances = [[p for _, p in words_of(v, config)] for v in V]
  np.testing.assert_allclose(first, np.sum(np.multiply(exact, chances), 1), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(second, np.sum(np.square(exact) * chances, 1), rtol=1e-5, atol=1e-6)


def test_variance_is_the_derivative_of_the_mean_and_many_units_make_a_softplus():
  config = PbitConfig(units=16)
  v = jnp.linspace(-8, 8, 65)
  slope = jax.vmap(jax.grad(lambda x: units.expected_count(x, config)))(v)
  np.testing.assert_allclose(units.count_variance(v, config), slope, rtol=1e-5, atol=1e-7)
  gap = jax.nn.softplus(v) - units.expected_count(v, config)
  assert 0.0105 < float(jnp.max(jnp.abs(gap))) < 0.0107


def test_shared_noise_has_the_same_mean_and_a_larger_variance():
  for size, v, independent, shared in ((3, 0.0, 0.4543, 0.90), (7, 2.0, 0.8777, 2.52)):
    x = jnp.asarray(v)
    found = [units.count_variance(x, PbitConfig(size, noise=n)) for n in ("independent", "shared")]
    np.testing.assert_allclose(found, [independent, shared], atol=6e-3)
    np.testing.assert_allclose(
      units.mean_field(x, PbitConfig(size, noise="shared"))[0],
      units.expected_count(x, PbitConfig(size)),
      rtol=1e-6,
    )


def test_expected_maximum_of_four_equal_sites():
  v = jnp.zeros((2, 2, 1))
  found = [units.expected_max(v, PbitConfig(units=size))[0, 0, 0] for size in (1, 2, 3, 7)]
  np.testing.assert_allclose(found, [0.8499, 1.1812, 1.3183, 1.4011], atol=6e-5)


@pytest.mark.parametrize("noise", ["independent", "shared"])
@pytest.mark.parametrize("pool", ["count", "bitwise"])
def test_mean_field_of_a_window_is_the_enumerated_one(noise, pool):
  v = np.array([[-0.7, 1.2], [2.5, 0.3]], np.float32)
  for size in (1, 2, 3):
    config = PbitConfig(size, noise=noise, pool=pool)
    chances = window_distribution(v.reshape(-1), config)
    k = np.arange(size + 1)
    found = units.mean_field(jnp.asarray(v)[None, :, :, None], config, 2)
    assert found[0].shape == (1, 1, 1, 1)
    want = [np.sum(k * chances), np.sum(k**2 * chances)]
    np.testing.assert_allclose([x[0, 0, 0, 0] for x in found], want, rtol=2e-6)


@pytest.mark.parametrize("noise", ["independent", "shared"])
def test_samples_have_the_moments(noise):
  config, rows = PbitConfig(3, noise=noise), 40_000
  v = jnp.broadcast_to(jnp.array([-2.0, 0.0, 1.0, 3.0])[None], (rows, 4))
  word = units.draw(seed_words(jax.random.key(0), 3), v, config)
  counts = np.asarray(units.count(word), np.float64)
  mean = np.asarray(units.mean_field(v[0], config)[0], np.float64)
  variance = np.asarray(units.count_variance(v[0], config), np.float64)
  np.testing.assert_array_less(abs(counts.mean(0) - mean), 4 * np.sqrt(variance / rows))
  fourth = ((counts - mean) ** 4).mean(0)
  np.testing.assert_array_less(
    abs(counts.var(0) - variance), 4 * np.sqrt((fourth - variance**2) / rows)
  )
  on = np.stack([units.is_on(word, m) for m in (1, 2, 3)], -1)
  p = np.asarray(units.probabilities(v[0], config)).T
  np.testing.assert_array_less(abs(on.mean(0) - p), 4 * np.sqrt(p * (1 - p) / rows))
  np.testing.assert_array_equal(counts, on.sum(-1))
  pairs = (on[..., 0] & on[..., 1]).mean(0)
  want = p[:, 1] if noise == "shared" else p[:, 0] * p[:, 1]
  np.testing.assert_array_less(abs(pairs - want), 4 * np.sqrt(want * (1 - want) / rows))


def test_certain_units_never_err():
  """A zero probability is never below the noise, a one always above: [r < p], not [r <= p]."""
  seeds = seed_words(jax.random.key(1), 16)
  v = jnp.full((1 << 16,), jnp.inf)
  assert set(np.asarray(units.draw(seeds, v, PbitConfig(16)))) == {0xFFFF}
  assert set(np.asarray(units.draw(seeds, -v, PbitConfig(16)))) == {0}


def test_rare_units_are_drawn_as_rarely_as_they_should():
  """8-bit noise would never draw them."""
  rows = 1 << 20
  v = jnp.full((rows,), -8.0)
  p = float(units.probability(v[0], 1))
  drawn = int(units.count(units.draw(seed_words(jax.random.key(2), 1), v, PbitConfig(1))).sum())
  assert p < 2**-11
  assert abs(drawn - p * rows) < 4 * (p * rows) ** 0.5


@pytest.mark.parametrize("noise", ["independent", "shared"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_log_probability_of_every_word(size, noise):
  """And its derivative: with independent noise, the count less its mean."""
  config = PbitConfig(size, noise=noise)
  for v in (-3.0, 0.4, 2.5):
    words, chances = zip(*words_of(v, config), strict=True)
    word, x = jnp.array(words, jnp.uint16), jnp.full((len(words),), v)
    found, back = jax.vjp(lambda x, w=word: units.log_probability(w, x, config), x)
    np.testing.assert_allclose(found, np.log(chances), rtol=1e-5)
    score = np.asarray(back(jnp.ones_like(found))[0], np.float64)
    np.testing.assert_allclose(score @ chances, 0, atol=1e-6)
    if noise == "independent":
      want = units.count(word) - units.expected_count(x, config)
      np.testing.assert_allclose(score, want, atol=1e-6)


def test_windows_drop_an_odd_last_row_and_column():
  x = jnp.arange(2 * 5 * 3 * 2).reshape(2, 5, 3, 2)
  windows = units.to_windows(x, 2)
  assert windows.shape == (2, 2, 2, 1, 2, 2)
  np.testing.assert_array_equal(windows[:, 1, 0, 0, 1], x[:, 2, 1])
  largest = units.over_window(windows, jnp.maximum)
  np.testing.assert_array_equal(largest, x[:, 1:4:2, 1:2])
  assert units.to_windows(x[0, 0, 0], 1).shape == (2,)


@pytest.mark.parametrize(
  ("shape", "window", "message"),
  [
    ((1, 4, 4, 1), 3, "windows of 1 or 2, not 3"),
    ((4, 4), 2, r"\[..., H, W, C\] of at least 2x2"),
    ((1, 1, 4, 1), 2, "at least 2x2"),
  ],
)
def test_impossible_windows(shape, window, message):
  with pytest.raises(ValueError, match=message):
    units.to_windows(jnp.zeros(shape), window)


@pytest.mark.parametrize(
  ("settings", "message"),
  [
    ({"units": 0}, "integer from 1 to 16, not 0"),
    ({"units": 17}, "integer from 1 to 16, not 17"),
    ({"units": 2.0}, "integer from 1 to 16, not 2.0"),
    ({"estimator": "magic"}, "unknown estimator 'magic' of pbits; there are surprisal, "),
    ({"slope_sampler": "or"}, "unknown slope_sampler 'or' of pbits; there are xor, and_not"),
    ({"noise": "none"}, "unknown noise 'none' of pbits; there are independent, shared"),
    ({"pool": "max"}, "unknown pool 'max' of pbits; there are count, bitwise"),
    ({"reuse_forward": True}, "reuse_forward belongs to estimator 'binary_slope'"),
  ],
)
def test_impossible_settings(settings, message):
  with pytest.raises(ValueError, match=message):
    PbitConfig(**settings).check()
  PbitConfig(16, "binary_slope", "and_not", True, "shared", "bitwise").check()
