"""The registry: a new method is one line here."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fflax.core.numerics import Numerics
from fflax.methods.backprop import BackpropConfig, backprop
from fflax.methods.binary_stochastic import BinaryStochasticConfig, binary_stochastic
from fflax.methods.channelwise import ChannelwiseConfig, channelwise
from fflax.methods.collaborative import CollaborativeConfig, collaborative
from fflax.methods.dtg import DtgConfig, dtg
from fflax.methods.dtg_mlp import DtgMlpConfig, dtg_mlp
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.methods.hyperspherical import HypersphericalConfig, hyperspherical
from fflax.methods.local_losses import LocalLossesConfig, local_losses
from fflax.methods.recurrent import RecurrentConfig, recurrent
from fflax.types import Method


class MethodEntry(NamedTuple):
  """A registered method: its configuration class and its factory.

  Attributes:
    config: a frozen dataclass.
    factory: `(config, num_classes, numerics) -> Method`; numerics are for what the method itself
      multiplies (heads), None is float32.
  """

  config: type
  factory: Callable[[Any, int, Numerics | None], Method]


METHODS: Mapping[str, MethodEntry] = {
  "forward_forward": MethodEntry(ForwardForwardConfig, forward_forward),
  "recurrent": MethodEntry(RecurrentConfig, recurrent),
  "collaborative": MethodEntry(CollaborativeConfig, collaborative),
  "hyperspherical": MethodEntry(HypersphericalConfig, hyperspherical),
  "channelwise": MethodEntry(ChannelwiseConfig, channelwise),
  "binary_stochastic": MethodEntry(BinaryStochasticConfig, binary_stochastic),
  "dtg": MethodEntry(DtgConfig, dtg),
  "dtg_mlp": MethodEntry(DtgMlpConfig, dtg_mlp),
  "local_losses": MethodEntry(LocalLossesConfig, local_losses),
  "backprop": MethodEntry(BackpropConfig, backprop),
}


def make_method(
  name: str, config: Any, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """The registered method `name`.

  Args:
    name: in `METHODS`.
    config: of that method's class.
    num_classes: K.
    numerics: how the method's own heads multiply; the network's, as a rule. None is float32.

  Raises:
    ValueError: unknown name, a configuration of another method, or fewer than two classes.

  Example:
    >>> method = make_method("hyperspherical", HypersphericalConfig(), num_classes=10)
    >>> method.locality, method.single_pass
    ('strict', True)
  """
  if name not in METHODS:
    raise ValueError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
  entry = METHODS[name]
  if not isinstance(config, entry.config):
    raise ValueError(
      f"method {name!r} takes a {entry.config.__name__}, not a {type(config).__name__}"
    )
  if num_classes < 2:
    raise ValueError(f"a method needs at least two classes, not {num_classes}")
  return entry.factory(config, num_classes, numerics)
