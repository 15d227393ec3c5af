"""Nonlinearities by name. Each is one function object, so that equal layers compare equal."""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp

from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import expected_count, mean_field
from fflax.core.pbits import log_prob, pbit
from fflax.types import Array, Key

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


@dataclasses.dataclass(frozen=True)
class Pbits:
  """Tied p-bits as an activation: called as a function, it gives the mean of the count.

  Modules reach their samples through `fflax.networks.units.activate`. Equal settings compare equal.

  Attributes:
    config: of the units.
  """

  config: PbitConfig = dataclasses.field(default_factory=PbitConfig)

  def __post_init__(self) -> None:
    """Raises ValueError if the settings are impossible."""
    self.config.check()

  def __call__(self, x: Array) -> Array:
    """The expected count, float32 of the shape of `x`."""
    return expected_count(x, self.config)

  def emit(self, key: Key | None, x: Array, window: int = 1) -> tuple[Array, Array]:
    """The pooled count and its square, see `fflax.core.pbits.pbit`; their means without a key."""
    if key is None:
      return mean_field(x, self.config, window)
    return pbit(key, x, self.config, window)

  def log_prob(self, key: Key, x: Array) -> Array:
    """The log-probability of what `emit` draws, summed over all axes but the first."""
    return jnp.sum(log_prob(key, x, self.config), axis=tuple(range(1, x.ndim)))


def largest_count(activation: Activation) -> int:
  """M, if the activation's samples are counts up to M; 0 if they are real."""
  return activation.config.units if isinstance(activation, Pbits) else 0


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
    "pbits": Pbits(),
  }
)
"""Activations by name.

leaky_relu has slope 0.01 below zero, gelu is the tanh approximation, relu6 is cut at 6, pbits are
stochastic.
"""


def get_activation(activation: str | Activation, pbits: PbitConfig | None = None) -> Activation:
  """The activation of that name; a function is returned as it is.

  Args:
    activation: in `ACTIVATIONS`, or an elementwise function.
    pbits: settings of "pbits"; the others have none.

  Raises:
    ValueError: if no activation has that name, or if the settings are impossible or another's.
  """
  if not callable(activation) and activation not in ACTIVATIONS:
    raise ValueError(f"Unknown activation {activation!r}; allowed: {', '.join(ACTIVATIONS)}.")
  if pbits is not None and pbits != PbitConfig():
    if activation != "pbits":
      raise ValueError(
        f"The settings of pbits belong to activation 'pbits', not to {activation!r}."
      )
    return Pbits(pbits)
  return activation if callable(activation) else ACTIVATIONS[activation]
