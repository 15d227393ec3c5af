"""Quantisation against numpy in float64, and the statistics of its noise."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fflax.core import quantize as qt

GENERATORS = pytest.mark.parametrize("generator", ["hash", "threefry"])


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def oracle(x, axis=None, noise=None):
  """Values and scale by numpy; the scale in float32, as it is stored."""
  others = None if axis is None else tuple(a for a in range(x.ndim) if a not in axis)
  largest = np.abs(x).max(axis=others, keepdims=axis is not None)
  scale = np.maximum(largest, np.float32(1e-30)) * np.float32(1 / 127)
  v = x / scale
  v = np.rint(v) if noise is None else np.floor(v) + (noise < v - np.floor(v))
  return np.clip(v, -127, 127).astype(np.int8), scale


@pytest.mark.parametrize("axis", [None, (1,), (0, 2), (-1,)])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_equals_numpy(axis, rounding):
  x = normal(0, 7, 5, 3) * 2.5
  noise = (
    None if rounding == "nearest" else np.asarray(qt.rounding_noise(jax.random.key(1), x.shape))
  )
  got = qt.quantize(
    jnp.asarray(x),
    axis=axis,
    rounding=rounding,
    noise=None if noise is None else jnp.asarray(noise),
  )
  values, scale = oracle(x, axis and tuple(a % 3 for a in axis), noise)
  assert got.values.dtype == jnp.int8 and got.scale.dtype == jnp.float32
  assert got.scale.shape == scale.shape
  np.testing.assert_array_equal(got.values, values)
  np.testing.assert_array_equal(got.scale, scale)
  error = np.abs(np.asarray(qt.dequantize(got), np.float64) - x)
  assert np.all(error <= scale * (0.5 if noise is None else 1.0) * (1 + 1e-5))
  assert np.abs(values).max() == 127


def test_one_axis_may_be_a_number():
  x = jnp.asarray(normal(3, 4, 6))
  a, b = qt.quantize(x, axis=1), qt.quantize(x, axis=(1,))
  np.testing.assert_array_equal(a.values, b.values)
  assert a.scale.shape == (1, 6)


@given(seed=st.integers(0, 1000), power=st.integers(-20, 20), axis=st.sampled_from([None, 1]))
def test_powers_of_two_change_the_scale_alone(seed, power, axis):
  x = jnp.asarray(normal(seed, 4, 6))
  noise = qt.rounding_noise(jax.random.key(seed), x.shape)
  for kwargs in ({}, {"rounding": "stochastic", "noise": noise}):
    a = qt.quantize(x, axis=axis, **kwargs)
    b = qt.quantize(x * 2.0**power, axis=axis, **kwargs)
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.scale * 2.0**power, b.scale)


def test_never_minus_128_and_zeros_stay_zeros():
  x = jnp.asarray([-1.0, 1.0, -0.5, 0.0])
  for noise in (0.0, 0.5, 1 - 2**-24):
    got = qt.quantize(x, rounding="stochastic", noise=jnp.full(4, noise))
    assert got.values.tolist()[:2] == [-127, 127] and got.values[3] == 0
  zero = qt.quantize(jnp.zeros((3, 2)), rounding="stochastic", noise=jnp.full((3, 2), 0.999))
  assert not np.any(zero.values) and np.all(np.isfinite(zero.scale)) and zero.scale > 0
  assert qt.quantize(jnp.zeros((0, 2))).values.shape == (0, 2)


def test_a_given_scale_clips():
  got = qt.quantize(jnp.asarray([-9.0, -1.2, 0.3, 5.0]), scale=jnp.float32(0.01))
  assert got.values.tolist() == [-127, -120, 30, 127]


def test_integers_stay_under_stochastic_rounding():
  x = jnp.arange(-127.0, 128)
  for noise in (0.0, 1 - 2**-24):
    got = qt.quantize(x, rounding="stochastic", noise=jnp.full(255, noise), scale=jnp.float32(1))
    np.testing.assert_array_equal(got.values, np.arange(-127, 128))


@GENERATORS
def test_rounds_up_with_the_probability_of_the_fraction(generator):
  n = 200_000
  noise = qt.rounding_noise(jax.random.key(0), (n,), generator)
  got = qt.quantize(
    jnp.full(n, 0.73), rounding="stochastic", noise=noise, scale=jnp.float32(0.1)
  ).values
  assert set(np.unique(got)) == {7, 8}
  assert abs(np.mean(np.asarray(got) == 8) - 0.3) < 4 * math.sqrt(0.3 * 0.7 / n)


@GENERATORS
def test_unbiased_and_uncorrelated(generator):
  n, key = 100_000, jax.random.key(4)
  u, v = (np.asarray(qt.rounding_noise(k, (n,), generator)) for k in jax.random.split(key))
  assert u.dtype == np.float32 and 0 <= u.min() and u.max() < 1
  sigma = 1 / math.sqrt(12 * n)
  assert abs(u.mean() - 0.5) < 4 * sigma
  assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / n)
  counts, _ = np.histogram(u, bins=256, range=(0, 1))
  chi = np.sum((counts - n / 256) ** 2) / (n / 256)
  assert abs(chi - 255) < 4 * math.sqrt(2 * 255)
  for other in (np.roll(u, 1), np.roll(u, 64), v):  # neighbours, rows, seeds
    assert abs(np.corrcoef(u, other)[0, 1]) < 4 / math.sqrt(n)


def test_small_means_survive():
  # A thousandth of a step: 8-bit noise would round it to zero always.
  n = 400_000
  noise = qt.rounding_noise(jax.random.key(9), (n,))
  up = np.asarray(
    qt.quantize(jnp.full(n, 1e-3), rounding="stochastic", noise=noise, scale=1.0).values
  )
  assert abs(up.mean() - 1e-3) < 4 * math.sqrt(1e-3 / n)


@GENERATORS
def test_same_key_same_bits(generator):
  a, b, c = (np.asarray(qt.rounding_noise(jax.random.key(k), (5, 7), generator)) for k in (0, 0, 1))
  np.testing.assert_array_equal(a, b)
  assert not np.array_equal(a, c)


def test_hash_of_a_key_is_the_hash_of_its_words():
  key = jax.random.key(5)
  np.testing.assert_array_equal(
    qt.rounding_noise(key, (9,)), qt.rounding_noise(qt.seed_words(key, 1)[0], (9,))
  )


def test_no_shifted_copies_between_seeds():
  n = 4096
  base = np.asarray([123, 456], np.uint32)
  u = np.asarray(qt.rounding_noise(jnp.asarray(base), (n,)))
  # The worst seed: its first word makes the hash's first step a copy shifted by one element.
  shifted = base + np.asarray([0x9E3779B9, 99], np.uint32)
  others = [shifted, *np.asarray(qt.seed_words(jax.random.key(2), 20))]
  for words in others:
    v = np.asarray(qt.rounding_noise(jnp.asarray(words), (n,)))
    # Circular cross-correlation over all shifts: a copy would give a peak near 1.
    spectrum = np.fft.rfft(u - u.mean()) * np.conj(np.fft.rfft(v - v.mean()))
    correlation = np.fft.irfft(spectrum, n) / (n * u.std() * v.std())
    assert np.abs(correlation).max() < 6 / math.sqrt(n)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_bad_numbers_are_loud(bad, rounding):
  x = normal(0, 4, 3)
  x[2, 1] = bad
  noise = jnp.full((4, 3), 0.25) if rounding == "stochastic" else None
  tensor = qt.quantize(jnp.asarray(x), rounding=rounding, noise=noise)
  assert np.isnan(tensor.scale) and np.all(np.isnan(qt.dequantize(tensor)))
  assert np.abs(np.asarray(tensor.values, int)).max() <= 127
  channels = np.asarray(
    qt.dequantize(qt.quantize(jnp.asarray(x), axis=1, rounding=rounding, noise=noise))
  )
  assert np.all(np.isnan(channels[:, 1])) and np.all(np.isfinite(channels[:, [0, 2]]))


def test_noise_of_a_tree():
  tree = {"a": jnp.zeros((3, 4)), "b": [jnp.zeros((3, 4)), jnp.zeros(())]}
  noise = qt.noise_like(jax.random.key(0), tree)
  assert jax.tree.map(jnp.shape, noise) == jax.tree.map(jnp.shape, tree)
  assert not np.array_equal(noise["a"], noise["b"][0])
  quantized = jax.tree.map(
    lambda x, u: qt.quantize(x + 0.5, rounding="stochastic", noise=u, scale=jnp.float32(1)),
    tree,
    noise,
  )
  np.testing.assert_array_equal(quantized["a"].values, np.asarray(noise["a"]) < 0.5)


@settings(max_examples=5)
@given(seed=st.integers(0, 100))
def test_same_eagerly_jitted_and_mapped(seed):
  x = jnp.asarray(normal(seed, 2, 3, 4))
  keys = jax.random.split(jax.random.key(seed), 2)

  def one(x, key):
    return qt.quantize(x, rounding="stochastic", noise=qt.rounding_noise(key, x.shape)).values

  mapped = jax.jit(jax.vmap(one))(x, keys)
  for i in range(2):
    np.testing.assert_array_equal(mapped[i], one(x[i], keys[i]))


def test_refusals():
  x = jnp.ones(3)
  with pytest.raises(ValueError, match="unknown rounding 'up'; there are nearest, stochastic"):
    qt.quantize(x, rounding="up")
  with pytest.raises(ValueError, match=r"needs noise of shape \(3,\), found no noise"):
    qt.quantize(x, rounding="stochastic")
  with pytest.raises(ValueError, match=r"found noise of shape \(2,\)"):
    qt.quantize(x, rounding="stochastic", noise=jnp.ones(2))
  with pytest.raises(ValueError, match="unknown generator 'dice'"):
    qt.rounding_noise(jax.random.key(0), (3,), "dice")
