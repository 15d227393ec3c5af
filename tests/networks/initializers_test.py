"""Initial weights by their moments and bounds: a wrong fan trains, only worse."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.networks.initializers import INITIALIZERS, Initializer, get_initializer

DENSE, CONV = (300, 400), (3, 3, 40, 50)
FANS = {DENSE: (300, 400), CONV: (360, 450)}
VARIANCE = {
  "lecun_normal": lambda fan_in, fan_out: 1 / fan_in,
  "fan_in_normal": lambda fan_in, fan_out: 1 / fan_in,
  "fan_out_normal": lambda fan_in, fan_out: 1 / fan_out,
  "torch_linear": lambda fan_in, fan_out: 1 / (3 * fan_in),
  "he_normal": lambda fan_in, fan_out: 2 / fan_in,
}
# Fourth moment over squared variance; truncation at two standard deviations lowers the normal's 3.
KURTOSIS = {
  "lecun_normal": 2.37,
  "fan_in_normal": 3.0,
  "fan_out_normal": 3.0,
  "torch_linear": 1.8,
  "he_normal": 2.37,
}


def test_every_initializer_has_an_oracle():
  assert set(INITIALIZERS) == set(VARIANCE)


@pytest.mark.parametrize("shape", [DENSE, CONV], ids=["dense", "conv"])
@pytest.mark.parametrize("name", list(INITIALIZERS))
def test_kernel_moments(name, shape):
  """Mean, variance and kurtosis within 4 standard errors, for dense and conv fans."""
  kernel = np.asarray(INITIALIZERS[name].kernel(jax.random.key(0), shape, jnp.float32), float)
  variance, n = VARIANCE[name](*FANS[shape]), kernel.size
  assert abs(kernel.mean()) < 4 * math.sqrt(variance / n)
  error = math.sqrt((KURTOSIS[name] - 1) / n)
  assert abs(kernel.var() / variance - 1) < 4 * error
  assert (kernel**4).mean() / variance**2 == pytest.approx(KURTOSIS[name], abs=0.12)


def test_flat_draws_are_jax_draws():
  """Drawing flat must not change the numbers."""
  shape = (3, 3, 4, 8)
  kernel = INITIALIZERS["lecun_normal"].kernel(jax.random.key(5), shape, jnp.float32)
  expected = jax.nn.initializers.lecun_normal()(jax.random.key(5), shape, jnp.float32)
  np.testing.assert_allclose(kernel, expected, rtol=1e-5, atol=1e-7)


def test_torch_linear_bounds():
  """Weights and biases fill (-1/sqrt(fan_in), 1/sqrt(fan_in)); elsewhere biases are zero."""
  fan_in = 144
  torch = INITIALIZERS["torch_linear"]
  kernel = torch.kernel(jax.random.key(0), (fan_in, 500), jnp.float32)
  bias = torch.bias(jax.random.key(1), (5000,), jnp.float32, fan_in=fan_in)
  for values in (kernel, bias):
    assert 0.99 / 12 < jnp.abs(values).max() <= 1 / 12
  assert abs(float(bias.mean())) < 4 * (1 / 12) / math.sqrt(3 * 5000)
  for name in set(INITIALIZERS) - {"torch_linear"}:
    assert not INITIALIZERS[name].bias(jax.random.key(1), (50,), jnp.float32, fan_in=3).any()


def test_get_initializer():
  assert get_initializer("he_normal") is INITIALIZERS["he_normal"]
  own = Initializer(*INITIALIZERS["he_normal"])
  assert get_initializer(own) is own
  with pytest.raises(ValueError, match=r"'xavier'; allowed: lecun_normal, "):
    get_initializer("xavier")
