"""Initial weights and biases by name.

Kernels have the axes `[..., in, out]`; fan_in is all but the last axis, fan_out all but the one
before. Biases may depend on the fan_in of the kernel they stand beside.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.nn import initializers as jax_initializers

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
  return jax.random.uniform(key, shape, dtype, -bound, bound)


_scaled = jax_initializers.variance_scaling

INITIALIZERS: Mapping[str, Initializer] = MappingProxyType(
  {
    "lecun_normal": Initializer(jax_initializers.lecun_normal(), zeros),
    "fan_in_normal": Initializer(_scaled(1.0, "fan_in", "normal"), zeros),
    "fan_out_normal": Initializer(_scaled(1.0, "fan_out", "normal"), zeros),
    # U(-a, a) has variance a^2 / 3.
    "torch_linear": Initializer(_scaled(1.0 / 3.0, "fan_in", "uniform"), uniform_fan_in),
    "he_normal": Initializer(jax_initializers.he_normal(), zeros),
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
