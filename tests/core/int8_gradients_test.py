"""The rivals' gradient quantisers, against numpy and the numbers of their papers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import int8_gradients as ig
from fflax.core.int8 import int8
from fflax.core.int8_config import INT8_PRESETS, Int8Config
from fflax.core.quantize import quantize

DENSE = (((1,), (0,)), ((), ()))
KEY = jax.random.key(0)  # without one, products evaluate: no rival quantises their gradient
NEAREST = {"act_rounding": "nearest", "grad_rounding": "nearest"}


def rounded(g, axis=None, scale=None):
  return quantize(g, axis=axis, scale=scale)


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@functools.cache
def step(name):
  """One gradient through a rival: the quantised values of both copies, and the new state."""

  @jax.jit
  def run(g, state):
    weights, inputs, new = ig.RIVALS[name].quantize(g, state, rounded, rounded)
    return weights, inputs, new

  return run


def value(parts) -> np.ndarray:
  return sum(np.asarray(p.values, np.float64) * np.asarray(p.scale, np.float64) for p in parts)


def error(g, estimate) -> float:
  """1 - cos in float64."""
  g, estimate = g.ravel().astype(np.float64), np.asarray(estimate, np.float64).ravel()
  return 1 - g @ estimate / np.sqrt((g @ g) * (estimate @ estimate))


def clipped(g, c):
  return np.clip(np.rint(g.astype(np.float64) * 127 / c), -127, 127) * c / 127


def test_direction_error():
  a = jnp.asarray([3.0, 4.0])
  assert abs(ig.direction_error(a, 7 * a)) < 1e-6
  np.testing.assert_allclose(ig.direction_error(a, jnp.asarray([4.0, -3.0])), 1.0, rtol=1e-6)
  assert ig.direction_error(jnp.zeros(2), a) == 0


def test_phi():
  phi = np.asarray(ig.ui8_phi(jnp.asarray([0.0, 0.05, 0.5])))
  np.testing.assert_allclose(phi, [1.0, 0.367879, 0.1], rtol=1e-5)


def test_discriminator_of_channels():
  rng, n = np.random.default_rng(0), 40_000
  g = np.stack([rng.normal(size=n), rng.uniform(-1, 1, n), rng.laplace(size=n)], axis=1)
  g = g.astype(np.float32)
  np.testing.assert_array_equal(jax.jit(ig.dai8_is_gaussian)(g), [True, True, False])
  # The same for images, channels last.
  maps = g.reshape(100, 20, 20, 3)
  np.testing.assert_array_equal(jax.jit(ig.dai8_is_gaussian)(maps), [True, True, False])


def test_ui8_searches_the_best_clip_and_keeps_it_for_a_period():
  g = np.random.default_rng(1).standard_t(3, (400, 50)).astype(np.float32)
  errors = [error(g, clipped(g, np.abs(g).max() * k / 20)) for k in range(1, 21)]
  fraction = (1 + np.argmin(errors)) / 20
  weights, inputs, state = step("ui8")(g, ig.RIVALS["ui8"].initial_state((3, 50)))
  assert fraction < 1
  np.testing.assert_allclose(state, [1, fraction, np.exp(-20 * min(errors))], rtol=1e-4)
  np.testing.assert_allclose(value(weights), clipped(g, fraction * np.abs(g).max()), rtol=1e-3)
  np.testing.assert_array_equal(value(weights), value(inputs))
  # Another gradient before the next search: the same fraction of its own maximum.
  h = normal(2, 400, 50) * 5
  weights, _, state = step("ui8")(h, state)
  assert state[0] == 2 and np.float32(state[1]) == np.float32(fraction)
  np.testing.assert_allclose(np.abs(value(weights)).max(), fraction * np.abs(h).max(), rtol=1e-5)
  # The last step of the period, then a search.
  assert step("ui8")(h, jnp.asarray([99.0, 0.05, 0.1]))[2][0] == 0
  again = np.asarray(step("ui8")(h, jnp.asarray([0.0, 0.05, 0.1]))[2])
  assert again[0] == 1 and again[1] > 0.5 and again[2] > 0.99


def test_ui8_does_not_clip_for_nothing():
  # All magnitudes equal: every clip has the same direction.
  g = np.where(normal(0, 30, 4) > 0, 2.0, -2.0).astype(np.float32)
  weights, _, state = step("ui8")(g, ig.RIVALS["ui8"].initial_state((3, 4)))
  assert state[1] == 1
  np.testing.assert_allclose(value(weights), g, rtol=1e-6)


def test_dai8_clips_tails_by_a_moving_average_for_each_channel():
  rng = np.random.default_rng(3)
  initial = ig.RIVALS["dai8"].initial_state((7, 2))
  np.testing.assert_array_equal(initial, np.zeros(3))

  def draw(factor):
    g = np.stack([rng.normal(size=5000), rng.laplace(size=5000)], axis=1) * [1, factor]
    return g.astype(np.float32)

  first, second = draw(1), draw(4)
  weights, inputs, state = step("dai8")(first, initial)
  largest = np.abs(first).max(axis=0)
  np.testing.assert_allclose(state, [1, *largest], rtol=1e-6)
  np.testing.assert_allclose(value(weights), clipped(first, largest), rtol=1e-3, atol=1e-6)
  np.testing.assert_allclose(value(inputs), clipped(first, largest.max()), rtol=1e-3, atol=1e-6)
  weights, inputs, state = step("dai8")(second, state)
  now = np.abs(second).max(axis=0)
  moved = 0.2 * largest[1] + 0.8 * now[1]
  np.testing.assert_allclose(state, [1, now[0], moved], rtol=1e-6)
  assert np.abs(value(weights)[:, 1]).max() < 0.95 * now[1]
  np.testing.assert_allclose(np.abs(value(weights)).max(axis=0), [now[0], moved], rtol=1e-5)
  np.testing.assert_allclose(np.abs(value(inputs)).max(), now.max(), rtol=1e-5)


def test_gdai8_approximation_searches_the_boundary():
  g = np.random.default_rng(1).standard_t(3, (400, 50)).astype(np.float32)
  largest = np.abs(g).max()

  def estimate(r):
    fine = np.abs(g) <= r * largest
    return np.where(fine, clipped(g, r * largest), clipped(g, largest))

  errors = [error(g, estimate(2.0**-e)) for e in range(8)]
  best = int(np.argmin(errors))
  weights, _, state = step("gdai8_approximation")(g, jnp.zeros(2))
  assert 0 < best and state.tolist() == [1, best]
  np.testing.assert_allclose(value(weights), estimate(2.0**-best), rtol=1e-3, atol=1e-6)
  assert error(g, value(weights)) < errors[0] / 10


def test_two_segments_that_meet_at_the_largest_value_equal_one_scale():
  g = normal(4, 30, 7)
  weights, _, state = step("gdai8_approximation")(g, jnp.asarray([5.0, 0.0]))
  np.testing.assert_array_equal(weights[0].values, jax.jit(quantize)(g).values)
  assert not np.any(weights[1].values)
  assert state.tolist() == [6, 0]


@pytest.mark.parametrize("name", ig.RIVALS)
def test_zero_and_bad_gradients(name):
  initial = ig.RIVALS[name].initial_state((3, 4))
  weights, inputs, state = step(name)(jnp.zeros((6, 4)), initial)
  assert not np.any(value(weights)) and not np.any(value(inputs)) and np.all(np.isfinite(state))
  bad = jnp.ones((6, 4)).at[2, 1].set(jnp.nan)
  weights, inputs, _ = step(name)(bad, initial)
  assert np.all(np.isnan(value(weights)[:, 1])) and np.all(np.isnan(value(inputs)))


def gradients(config, x, w, g, state):
  @jax.jit
  def run(x, w, g, state):
    product = functools.partial(int8(config).dot_general, dimension_numbers=DENSE, key=KEY)
    out, back = jax.vjp(lambda x, w, s: product(x, w, state=s), x, w, state)
    return out, *back(g)

  return run(x, w, g, state)


@pytest.mark.parametrize("name", ig.RIVALS)
def test_the_new_state_takes_the_place_of_a_gradient(name):
  x, w, g = normal(0, 6, 9), normal(1, 9, 5), normal(2, 6, 5)
  config = Int8Config(**NEAREST, gradient=name)
  state = int8(config).gradient_state(w.shape)
  weights, inputs, want = step(name)(g, state)
  out, dx, dw, got = gradients(config, x, w, g, state)
  np.testing.assert_array_equal(got, want)
  assert got.dtype == jnp.float32 and got.shape == state.shape
  qx, qw = (q.values * np.float64(q.scale) for q in (quantize(x), quantize(w)))
  np.testing.assert_allclose(out, qx @ qw, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dw, qx.T @ value(weights), rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(dx, value(inputs) @ qw.T, rtol=1e-5, atol=1e-5)


def test_gdai8_approximation_with_boundary_one_is_absmax_bit_for_bit():
  x, w, g = normal(0, 6, 9), normal(1, 9, 5), normal(2, 6, 5)
  a = gradients(Int8Config(), x, w, g, None)
  state = jnp.asarray([1.0, 0.0])
  b = gradients(Int8Config(gradient="gdai8_approximation"), x, w, g, state)
  for one, other in zip(a[:3], b[:3], strict=True):
    np.testing.assert_array_equal(one, other)


def test_states_map_over_seeds():
  g = jnp.asarray(normal(0, 3, 20, 4))
  states = jnp.asarray([[0.0, 1, 1], [5, 0.5, 0.7], [99, 0.3, 0.8]])
  mapped = jax.jit(jax.vmap(lambda g, s: ig.RIVALS["ui8"].quantize(g, s, rounded, rounded)[2]))
  got = mapped(g, states)
  for i in range(3):
    np.testing.assert_allclose(got[i], step("ui8")(g[i], states[i])[2], rtol=1e-5)


def test_presets_and_refusals():
  for name, config in INT8_PRESETS.items():
    numerics = int8(config, name=name)
    assert numerics.name == name and numerics.takes_key
    assert (numerics.gradient_state is None) == (config.gradient == "absmax")
  assert INT8_PRESETS["int8_nearest"].grad_rounding == "nearest"
  x = normal(0, 6, 6)
  with pytest.raises(ValueError, match="the int8 gradient 'ui8' needs its state"):
    gradients(INT8_PRESETS["int8_ui8"], x, x, x, None)


@pytest.mark.parametrize("name", ig.RIVALS)
def test_convolutions_take_states(name):
  config = Int8Config(gradient=name)
  numerics = int8(config)
  x, w = (
    jax.ShapeDtypeStruct((2, 5, 5, 8), jnp.float32),
    jax.ShapeDtypeStruct((3, 3, 8, 4), jnp.float32),
  )
  state = numerics.gradient_state(w.shape)

  def loss(x, w, state):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jnp.sum(
      numerics.conv_general_dilated(
        x, w, (1, 1), "SAME", dimension_numbers=numbers, key=KEY, state=state
      )
    )

  dx, dw, new = jax.eval_shape(jax.grad(loss, (0, 1, 2)), x, w, state)
  assert (dx.shape, dw.shape, new.shape) == (x.shape, w.shape, state.shape)
