"""Where the numerics enter a module: each product of a layer with its own noise and state."""

import contextlib
import functools
from collections.abc import Callable

import flax.linen as nn

from fflax.core import tags
from fflax.core.numerics import GRADIENT_STATE, Numerics
from fflax.networks.units import SAMPLING
from fflax.types import Array

ROUNDING = "rounding"
"""The stream of keys that rounding noise is drawn from; modules without it round to nearest."""


class Product(nn.Module):
  """One product of a layer, as linen's `dot_general_cls` and `conv_general_dilated_cls` want it.

  Attributes:
    numerics: how it multiplies.
    kind: which of its functions this is: "dot_general" or "conv_general_dilated".
    reads: M, if its left operand are counts up to M (see `fflax.core.tags.counts`) wherever units
      are drawn; 0 if they are real. A tag for the analysis.
    emits: M of the units behind it; likewise.
  """

  numerics: Numerics
  kind: str
  reads: int = 0
  emits: int = 0

  @nn.compact
  def __call__(self, lhs: Array, rhs: Array, *args, **kwargs) -> Array:
    """The product, with the arguments of the function of that name in `jax.lax`."""
    drawn = self.has_rng(SAMPLING)
    with tags.counts(self.reads, self.emits) if drawn else contextlib.nullcontext():
      return bind(self, self.numerics, self.kind, rhs.shape)(lhs, rhs, *args, **kwargs)


def bind(
  module: nn.Module, numerics: Numerics, kind: str, shape: tuple[int, ...]
) -> Callable[..., Array]:
  """A product as a function of its operands alone, with `module`'s noise and state bound to it.

  Args:
    module: whose stream of keys and whose parameter; must be inside a compact method.
    numerics: how to multiply.
    kind: "dot_general" or "conv_general_dilated".
    shape: of the right operand.
  """
  bound = {}
  if numerics.takes_key:
    bound["key"] = module.make_rng(ROUNDING) if module.has_rng(ROUNDING) else None
  if numerics.gradient_state is not None:
    initial = numerics.gradient_state
    bound["state"] = module.param(GRADIENT_STATE, lambda _: initial(shape))
  product = getattr(numerics, kind)
  return functools.partial(product, **bound) if bound else product


def dense_product(numerics: Numerics, reads: int = 0, emits: int = 0) -> Callable[[], Product]:
  """The argument `dot_general_cls` of linen's dense layers; see `Product`."""
  return functools.partial(Product, numerics, "dot_general", reads, emits)


def conv_product(numerics: Numerics, reads: int = 0, emits: int = 0) -> Callable[[], Product]:
  """The argument `conv_general_dilated_cls` of linen's convolutions; see `Product`."""
  return functools.partial(Product, numerics, "conv_general_dilated", reads, emits)
