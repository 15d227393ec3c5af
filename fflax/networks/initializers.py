"""Initial weights and biases by name.

Kernels have the axes `[..., in, out]`; fan_in is all but the last axis, fan_out all but the one
before. Biases may depend on the fan_in of the kernel they stand beside.

Numbers are drawn flat and reshaped. They are the numbers of JAX's own initialisers (the default
generator counts elements), but XLA compiles a draw of four small axes ten times slower.
"""

import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fflax.types import Array, Key


class Initializer(NamedTuple):
  """How the parameters of a layer begin.

  Attributes:
    kernel: `(key, shape, dtype) -> kernel`.
    bias: `(key, shape, dtype, *, fan_in) -> bias`.
  """

  kernel: Callable[..., Array]
  bias: Callable[..., Array]


def zeros(
  key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32, *, fan_in: int
) -> Array:
  """Zero biases."""
  del key, fan_in
  return jnp.zeros(shape, dtype)


def uniform_fan_in(
  key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32, *, fan_in: int
) -> Array:
  """Biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default."""
  bound = fan_in**-0.5
  return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


# Distributions of mean 0 and variance 1.
_DRAWS: Mapping[str, Callable[..., Array]] = {
  "normal": jax.random.normal,
  # The constant is the standard deviation of a normal truncated at two of its own.
  "truncated": lambda key, shape, dtype: (
    jax.random.truncated_normal(key, -2.0, 2.0, shape, dtype) / 0.87962566103423978
  ),
  "uniform": lambda key, shape, dtype: math.sqrt(3) * jax.random.uniform(key, shape, dtype, -1, 1),
}


def _kernel(
  scale: float, fan: Literal["in", "out"], distribution: Literal["normal", "truncated", "uniform"]
) -> Callable[..., Array]:
  """Kernels of mean 0 and variance `scale / fan`."""

  def init(key: Key, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
    last = shape[-2] if fan == "in" else shape[-1]
    deviation = math.sqrt(scale / (math.prod(shape[:-2]) * last))
    return (deviation * _DRAWS[distribution](key, (math.prod(shape),), dtype)).reshape(shape)

  return init


INITIALIZERS: Mapping[str, Initializer] = MappingProxyType(
  {
    "lecun_normal": Initializer(_kernel(1.0, "in", "truncated"), zeros),
    "fan_in_normal": Initializer(_kernel(1.0, "in", "normal"), zeros),
    "fan_out_normal": Initializer(_kernel(1.0, "out", "normal"), zeros),
    # U(-a, a) has variance a^2 / 3.
    "torch_linear": Initializer(_kernel(1.0 / 3.0, "in", "uniform"), uniform_fan_in),
    "he_normal": Initializer(_kernel(2.0, "in", "truncated"), zeros),
  }
)
"""Initialisers by name. Biases are zero where nothing else is said.

`lecun_normal`: variance 1/fan_in, truncated at two standard deviations; `he_normal`: the same with
2/fan_in; `fan_in_normal`, `fan_out_normal`: N(0, 1/fan), not truncated; `torch_linear`: weights and
biases from U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default.
"""


def get_initializer(initializer: str | Initializer) -> Initializer:
  """The initialiser of that name; an `Initializer` is returned as it is.

  Raises:
    ValueError: if no initialiser has that name.
  """
  if isinstance(initializer, Initializer):
    return initializer
  if initializer not in INITIALIZERS:
    raise ValueError(f"Unknown initializer {initializer!r}; allowed: {', '.join(INITIALIZERS)}.")
  return INITIALIZERS[initializer]
