"""Length normalisation: what the next layer may and may not see."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.normalize import CHANNEL_NORMS, NORMALIZATIONS, dropout

LENGTHS = {"rms": lambda v: np.sqrt(np.mean(v**2)), "l2": lambda v: np.sqrt(np.sum(v**2))}


def example(shape=(13,), seed=0):
  return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("kind", LENGTHS)
@pytest.mark.parametrize("shape", [(13,), (3, 4, 2)])
def test_unit_length_same_direction_no_mean_removed(kind, shape):
  """A mean removed (layer norm) would hand on something else at the same accuracy level."""
  h = np.abs(example(shape)) + 1
  out = np.asarray(NORMALIZATIONS[kind](jnp.asarray(h)))
  assert LENGTHS[kind](out) == pytest.approx(1, rel=1e-6)
  np.testing.assert_allclose(out, h / LENGTHS[kind](h), rtol=1e-5)


@pytest.mark.parametrize("kind", LENGTHS)
@hypothesis.given(
  scale=st.floats(1e-3, 1e6), seed=st.integers(0, 1000), size=st.sampled_from([1, 2, 30])
)
def test_length_is_not_handed_on(kind, scale, seed, size):
  """Goodness lives in the length: if it leaked, the next layer could copy it."""
  h = example((size,), seed)
  hypothesis.assume(np.linalg.norm(h) > 0.1)
  first, second = (np.asarray(NORMALIZATIONS[kind](jnp.asarray(a))) for a in (h, scale * h))
  np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_dead_rows_stay_zero_with_finite_gradient(kind):
  """d sqrt(s)/ds at 0 is infinite: one dead row would poison every weight with NaN."""
  weight = jnp.asarray(example())
  value, grad = jax.value_and_grad(lambda h: jnp.sum(weight * NORMALIZATIONS[kind](h, 1e-6)))(
    jnp.zeros(13)
  )
  assert value == 0
  assert np.all(np.isfinite(grad))


@pytest.mark.parametrize("kind", LENGTHS)
def test_gradient_against_the_closed_form(kind):
  """(g - u <g, u>) / |h|, with the mean for "rms": orthogonal to h."""
  h, g = example(seed=1).astype(np.float64), example(seed=2).astype(np.float64)
  dot = np.mean if kind == "rms" else np.sum
  length = LENGTHS[kind](h)
  u = h / length
  got = jax.grad(lambda a: jnp.sum(jnp.asarray(g, jnp.float32) * NORMALIZATIONS[kind](a)))(
    jnp.asarray(h, jnp.float32)
  )
  np.testing.assert_allclose(got, (g - u * dot(g * u)) / length, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", LENGTHS)
def test_floor_stands_under_the_root(kind):
  """At |h| = eps the result has length 1/sqrt(2); beside the root it would be 1/2."""
  h = np.zeros(4, np.float32)
  h[0] = 2e-3 if kind == "rms" else 1e-3  # length 1e-3 in both
  out = np.asarray(NORMALIZATIONS[kind](jnp.asarray(h), 1e-3))
  assert LENGTHS[kind](out) == pytest.approx(2**-0.5, rel=1e-5)


def test_none_hands_on_float32_as_it_is():
  h = jnp.asarray(example(), jnp.bfloat16)
  out = NORMALIZATIONS["none"](h)
  assert out.dtype == jnp.float32
  np.testing.assert_array_equal(out, h.astype(jnp.float32))


@pytest.mark.parametrize("kind", CHANNEL_NORMS)
def test_norms_of_the_last_axis(kind):
  h = example((2, 3, 5)) + 2
  x = h.astype(np.float64)
  centred = x - x.mean(-1, keepdims=True)
  want = {
    "layer": centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 0.1),
    "rms": x / np.sqrt((x**2).mean(-1, keepdims=True) + 0.1),
    "none": x,
  }
  got = CHANNEL_NORMS[kind](jnp.asarray(h), 0.1)
  np.testing.assert_allclose(got, want[kind], rtol=1e-5)
  slope = jax.grad(lambda h: jnp.sum(CHANNEL_NORMS[kind](h)))(jnp.zeros((2, 5)))
  assert np.all(np.isfinite(slope)), "a dead place must not give NaN"


def test_dropout_keeps_the_mean_and_drops_at_its_rate():
  x = jnp.full((400, 100), 3.0)
  got = np.asarray(dropout(jax.random.key(0), x, 0.25))
  assert set(np.unique(got)) == {0.0, 4.0}
  # Four standard deviations of a binomial of 40,000.
  assert abs((got == 0).mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / got.size)
  for key, rate in ((None, 0.25), (jax.random.key(0), 0.0)):
    np.testing.assert_array_equal(dropout(key, x, rate), x)
