"""Numerics whose products can be counted the same way on every machine."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fflax.analysis.cost import TAG
from fflax.core import int8 as int8_lib
from fflax.core.int8_config import Int8Config
from fflax.core.int8_conv import Int8Conv
from fflax.core.numerics import Numerics
from fflax.core.quantize import seed_words
from fflax.types import Array, Key


def plain_numerics(numerics: Numerics) -> Numerics:
  """The same arithmetic in products of `jax.lax`, tagged with their kind.

  The library's own products take what is fast on the machine at hand: bfloat16 operands may be
  multiplied by float32 units, depthwise and thin grouped convolutions be written element by
  element, others multiply less by Winograd's transforms, and an int8 input gradient be spread out
  with zeros. The counts of these are those of a machine that has the units and multiplies nothing
  in vain. What surrounds a product (quantisers) stays as it is.

  Args:
    numerics: any of the library; others are returned as they are, with the tags they set.
  """
  if numerics.name in ("float32", "bfloat16"):
    return Numerics(
      numerics.name,
      _Tagged(lax.dot_general, numerics.name),
      _Tagged(lax.conv_general_dilated, numerics.name),
    )
  if isinstance(numerics.dot_general, int8_lib._Dot):
    config = dataclasses.replace(numerics.dot_general.config, backend="int8")
    return numerics._replace(
      dot_general=int8_lib._Dot(config),
      conv_general_dilated=_Int8Conv(config),
      of_counts=None if numerics.of_counts is None else plain_numerics(numerics.of_counts),
    )
  return numerics


@dataclasses.dataclass(frozen=True)
class _Tagged:
  """A product of `jax.lax` under its name; equal settings compare equal and hash alike."""

  product: Callable[..., Array]
  kind: str

  def __call__(self, *args: Any, **kwargs: Any) -> Array:
    with jax.named_scope(TAG + self.kind):
      return self.product(*args, **kwargs)


class _PlainConv(Int8Conv):
  """Its three products as convolutions, of float32 operands for the sake of their transposes."""

  def forward(self, x: Array, w: Array) -> Array:
    image = (0, x.ndim - 1, *range(1, x.ndim - 1))
    numbers = lax.ConvDimensionNumbers(image, (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2)), image)
    with jax.named_scope(TAG + "int8"):
      return lax.conv_general_dilated(
        x.astype(jnp.float32),
        w.astype(jnp.float32),
        self.strides,
        self.pads,
        dimension_numbers=numbers,
        feature_group_count=self.groups,
      )

  def input_gradient(self, g: Array, w: Array) -> Array:
    return self._transpose(lambda x: self.forward(x, w), self.image, g)

  def weight_gradient(self, x: Array, g: Array) -> Array:
    return self._transpose(lambda w: self.forward(x, w), self.kernel, g)

  def _transpose(self, linear: Callable, shape: tuple[int, ...], g: Array) -> Array:
    operand = jax.ShapeDtypeStruct(shape, jnp.float32)
    return jax.linear_transpose(linear, operand)(g.astype(jnp.float32))[0]


@dataclasses.dataclass(frozen=True)
class _Int8Conv:
  """The int8 convolution of `fflax.core.int8`, on `_PlainConv`."""

  config: Int8Config

  def __call__(
    self,
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    *args: Any,
    feature_group_count: int = 1,
    key: Key | None = None,
    state: Array | None = None,
    **kwargs: Any,
  ) -> Array:
    del args, kwargs  # the network's own convolution has refused what int8 does not have
    x, w, strides = jnp.asarray(lhs), jnp.asarray(rhs), tuple(window_strides)
    if isinstance(padding, str):
      padding = lax.padtype_to_pads(x.shape[1:-1], w.shape[:-2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    conv = _PlainConv(x.shape, w.shape, strides, pads, feature_group_count)
    seeds = None if key is None else seed_words(key, 4)
    config = int8_lib._settings(self.config, key, len(x))
    return int8_lib._product(config, conv, x, w, seeds, state)
