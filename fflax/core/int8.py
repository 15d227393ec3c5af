"""Products that train in int8: both operands and the gradient are quantised, sums are int32.

A linear map `z = x w` (dense or convolution) becomes, with `q(.)` int8 and `s` its scale,

- forward: `z = q(x) q(w) * s_x s_w`;
- weight gradient: `q(x)^T q(g) * s_x s_g`, with the int8 input that the forward pass kept;
- input gradient: `q(g) q(w)^T * s_g s_w`, computed only where something asks for it.

Counts of p-bits are integers already: with `activations="counts"` they are `q(x)`, and `s_x` is 1.

Derivatives treat every quantiser as the identity (straight-through). A scale that varies along the
axis that a product sums over is multiplied into the other, still float, operand instead.

In evaluation no gradient trains anything: that of the input, which attacks on a trained network
ask for, is the float product with the weights as they are multiplied. A gradient rounded at one
scale for the batch would be zero for every example whose own is small, and attacks seem harmless.

Paper: Ma, Panda, Reda, "FF-INT8: Efficient Forward-Forward DNN Training on Edge Devices with INT8
Precision", DAC 2025, arXiv 2506.22771.

Deviations: the paper rounds its input stochastically and is silent on weights and gradients; by
default weights are rounded to nearest and gradients stochastically. A bias, and whatever else the
layer does, stays in float32. The paper runs positive and negative data one after the other; views
that go through a layer as one batch share one scale of activations and one of gradients, unless
`Int8Config.scale_groups` gives each view its own.
"""

import dataclasses
import functools
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.branches import computed_once
from fflax.core.int8_config import Int8Config
from fflax.core.int8_conv import Int8Conv
from fflax.core.int8_gradients import RIVALS, UI8_PHI, Parts
from fflax.core.int8_products import (
  Backend,
  int8_dot,
  int8_dot_input_gradient,
  int8_dot_weight_gradient,
)
from fflax.core.numerics import Numerics
from fflax.core.quantize import Quantized, absmax_scale, quantize, rounding_noise, seed_words
from fflax.types import Array, Key

_ACT, _WEIGHT, _GRAD_FOR_WEIGHTS, _GRAD_FOR_INPUTS = range(4)  # roles of the rounding noise


def int8(config: Int8Config | None = None, *, name: str = "int8") -> Numerics:
  """Products in int8, for operands, results and gradients in float32.

  Both functions take `key`, a typed key for rounding noise; None means evaluation: rounding to
  nearest, a scale for each row (of a convolution: image) of the left operand, and a gradient of
  that operand which is not rounded. With a gradient other than "absmax" they also take `state`, and
  return the new state in the place of its gradient. Reverse mode, `jit`, `vmap`, `scan`, `cond`; no
  forward mode. Functions of equal settings compare equal and hash alike.

  Args:
    config: how to quantise; None is `Int8Config()`.
    name: of the numerics.

  Returns:
    The numerics. `dot_general` takes any dimension numbers; `conv_general_dilated` takes
    channels-last convolutions with strides, pads and groups, and raises ValueError for dilated,
    batch-grouped and other ones. Both raise ValueError for sums that int32 could not hold, and in
    training for a batch that does not part into `scale_groups`.

  Raises:
    ValueError: see `Int8Config.check`.
  """
  config = config or Int8Config()
  config.check()
  rounded = dataclasses.replace(config, activations="rounded")
  of_counts = None
  if config.activations == "counts":
    of_counts = Numerics(name, _Dot(config), _Conv(config), takes_key=True)
  rival = RIVALS.get(config.gradient)
  return Numerics(
    name,
    _Dot(rounded),
    _Conv(rounded),
    takes_key=True,
    gradient_state=None if rival is None else rival.initial_state,
    learning_rate_scale=_ui8_rate if config.gradient == "ui8" else None,
    of_counts=of_counts,
    groups=config.scale_groups,
  )


def _ui8_rate(state: Array) -> Array:
  return state[UI8_PHI]


class _Linear(Protocol):
  """The three raw products of a linear map, on int8, and one of its gradients on floats."""

  def forward(self, x: Array, w: Array) -> Array: ...
  def input_gradient(self, g: Array, w: Array) -> Array: ...
  def weight_gradient(self, x: Array, g: Array) -> Array: ...
  def float_input_gradient(self, g: Array, w: Array) -> Array: ...
  def part(self, parts: int) -> "_Linear":
    """The same map, of one of so many equal parts of the batch."""
    ...


@dataclasses.dataclass(frozen=True)
class _Matrix:
  """`[..., M, K]` times `[..., K, N]`."""

  backend: Backend | None

  def forward(self, x: Array, w: Array) -> Array:
    return int8_dot(x, w, backend=self.backend)

  def input_gradient(self, g: Array, w: Array) -> Array:
    return int8_dot_input_gradient(g, w, backend=self.backend)

  def weight_gradient(self, x: Array, g: Array) -> Array:
    return int8_dot_weight_gradient(x, g, backend=self.backend)

  def float_input_gradient(self, g: Array, w: Array) -> Array:
    return jnp.matmul(g, jnp.swapaxes(w, -1, -2))

  def part(self, parts: int) -> "_Matrix":
    del parts
    return self


@dataclasses.dataclass(frozen=True)
class _Dot:
  config: Int8Config

  def __call__(
    self,
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    key: Key | None = None,
    state: Array | None = None,
  ) -> Array:
    del precision
    (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = dimension_numbers
    x, w = jnp.asarray(lhs, jnp.float32), jnp.asarray(rhs, jnp.float32)
    rows = [a for a in range(x.ndim) if a not in (*lhs_axes, *lhs_batch)]
    columns = [a for a in range(w.ndim) if a not in (*rhs_axes, *rhs_batch)]
    config = _settings(self.config, key, x.shape[rows[0]] if rows and not lhs_batch else 1)
    x, w = x.transpose(*lhs_batch, *rows, *lhs_axes), w.transpose(*rhs_batch, *rhs_axes, *columns)
    # One mapped axis, or none; then the matrices' two.
    n, m, k = len(lhs_batch), len(lhs_batch) + len(rows), len(rhs_batch) + len(rhs_axes)
    batch, length = x.shape[:n], math.prod(x.shape[m:])
    out_shape = (*x.shape[:m], *w.shape[k:])
    mapped = (math.prod(batch),) if batch else ()
    out = _product(
      config,
      _Matrix(self.config.backend),
      x.reshape(*mapped, math.prod(x.shape[n:m]), length),
      w.reshape(*mapped, length, math.prod(w.shape[k:])),
      None if key is None else seed_words(key, 4),
      state,
    ).reshape(out_shape)
    return out if preferred_element_type is None else out.astype(preferred_element_type)


@dataclasses.dataclass(frozen=True)
class _Conv:
  config: Int8Config

  def __call__(
    self,
    lhs: Array,
    rhs: Array,
    window_strides: Sequence[int],
    padding: str | Sequence[tuple[int, int]],
    lhs_dilation: Sequence[int] | None = None,
    rhs_dilation: Sequence[int] | None = None,
    dimension_numbers: Any = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    precision: Any = None,
    preferred_element_type: Any = None,
    *,
    key: Key | None = None,
    state: Array | None = None,
  ) -> Array:
    del precision
    x, w = jnp.asarray(lhs, jnp.float32), jnp.asarray(rhs, jnp.float32)
    image = (0, x.ndim - 1, *range(1, x.ndim - 1))
    kernel = (x.ndim - 1, x.ndim - 2, *range(x.ndim - 2))
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, dimension_numbers)
    if tuple(numbers) != (image, kernel, image):
      raise ValueError("int8 convolutions take channels-last images and ...IO kernels only")
    if any(d != 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ()))):
      raise ValueError("int8 convolutions cannot be dilated")
    if batch_group_count != 1:
      raise ValueError("int8 convolutions cannot have batch groups")
    strides = tuple(window_strides)
    if isinstance(padding, str):
      padding = lax.padtype_to_pads(x.shape[1:-1], w.shape[:-2], strides, padding)
    pads = tuple((int(low), int(high)) for low, high in padding)
    conv = Int8Conv(x.shape, w.shape, strides, pads, feature_group_count, self.config.backend)
    seeds = None if key is None else seed_words(key, 4)
    out = _product(_settings(self.config, key, x.shape[0]), conv, x, w, seeds, state)
    return out if preferred_element_type is None else out.astype(preferred_element_type)


def _settings(config: Int8Config, key: Key | None, batch: int) -> Int8Config:
  """In evaluation every example has a scale of its own: no answer depends on its neighbours."""
  if key is None:
    if config.activations == "counts":  # counts have the scale 1 anyhow
      return dataclasses.replace(config, scale_groups=1)
    return dataclasses.replace(config, act_scale="row", gradient="absmax", scale_groups=1)
  groups = config.scale_groups
  if groups > 1 and (batch == 0 or batch % groups):
    raise ValueError(f"int8 scale_groups={groups} cannot part a batch of {batch} into equal groups")
  return config


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _product(
  config: Int8Config,
  linear: _Linear,
  x: Array,
  w: Array,
  seeds: Array | None,
  state: Array | None,
) -> Array:
  return _forward(config, linear, x, w, seeds, state)[0]


def _rounded(
  config: Int8Config,
  role: int,
  seeds: Array | None,
  x: Array,
  axis: tuple[int, ...] | None = None,
  scale: Array | None = None,
) -> Quantized:
  rounding = (config.act_rounding, config.weight_rounding, config.grad_rounding)[min(role, 2)]
  if scale is None:
    scale = absmax_scale(x, axis) if role == _WEIGHT else _group_scale(config, x, axis)

  def values() -> Array:
    if seeds is None or rounding == "nearest":
      return quantize(x, scale=scale).values
    noise = rounding_noise(seeds[role], x.shape, config.noise)
    return quantize(x, scale=scale, rounding=rounding, noise=noise).values

  return Quantized(computed_once(values, scale < 0), scale)


def _group_scale(config: Int8Config, x: Array, axis: tuple[int, ...] | None) -> Array:
  """`absmax_scale` of each group of the leading axis, repeated along it."""
  groups = config.scale_groups
  if groups == 1:
    return absmax_scale(x, axis)
  parts = x.reshape(groups, len(x) // groups, *x.shape[1:])
  scale = absmax_scale(parts, (0, *(a + 1 for a in axis or ())))
  return jnp.broadcast_to(scale, (*parts.shape[:2], *scale.shape[2:])).reshape(
    len(x), *scale.shape[2:]
  )


def _forward(
  config: Int8Config,
  linear: _Linear,
  x: Array,
  w: Array,
  seeds: Array | None,
  state: Array | None,
) -> tuple[Array, tuple]:
  rows = None if config.act_scale == "tensor" else _row_axes(linear, x)
  columns = None if config.weight_scale == "tensor" else _channel_axes(linear, w)
  if config.activations == "counts":
    x8 = Quantized(x.astype(jnp.int8), jnp.ones((), jnp.float32))
  else:
    x8 = _rounded(config, _ACT, seeds, x, rows)
  w8 = _rounded(config, _WEIGHT, seeds, w, columns)
  out = linear.forward(x8.values, w8.values).astype(jnp.float32) * (x8.scale * w8.scale)
  return out, (x8, w8, seeds, state)


def _backward(
  config: Int8Config, linear: _Linear, residuals: tuple, g: Array
) -> tuple[Array, Array, None, Array | None]:
  x8, w8, seeds, state = residuals
  for_weights = functools.partial(_rounded, config, _GRAD_FOR_WEIGHTS, seeds)
  for_inputs = functools.partial(_rounded, config, _GRAD_FOR_INPUTS, seeds)
  if config.gradient != "absmax":
    if state is None:
      raise ValueError(f"the int8 gradient {config.gradient!r} needs its state")
    rival = RIVALS[config.gradient]
    weight_parts, input_parts, state = rival.quantize(g, state, for_weights, for_inputs)
  else:
    # A scale that varies along the summed axis is part of the float gradient.
    row_scale = x8.scale if config.act_scale == "row" else None
    column_scale = w8.scale if config.weight_scale == "channel" else None
    channels = _channel_axes(linear, g) if config.grad_scale == "channel" else None
    weight_g = g if row_scale is None else g * row_scale
    input_g = g if column_scale is None else g * column_scale
    weight_parts = (for_weights(weight_g, channels, None),)
    if row_scale is None and column_scale is None and channels is None:
      input_parts = weight_parts
    else:
      input_parts = (for_inputs(input_g, None, None),)
  x_scale = x8.scale if config.act_scale == "tensor" else 1.0
  w_scale = w8.scale if config.weight_scale == "tensor" else 1.0
  if config.scale_groups == 1:
    dw = _sum(weight_parts, lambda v: linear.weight_gradient(x8.values, v)) * x_scale
  else:
    dw = _weight_gradient_of_groups(config, linear, x8.values, weight_parts[0], x_scale)
  if seeds is None:
    dx = linear.float_input_gradient(g, w8.values * w8.scale)
  else:
    dx = _sum(input_parts, lambda v: linear.input_gradient(v, w8.values)) * w_scale
  return dx, dw, None, state


_product.defvjp(_forward, _backward)


def _sum(parts: Parts, product: Callable[[Array], Array]) -> Array:
  terms = (product(part.values).astype(jnp.float32) * part.scale for part in parts)
  return functools.reduce(operator.add, terms)


def _weight_gradient_of_groups(
  config: Int8Config, linear: _Linear, x: Array, g: Quantized, x_scale: Array | float
) -> Array:
  """An int32 product for each group, which has one scale; added in float32."""
  size, one = len(x) // config.scale_groups, linear.part(config.scale_groups)
  scale, total = g.scale * x_scale, jnp.zeros(())
  for start in range(0, len(x), size):
    rows = slice(start, start + size)
    product = one.weight_gradient(x[rows], g.values[rows]).astype(jnp.float32)
    total += product * scale[start : start + 1]
  return total


def _row_axes(linear: _Linear, x: Array) -> tuple[int, ...]:
  """Along which the scale of the left operand may vary: a convolution sums over an image."""
  return (0,) if isinstance(linear, Int8Conv) else tuple(range(x.ndim - 1))


def _channel_axes(linear: _Linear, w: Array) -> tuple[int, ...]:
  """Of the kernel, and of the gradient with respect to the output."""
  mapped = () if isinstance(linear, Int8Conv) else tuple(range(w.ndim - 2))
  return (*mapped, w.ndim - 1)
