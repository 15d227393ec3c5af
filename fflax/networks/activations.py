"""Nonlinearities by name. Each is one function object, so that equal layers compare equal."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from fflax.types import Array

Activation = Callable[[Array], Array]


def identity(x: Array) -> Array:
  """The input itself."""
  return x


@jax.custom_jvp
def relu_ste(x: Array) -> Array:
  """ReLU whose derivative is taken to be 1 everywhere (straight through), any shape.

  As in the public code loeweX/Forward-Forward: dead units still receive gradient.
  """
  return jnp.maximum(x, 0)


@relu_ste.defjvp
def _relu_ste_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  return relu_ste(*primals), tangents[0]


ACTIVATIONS: Mapping[str, Activation] = MappingProxyType(
  {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "gelu": jax.nn.gelu,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "identity": identity,
    "relu_ste": relu_ste,
  }
)
"""Activations by name.

leaky_relu has slope 0.01 below zero, gelu is the tanh approximation, relu6 is cut at 6.
"""


def get_activation(activation: str | Activation) -> Activation:
  """The activation of that name; a function is returned as it is.

  Raises:
    ValueError: if no activation has that name.
  """
  if callable(activation):
    return activation
  if activation not in ACTIVATIONS:
    raise ValueError(f"Unknown activation {activation!r}; allowed: {', '.join(ACTIVATIONS)}.")
  return ACTIVATIONS[activation]
