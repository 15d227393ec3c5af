"""How tied p-bits sample, pool and learn: the settings."""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, get_args

Estimator = Literal["surprisal", "binary_slope", "ste_identity", "ste_autodiff", "score"]
SlopeSampler = Literal["xor", "and_not"]
Sharing = Literal["independent", "shared"]
BitPool = Literal["count", "bitwise"]

MAX_UNITS = 16
"""The bits of one site fit into one word of 16 bits."""


@dataclasses.dataclass(frozen=True)
class PbitConfig:
  """M binary units that share one pre-activation, and how a gradient passes them.

  Attributes:
    units: M, 1 to 16; the activation is their number that are on.
    estimator: of the gradient. "surprisal": the effect of switching each unit on, times its slope
      p(1-p); "binary_slope": the slope is one bit of two fresh samples, with the same mean;
      controls: "ste_identity": the slope is 1; "ste_autodiff": the derivative of the square of the
      sample, at one site of a pooling window; "score": no gradient, for losses that bring theirs.
    slope_sampler: of "binary_slope": "xor" of the two samples, halved, or "and_not": the first is
      on and the second is off. The same mean, and xor has the smaller variance.
    reuse_forward: whether "binary_slope" takes the sample of the forward pass as one of its two:
      one draw less, and a bias of the order of one unit's share of the goodness.
    noise: "independent" for each unit, or one random number a site, "shared" by its units.
    pool: "count": 2x2 pooling takes the largest count; "bitwise": each unit's OR, then the count.
      The same if noise is shared.
  """

  units: int = 7
  estimator: Estimator = "surprisal"
  slope_sampler: SlopeSampler = "xor"
  reuse_forward: bool = False
  noise: Sharing = "independent"
  pool: BitPool = "count"

  def check(self) -> None:
    """Raises ValueError if a value is unknown or impossible."""
    if type(self.units) is not int or not 1 <= self.units <= MAX_UNITS:
      raise ValueError(f"pbits units must be an integer from 1 to {MAX_UNITS}, not {self.units!r}")
    for field, allowed in _ALLOWED.items():
      value = getattr(self, field)
      if value not in allowed:
        names = ", ".join(str(name) for name in allowed)
        raise ValueError(f"unknown {field} {value!r} of pbits; there are {names}")
    if self.slope_sampler != "xor" and self.estimator != "binary_slope":
      raise ValueError(
        f"pbits slope_sampler belongs to estimator 'binary_slope', not to {self.estimator!r}"
      )
    if self.reuse_forward and self.estimator != "binary_slope":
      raise ValueError(
        f"pbits reuse_forward belongs to estimator 'binary_slope', not to {self.estimator!r}"
      )


_ALLOWED: Mapping[str, tuple] = MappingProxyType(
  {
    "estimator": get_args(Estimator),
    "slope_sampler": get_args(SlopeSampler),
    "reuse_forward": (False, True),
    "noise": get_args(Sharing),
    "pool": get_args(BitPool),
  }
)
