"""Hyper-parameters as tracers: they compute as floats do, and what needs a number is found."""

import math
import operator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.traced import NotTraceable, TracedFloat, weak

NUMBERS = np.array([0.5, 2.0])


def over_points(function, numbers=NUMBERS):
  """`function` of a traced float at every point, under vmap."""
  traced = lambda x: function(TracedFloat("theta", weak(x), numbers))  # noqa: E731
  return jax.vmap(traced)(jnp.asarray(numbers, jnp.float32))


@pytest.mark.parametrize(
  "compute",
  [
    lambda t: t + 1, lambda t: 1 - t, lambda t: 3 * t, lambda t: 1 / t, lambda t: t**2,
    lambda t: 2**t, lambda t: -t, lambda t: abs(-t), lambda t: t / t - t,
    lambda t: (1 - t) * np.float32(3), lambda t: np.arange(3.0) @ jnp.full(3, 1.0) * t,
  ],
)  # fmt: skip
def test_arithmetic_is_that_of_floats(compute):
  found = over_points(lambda t: jnp.asarray(compute(t), jnp.float32))
  np.testing.assert_allclose(found, [compute(float(x)) for x in NUMBERS], rtol=1e-6)


def test_it_meets_arrays_of_either_library_from_both_sides():
  row = np.arange(3, dtype=np.float32)
  for array in (row, jnp.asarray(row)):
    np.testing.assert_allclose(over_points(lambda t, a=array: a * t), np.outer(NUMBERS, row))
    np.testing.assert_allclose(over_points(lambda t, a=array: t - a), NUMBERS[:, None] - row)
    assert over_points(lambda t, a=array: t > a).tolist() == (NUMBERS[:, None] > row).tolist()


def test_jitted_functions_take_it():
  row = jnp.arange(3.0)
  chosen = jax.jit(lambda x, t: x * t if t > 0 else x)  # a plain float would be a tracer here
  pairs = {jnp.minimum: jnp.minimum, jnp.power: jnp.power, chosen: operator.mul}
  for function, plain in pairs.items():
    found = over_points(lambda t, f=function: f(row, t))
    np.testing.assert_allclose(found, [plain(row, float(x)) for x in NUMBERS], rtol=1e-6)


def test_it_widens_no_bfloat16_as_a_python_float_does_not():
  found = over_points(lambda t: jnp.ones(2, jnp.bfloat16) * (2 * t))
  assert found.dtype == jnp.bfloat16


def test_comparisons_are_answered_by_the_numbers_and_only_if_all_agree():
  def ask(t):
    assert 0 < t < math.inf and t and t != 7 and t <= t
    assert not t < 0.5 and t >= 0.5
    with pytest.raises(NotTraceable, match=r"^the points do not agree in whether theta > 1$"):
      assert t > 1
    assert max(0.0, t) is t
    return jnp.asarray(t)

  np.testing.assert_allclose(over_points(ask), NUMBERS)
  with pytest.raises(NotTraceable, match="theta != 0"):
    over_points(lambda t: 1.0 if t else 2.0, np.array([0.0, 1.0]))
  # What was computed from it is compared by its own numbers.
  with pytest.raises(NotTraceable, match="theta < 0"):
    over_points(lambda t: 1.0 if 1 - t < 0 else 2.0)


@pytest.mark.parametrize(
  "needs_a_number", [float, int, math.isfinite, range, hash, lambda t: {t: 1}, lambda t: [1][t]]
)
def test_whatever_needs_the_number_fails_and_is_not_compiled_for_one_point(needs_a_number):
  with pytest.raises(TypeError):
    over_points(needs_a_number)
