"""Numerics whose products can be counted the same way on every machine."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

from fflax.analysis.cost import TAG
from fflax.core.numerics import Numerics
from fflax.types import Array


@dataclasses.dataclass(frozen=True)
class _Tagged:
  """A product of `jax.lax` under its name; equal settings compare equal and hash alike."""

  product: Callable[..., Array]
  kind: str

  def __call__(self, *args: Any, **kwargs: Any) -> Array:
    with jax.named_scope(TAG + self.kind):
      return self.product(*args, **kwargs)


def plain_numerics(numerics: Numerics) -> Numerics:
  """The same arithmetic in products of `jax.lax`, tagged with the dtype of the operands.

  The library's own products take what is fast on the machine at hand: bfloat16 operands may be
  multiplied by float32 units, and depthwise convolutions be written element by element. Their
  counts are those of a machine that has the units.

  Args:
    numerics: "float32" and "bfloat16" are replaced; all others are returned as they are, with the
      tags that they set themselves.
  """
  if numerics.name not in ("float32", "bfloat16"):
    return numerics
  return Numerics(
    numerics.name,
    _Tagged(lax.dot_general, numerics.name),
    _Tagged(lax.conv_general_dilated, numerics.name),
  )
