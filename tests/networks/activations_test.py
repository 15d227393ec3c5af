"""Activations against their formulas in numpy."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.pbit_config import PbitConfig
from fflax.networks.activations import ACTIVATIONS, Pbits, get_activation, relu_ste

X = np.array([-3.0, -0.5, 0.25, 2.0, 7.0])
FORMULAS = {
  "relu": np.maximum(X, 0),
  "relu6": np.clip(X, 0, 6),
  "leaky_relu": np.where(X > 0, X, 0.01 * X),
  "gelu": 0.5 * X * (1 + np.tanh(math.sqrt(2 / math.pi) * (X + 0.044715 * X**3))),
  "tanh": np.tanh(X),
  "silu": X / (1 + np.exp(-X)),
  "identity": X,
  "relu_ste": np.maximum(X, 0),
  "pbits": sum(1 / (1 + np.exp(m - 0.5 - X)) for m in range(1, 8)),
}


def test_every_activation_has_an_oracle():
  assert set(ACTIVATIONS) == set(FORMULAS)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_formula(name):
  activation = get_activation(name)
  np.testing.assert_allclose(
    activation(jnp.asarray(X, jnp.float32)), FORMULAS[name], rtol=2e-6, atol=2e-7
  )
  assert activation is get_activation(activation)


def test_relu_ste_passes_the_gradient_straight_through():
  """Dead units would get no gradient from the peer term, with no visible error."""
  x = jnp.array([-jnp.inf, -2.0, 0.0, 3.0])
  np.testing.assert_array_equal(relu_ste(x), [0, 0, 0, 3])
  gradient = jax.jit(jax.vmap(jax.grad(lambda x: 5 * relu_ste(x))))(x)
  np.testing.assert_array_equal(gradient, [5, 5, 5, 5])


def test_unknown_name():
  with pytest.raises(ValueError, match=r"'swish'; allowed: relu, relu6, leaky_relu, "):
    get_activation("swish")


def test_settings_of_pbits():
  three = get_activation("pbits", PbitConfig(3))
  assert three == Pbits(PbitConfig(3)) != get_activation("pbits")
  assert hash(three) == hash(Pbits(PbitConfig(3)))
  assert get_activation("relu", PbitConfig()) is jax.nn.relu
  with pytest.raises(ValueError, match="belong to activation 'pbits', not to 'relu'"):
    get_activation("relu", PbitConfig(3))
  with pytest.raises(ValueError, match="integer from 1 to 16, not 99"):
    get_activation("pbits", PbitConfig(99))
