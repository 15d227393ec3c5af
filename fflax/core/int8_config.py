"""How int8 training quantises: the settings, and the named ones."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

from fflax.core.int8_gradients import Gradient
from fflax.core.int8_products import Backend
from fflax.core.quantize import Generator, Rounding


@dataclasses.dataclass(frozen=True)
class Int8Config:
  """How int8 products quantise.

  Attributes:
    act_rounding: of the left operand.
    weight_rounding: of the right operand.
    grad_rounding: of the gradient.
    act_scale: one for the "tensor", or one for each "row" (of a dense layer; an image of a conv).
    weight_scale: one for the "tensor" or for each output "channel".
    grad_scale: likewise, for the weight gradient; that of the inputs always has one.
    scale_groups: equal parts of the batch, each with its own scales of activations and gradients;
      the parts' weight gradients are added in float32. 1: joint; 2, where a method shows positive
      and negative views: the paper's passes, one after the other. Evaluation has a scale a row.
    noise: where stochastic rounding has its noise from, see `fflax.core.quantize.rounding_noise`.
    gradient: "absmax", or one of `fflax.core.int8_gradients.RIVALS`.
    activations: "rounded", or "counts": products that are known to read counts of p-bits (see
      `Numerics.of_counts`) take them as they are, with scale 1. The others round as ever.
    backend: see `fflax.core.int8_products`.
  """

  act_rounding: Rounding = "stochastic"
  weight_rounding: Rounding = "nearest"
  grad_rounding: Rounding = "stochastic"
  act_scale: Literal["tensor", "row"] = "tensor"
  weight_scale: Literal["tensor", "channel"] = "tensor"
  grad_scale: Literal["tensor", "channel"] = "tensor"
  scale_groups: int = 1
  noise: Generator = "hash"
  gradient: Gradient = "absmax"
  activations: Literal["rounded", "counts"] = "rounded"
  backend: Backend | None = None

  def check(self) -> None:
    """Raises ValueError if a value is unknown, or a combination impossible."""
    for name, allowed in _ALLOWED.items():
      value = getattr(self, name)
      if value not in allowed:
        names = ", ".join(map(str, allowed))
        raise ValueError(f"unknown {name} {value!r} of int8; there are {names}")
    if type(self.scale_groups) is not int or self.scale_groups < 1:
      raise ValueError(f"scale_groups of int8 must be at least 1, not {self.scale_groups}")
    scales = (self.act_scale, self.weight_scale, self.grad_scale)
    if self.gradient != "absmax" and scales != ("tensor",) * 3:
      raise ValueError(f"the int8 gradient {self.gradient!r} needs the scale 'tensor' everywhere")
    if self.gradient != "absmax" and self.activations == "counts":
      raise ValueError(f"the int8 gradient {self.gradient!r} is not there for activations 'counts'")
    if self.gradient != "absmax" and self.scale_groups > 1:
      raise ValueError(f"the int8 gradient {self.gradient!r} needs one group of scales")


_ROUNDINGS = get_args(Rounding)
_ALLOWED: Mapping[str, tuple] = {
  "act_rounding": _ROUNDINGS,
  "weight_rounding": _ROUNDINGS,
  "grad_rounding": _ROUNDINGS,
  "act_scale": ("tensor", "row"),
  "weight_scale": ("tensor", "channel"),
  "grad_scale": ("tensor", "channel"),
  "noise": get_args(Generator),
  "gradient": get_args(Gradient),
  "activations": ("rounded", "counts"),
  "backend": (None, *get_args(Backend)),
}

INT8_PRESETS: Mapping[str, Int8Config] = MappingProxyType(
  {
    "int8": Int8Config(),
    "int8_nearest": Int8Config(act_rounding="nearest", grad_rounding="nearest"),
    "int8_ui8": Int8Config(act_rounding="nearest", gradient="ui8"),
    "int8_dai8": Int8Config(act_rounding="nearest", grad_rounding="nearest", gradient="dai8"),
    "int8_gdai8_approximation": Int8Config(gradient="gdai8_approximation"),
    "int8_counts": Int8Config(weight_scale="channel", activations="counts"),
  }
)
"""The paper's int8, direct int8 with rounding to nearest, the published rivals, and int8 of binary
stochastic FF."""
