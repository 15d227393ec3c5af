"""Convolutions of floats with float32 results, and their two gradients.

Images are `[B, ..., C]` (channels last, any number of spatial axes), kernels `[..., C / G, O]` for
G groups. XLA's CPU backend compiles the gradients of JAX's convolution, inside of `while`, `scan`
or `cond` as in every training step, into a naive loop, some 40 times slower; and it has no fast
grouped convolution. So all three products are written out, and on a CPU each is what is fast there:

- 3x3, of stride 1 and of many channels: Winograd's (`fflax.core.winograd`);
- grouped: each group's own dense convolution, or, forward and for thin groups, shifted
  multiply-adds (`fflax.core.grouped`), part by part of the batch;
- all others: XLA's, in the one order of axes that it compiles well inside of loops.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core import winograd
from fflax.core.batch_parts import map_parts, number_of_parts, sum_parts
from fflax.core.grouped import by_groups, is_thin, thin_grouped_conv
from fflax.core.padding import Pads, input_gradient_pads
from fflax.types import Array

Form = Literal["exact", "rounded", "native"]
"""Of a product's operands: as they are, rounded to bfloat16 in float32, or cast to bfloat16."""

_PART_BYTES = 3 << 20  # images in and out, of one part of a grouped convolution


def round_to_bfloat16(x: Array) -> Array:
  """To nearest even, in float32."""
  # Not a cast there and back: XLA may remove such a pair as "excess precision".
  return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def operand(x: Array, form: Form) -> Array:
  """`x` in the form in which it is multiplied."""
  if form == "exact":
    return x
  return x.astype(jnp.bfloat16) if form == "native" else round_to_bfloat16(x)


def channels_last(ndim: int) -> lax.ConvDimensionNumbers:
  """`N...C` images, `...IO` kernels."""
  image = (0, ndim - 1, *range(1, ndim - 1))
  return lax.ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


@dataclasses.dataclass(frozen=True)
class FloatConv:
  """One convolution: the settings that its three products share.

  Attributes:
    strides: one for each spatial axis.
    pads: zeros before and after each spatial axis; negative numbers crop.
    groups: that channels fall into.
    form: of the operands.
  """

  strides: tuple[int, ...]
  pads: tuple[tuple[int, int], ...]
  groups: int = 1
  form: Form = "exact"

  def __call__(self, x: Array, w: Array) -> Array:
    """The convolution of `x` `[B, ..., C]` with `w` `[..., C / groups, O]`, float32.

    Supports reverse-mode differentiation, `jit`, `vmap` and `scan`; no forward mode. An unused
    gradient is not computed. Where it is Winograd's it has a few more roundings than the plain sum.

    Raises:
      ValueError: if the channels cannot be divided into groups, or the kernel does not fit them.
    """
    channels, inside, outside = x.shape[-1], *w.shape[-2:]
    if outside % self.groups or inside * self.groups != channels:
      raise ValueError(
        f"Got {self.groups} groups for images of shape {x.shape} and kernels of shape {w.shape}, "
        "but the groups must divide both numbers of channels, and each kernel reads one group."
      )
    return _conv(self, x, w)

  @property
  def dense(self) -> Self:
    """The convolution of one group."""
    return dataclasses.replace(self, groups=1)

  def forward(self, x: Array, w: Array) -> Array:
    """The convolution of operands `[B, ..., C]`, `[..., C / groups, O]` that have their form.

    Returns:
      `[B, ..., O]` float32.
    """
    if self.groups > 1:
      images = _part_size(x.shape[1:-1], x.shape[-1] + w.shape[-1])
      thin = len(self.strides) == 2 and x.dtype == jnp.float32 and is_thin(w.shape, self.groups)
      parts = number_of_parts(len(x), min(images, len(x) / 2) if thin else images)
      one = functools.partial(by_groups, self.dense.forward, groups=self.groups)
      if thin and parts > 1:  # outside of a loop XLA would compute the sum again for each consumer
        height, width = self.strides
        one = functools.partial(
          thin_grouped_conv, strides=(height, width), pads=self.pads, groups=self.groups
        )
      return map_parts(lambda x: one(x, w), parts, x)
    if self._by_winograd(x, w, self.pads):
      return winograd.winograd_conv(x, w, self.pads)
    return _product(x, w, self.strides, self.pads, channels_last(x.ndim))

  def input_gradient(self, g: Array, w: Array, spatial: Sequence[int]) -> Array:
    """The gradient with respect to the input, of height, width, ... `spatial`.

    Args:
      g: the cotangent `[B, ..., O]` and
      w: the kernels `[..., C / groups, O]`, in their form.
      spatial: the input's spatial axes.

    Returns:
      `[B, ..., C]` float32.
    """
    if self.groups > 1:
      one = functools.partial(self.dense.input_gradient, spatial=spatial)
      images = _part_size(spatial, w.shape[-2] * self.groups + w.shape[-1])
      return map_parts(
        lambda g: by_groups(one, g, w, self.groups), number_of_parts(len(g), images), g
      )
    fields = w.shape[:-2]
    pads = input_gradient_pads(spatial, fields, g.shape[1:-1], self.strides, self.pads)
    # The strided cotangent, spread out, with the flipped kernel, in and out swapped.
    flipped = jnp.flip(w, tuple(range(len(fields))))
    if self._by_winograd(g, w, pads):
      return winograd.winograd_conv(g, flipped.swapaxes(-2, -1), pads)
    image, kernel, _ = channels_last(g.ndim)
    swapped = lax.ConvDimensionNumbers(image, (kernel[1], kernel[0], *kernel[2:]), image)
    ones = (1,) * len(fields)
    return _product(g, flipped, ones, pads, swapped, lhs_dilation=self.strides)

  def weight_gradient(self, x: Array, g: Array, fields: Sequence[int]) -> Array:
    """The gradient with respect to the kernel, of height, width, ... `fields`.

    Args:
      x: the input `[B, ..., C]` and
      g: the cotangent `[B, ..., O]`, in their form.
      fields: the kernel's spatial axes.

    Returns:
      `[..., C / groups, O]` float32.
    """
    if self.groups > 1:
      one = functools.partial(self.dense.weight_gradient, fields=fields)
      parts = number_of_parts(len(x), _part_size(x.shape[1:-1], x.shape[-1] + g.shape[-1]))
      return sum_parts(lambda x, g: by_groups(one, x, g, self.groups), parts, x, g)
    kernel_shape = (*fields, x.shape[-1], g.shape[-1])
    if self._by_winograd(x, jax.ShapeDtypeStruct(kernel_shape, g.dtype), self.pads):
      return winograd.winograd_weight_gradient(x, g, self.pads)
    pads = []
    rows = zip(x.shape[1:-1], fields, g.shape[1:-1], self.strides, self.pads, strict=True)
    for size, field, out_size, stride, (low, _high) in rows:
      pads.append((low, field + (out_size - 1) * stride - size - low))
    # The image with the cotangent as its kernel, batch axis contracted.
    image, kernel, _ = channels_last(x.ndim)
    swapped = (image[1], image[0], *image[2:])
    numbers = lax.ConvDimensionNumbers(swapped, swapped, (kernel[1], kernel[0], *kernel[2:]))
    return _product(x, g, (1,) * len(pads), pads, numbers, rhs_dilation=self.strides)

  def _by_winograd(self, x: Array, w: Array | jax.ShapeDtypeStruct, pads: Pads) -> bool:
    return (
      jax.default_backend() == "cpu"
      and x.dtype == w.dtype == jnp.float32
      and winograd.is_faster(x.shape, w.shape, self.strides, pads)
    )


def _part_size(spatial: Sequence[int], channels: int) -> float:
  """How many images of a grouped convolution go through at once, of so many channels in and out."""
  return _PART_BYTES / max(1, 4 * channels * math.prod(spatial))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _conv(conv: FloatConv, x: Array, w: Array) -> Array:
  return _forward(conv, x, w)[0]


def _forward(conv: FloatConv, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
  x, w = operand(x, conv.form), operand(w, conv.form)
  return conv.forward(x, w), (x, w)


def _backward(conv: FloatConv, residuals: tuple[Array, Array], cotangent: Array) -> tuple:
  # Written out: JAX cannot transpose a convolution of bfloat16 operands to a float32 result.
  x, w = residuals
  g = operand(cotangent, conv.form)
  return conv.input_gradient(g, w, x.shape[1:-1]), conv.weight_gradient(x, g, w.shape[:-2])


_conv.defvjp(_forward, _backward)


def _product(
  x: Array,
  w: Array,
  strides: Sequence[int],
  pads: Sequence[tuple[int, int]],
  numbers: lax.ConvDimensionNumbers,
  **dilation: Any,
) -> Array:
  """A convolution with float32 results in any order of axes.

  On a CPU the operands are brought into the order `N...C`, `...IO` first. XLA does that itself
  only outside of loops and branches; inside them, any other order runs as a naive loop.
  """
  ndim = x.ndim
  product: Callable[..., Array] = functools.partial(
    lax.conv_general_dilated, preferred_element_type=jnp.float32, **dilation
  )
  if jax.default_backend() != "cpu":
    return product(x, w, strides, pads, dimension_numbers=numbers)
  (xn, xc, *xs), (wo, wi, *ws), out_spec = numbers
  x, w = x.transpose(xn, *xs, xc), w.transpose(*ws, wi, wo)
  out = product(x, w, strides, pads, dimension_numbers=channels_last(ndim))
  # Axis `out_spec[i]` of the result is axis `source[i]` of what was computed.
  source = (0, ndim - 1, *range(1, ndim - 1))
  return out.transpose([source[out_spec.index(axis)] for axis in range(ndim)])
