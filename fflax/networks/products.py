"""Where the numerics enter a module: each product of a layer with its own noise and state."""

import contextlib
import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp

from fflax.core import tags
from fflax.core.absorption import absorb
from fflax.core.numerics import GRADIENT_STATE, Numerics
from fflax.networks.units import SAMPLING
from fflax.types import Array, LayerOut

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


def absorbing(module: nn.Module, scale: Array, shift: Array) -> Callable[..., Array]:
  """The argument `conv_general_dilated` of a linen convolution that is handed counts alone.

  The result is that for `scale * counts + shift`: stride 1, padding "SAME".

  Args:
    module: the layer, with fields `numerics`, `reads` and `emits`; must be inside a compact method.
    scale: of each input channel, `[Cin]`.
    shift: likewise.
  """
  assert module.numerics.of_counts is not None
  product = bind(module, module.numerics.of_counts, "conv_general_dilated", ())

  def conv(counts: Array, kernel: Array, *args, feature_group_count: int = 1, **kwargs) -> Array:
    size = counts.shape[1:-1]
    kernel, bias_map = absorb(kernel, scale, shift, size, feature_group_count)
    with tags.counts(module.reads, module.emits):
      out = product(counts, kernel, *args, feature_group_count=feature_group_count, **kwargs)
    return out + bias_map[None]

  return conv


def told(
  numerics: Numerics, units: LayerOut, scale: Array | None, shift: Array | None
) -> tuple[Array, Array] | None:
  """The field `affine` of a layer whose `units` are followed by an affine map of each channel."""
  if units.counts is None or numerics.of_counts is None:
    return None
  assert scale is not None and shift is not None
  shape = (units.counts.shape[0], units.counts.shape[-1])
  return jnp.broadcast_to(scale, shape), jnp.broadcast_to(shift, shape)
