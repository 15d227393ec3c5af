"""How a layer multiplies: the `dot_general` and `conv_general_dilated` of every network.

A `Numerics` is a pair of functions with the signatures of `jax.lax`, handed to every layer from
outside, so that a network in another arithmetic is the same network with other arguments.

bfloat16 keeps parameters, outputs and accumulation in float32 and rounds only the *operands* of
each product. Where the machine has units for it (`has_bfloat16_units`), operands are bfloat16;
on other CPUs, where that would be slower than float32, the rounded operands are multiplied by the
float32 units. A product of two bfloat16 numbers is exact in float32, so the two forms differ by the
order of summation only. Functions of equal settings compare equal and hash alike.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.depthwise import depthwise_conv
from fflax.core.grouped import grouped_conv
from fflax.types import Array, PyTree

# Experimental, so it may move between JAX versions. Without it CPU products stay on float32 units.
try:
  from jax.experimental.layout import Layout, with_layout_constraint

  _HAS_LAYOUTS = True
except ImportError:  # pragma: no cover
  _HAS_LAYOUTS = False

GRADIENT_STATE = "gradient_state"
"""Name of the parameter whose "gradient" is its next value, see `Numerics.gradient_state`."""

_Pads = tuple[tuple[int, int], ...]
_Form = Literal["exact", "rounded", "native"]  # of a convolution's operands


def without_gradient_state(tree: PyTree) -> PyTree:
  """A tree of gradients with zeros in the place of gradient states, which are none."""
  return jax.tree_util.tree_map_with_path(
    lambda path, x: jnp.zeros_like(x) if getattr(path[-1], "key", "") == GRADIENT_STATE else x,
    tree,
  )


class Numerics(NamedTuple):
  """How a layer multiplies.

  Attributes:
    name: as in `fflax.core.numerics_registry`.
    dot_general: with the signature of `jax.lax.dot_general`, as `flax.linen.Dense` calls it.
    conv_general_dilated: with the signature of `jax.lax.conv_general_dilated`.
    takes_key: whether both take the keyword `key`: a typed key for rounding noise, drawn anew for
      every product of every training step, or None (no noise, as in evaluation).
    gradient_state: None, or `(shape of the right operand) -> array`: what a product carries from
      step to step to quantise its gradients. Both then take the keyword `state`, and their backward
      pass returns the *new* state in the place of a gradient with respect to it.
    learning_rate_scale: None, or `(new state) -> factor` on the learning rate of the product's own
      parameters in this step.
    of_counts: None, or the numerics of products whose left operand is known to be small integers
      (counts of p-bits), if they are others. Layers then hand such counts on apart from the affine
      map that stands behind them, see `fflax.core.absorption.AffineCounts`.
    groups: equal parts of the batch that have scales of their own in training.
  """

  name: str
  dot_general: Callable[..., Array]
  conv_general_dilated: Callable[..., Array]
  takes_key: bool = False
  gradient_state: Callable[[tuple[int, ...]], Array] | None = None
  learning_rate_scale: Callable[[Array], Array] | None = None
  of_counts: "Numerics | None" = None
  groups: int = 1


def float32() -> Numerics:
  """JAX's own products.

  On a CPU, plain convolutions have a gradient of ours, of the same value: XLA compiles JAX's own
  into a naive loop wherever it stands inside a `while`, `scan` or `cond`, as every training step
  does, which is some 40 times slower. Forward-mode differentiation is not supported there.
  Grouped ones are `fflax.core.grouped.grouped_conv` there, depthwise ones
  `fflax.core.depthwise.depthwise_conv`.
  """
  return Numerics("float32", lax.dot_general, _Conv(bfloat16=False))


def bfloat16(native: bool | None = None) -> Numerics:
  """Products of operands rounded to bfloat16, with float32 accumulation, outputs and gradients.

  Forward operands and, in the backward pass, the incoming cotangent are rounded to nearest even.
  Supports reverse-mode differentiation, `jit`, `vmap`, `scan` and eager calls; no forward mode.

  Args:
    native: multiply bfloat16 operands (True) or their rounded values in float32 (False). None
      decides when the product is traced: `has_bfloat16_units()`.

  Deviations:
    The arguments `precision` and, inside the product, `preferred_element_type` have no effect: the
    accumulation is float32 (the latter is applied to the result). Convolutions on a CPU multiply
    rounded operands in float32, because its bfloat16 convolution is no faster. Contractions other
    than the last axis of the left with the first axis of the right operand, dilated or not
    channels-last convolutions, depthwise ones and, not on a CPU, grouped ones, round in float32 and
    leave the gradient to JAX, which then rounds the finished gradient instead of the cotangent.
  """
  return Numerics("bfloat16", _Bfloat16Dot(native), _Conv(bfloat16=True, native=native))


FLOAT_NUMERICS: Mapping[str, Callable[[], Numerics]] = MappingProxyType(
  {"float32": float32, "bfloat16": bfloat16}
)
"""The float numerics by name; `fflax.core.numerics_registry` has all."""


@functools.cache
def cpu_flags() -> frozenset[str]:
  """What this machine's processor lists as its abilities; empty where nothing says so."""
  try:
    return frozenset(pathlib.Path("/proc/cpuinfo").read_text().split())
  except OSError:
    return frozenset()


@functools.cache
def has_bfloat16_units() -> bool:
  """Whether bfloat16 products are known to be faster than float32 ones on the default backend.

  True on accelerators, and on a CPU with AMX-BF16 tiles or AVX512-BF16 products.
  """
  if jax.default_backend() != "cpu":
    return True
  return not {"amx_bf16", "avx512_bf16"}.isdisjoint(cpu_flags())


@dataclasses.dataclass(frozen=True)
class _Bfloat16Dot:
  native: bool | None

  def __call__(
    self,
    lhs: Array,
    rhs: Array,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
  ) -> Array:
    del precision
    (lhs_axes, rhs_axes), (lhs_batch, rhs_batch) = dimension_numbers
    axes = (tuple(lhs_axes), tuple(rhs_axes), tuple(lhs_batch), tuple(rhs_batch))
    x, w = jnp.asarray(lhs, jnp.float32), jnp.asarray(rhs, jnp.float32)
    if axes == ((x.ndim - 1,), (0,), (), ()):
      # Explicit sizes, because -1 cannot be inferred for an empty batch.
      rows, size = x.shape[:-1], x.shape[-1]
      columns = w.shape[1:]
      out = _dot(
        _use_native_dot(self.native),
        x.reshape(math.prod(rows), size),
        w.reshape(size, math.prod(columns)),
      ).reshape(rows + columns)
    else:
      out = lax.dot_general(
        _round(x), _round(w), dimension_numbers, preferred_element_type=jnp.float32
      )
    return out if preferred_element_type is None else out.astype(preferred_element_type)


def _use_native_dot(native: bool | None) -> bool:
  if native is None:
    native = has_bfloat16_units()
  return native and (_HAS_LAYOUTS or jax.default_backend() != "cpu")


def _round(x: Array) -> Array:
  # Not a cast there and back: XLA may remove such a pair as "excess precision".
  return lax.reduce_precision(x, exponent_bits=8, mantissa_bits=7)


def _operand(x: Array, native: bool) -> Array:
  return x.astype(jnp.bfloat16) if native else _round(x)


def row_major(x: Array) -> Array:
  """Forces a row-major copy of a transposed view, on the CPU only.

  There a product of a transposed bfloat16 view leaves the fast path, and one whose *result* is
  transposed by its consumer fails to run (XLA has no such bfloat16 thunk): both are pinned.
  """
  if jax.default_backend() != "cpu" or not _HAS_LAYOUTS:
    return x
  return with_layout_constraint(x, Layout(tuple(range(x.ndim))))


def _contract(x: Array, y: Array, native: bool, y_axis: int = 0) -> Array:
  """`[M, K]` with `[K, N]` (or `[N, K]` if `y_axis` is 1): `[M, N]` float32."""
  out = lax.dot_general(x, y, (((1,), (y_axis,)), ((), ())), preferred_element_type=jnp.float32)
  return row_major(out) if native else out


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _dot(native: bool, x: Array, w: Array) -> Array:
  return _contract(_operand(x, native), _operand(w, native), native)


def _dot_forward(native: bool, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
  x, w = _operand(x, native), _operand(w, native)
  return _contract(x, w, native), (x, w)


def _dot_backward(
  native: bool, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
  x, w = residuals
  g = _operand(cotangent, native)
  x_t = row_major(x.T) if native else x.T
  return _contract(g, w, native, y_axis=1), _contract(x_t, g, native)


_dot.defvjp(_dot_forward, _dot_backward)


@dataclasses.dataclass(frozen=True)
class _Conv:
  bfloat16: bool
  native: bool | None = None

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
  ) -> Array:
    x, w = jnp.asarray(lhs), jnp.asarray(rhs)
    if self.bfloat16:
      x, w, precision = x.astype(jnp.float32), w.astype(jnp.float32), None
    strides = tuple(window_strides)
    numbers = lax.conv_dimension_numbers(x.shape, w.shape, dimension_numbers)
    plain = (
      batch_group_count == 1
      and all(d == 1 for d in (*(lhs_dilation or ()), *(rhs_dilation or ())))
      and numbers == channels_last(x.ndim)
    )
    on_cpu = jax.default_backend() == "cpu" and x.dtype == w.dtype == jnp.float32
    depthwise = x.ndim == 4 and 1 < feature_group_count == x.shape[-1] == w.shape[-1]
    pads: _Pads = ()
    if plain:
      if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], w.shape[:-2], strides, padding)
      pads = tuple((int(low), int(high)) for low, high in padding)
    if plain and feature_group_count == 1 and (self.bfloat16 or on_cpu):
      out = _conv(self._form(), strides, pads, x, w)
    elif plain and depthwise and on_cpu:
      x, w = (_round(x), _round(w)) if self.bfloat16 else (x, w)
      out = depthwise_conv(x, w, strides, pads)
    elif plain and on_cpu:
      dense = functools.partial(_conv, self._form(), strides, pads)
      out = grouped_conv(dense, x, w, feature_group_count)
    else:
      out = lax.conv_general_dilated(
        _round(x) if self.bfloat16 else x,
        _round(w) if self.bfloat16 else w,
        strides,
        padding,
        lhs_dilation,
        rhs_dilation,
        dimension_numbers,
        feature_group_count,
        batch_group_count,
        precision,
        None if self.bfloat16 else preferred_element_type,
      )
    return out if preferred_element_type is None else out.astype(preferred_element_type)

  def _form(self) -> _Form:
    if not self.bfloat16:
      return "exact"
    native = jax.default_backend() != "cpu" if self.native is None else self.native
    return "native" if native else "rounded"


def channels_last(ndim: int) -> lax.ConvDimensionNumbers:
  """`N...C` images, `...IO` kernels."""
  image = (0, ndim - 1, *range(1, ndim - 1))
  return lax.ConvDimensionNumbers(image, (ndim - 1, ndim - 2, *range(ndim - 2)), image)


def _conv_operand(x: Array, form: _Form) -> Array:
  return x if form == "exact" else _operand(x, form == "native")


def _general_conv(
  x: Array, w: Array, strides: tuple[int, ...], pads: Sequence, numbers: Any, **dilation: Any
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


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _conv(form: _Form, strides: tuple[int, ...], pads: _Pads, x: Array, w: Array) -> Array:
  return _conv_forward(form, strides, pads, x, w)[0]


def _conv_forward(
  form: _Form, strides: tuple[int, ...], pads: _Pads, x: Array, w: Array
) -> tuple[Array, tuple[Array, Array]]:
  x, w = _conv_operand(x, form), _conv_operand(w, form)
  return _general_conv(x, w, strides, pads, channels_last(x.ndim)), (x, w)


def _conv_backward(
  form: _Form,
  strides: tuple[int, ...],
  pads: _Pads,
  residuals: tuple[Array, Array],
  cotangent: Array,
) -> tuple[Array, Array]:
  # Written out: JAX cannot transpose a convolution of bfloat16 operands to a float32 result.
  x, w = residuals
  g = _conv_operand(cotangent, form)
  ndim = x.ndim
  spatial = tuple(range(ndim - 2))
  image, kernel, _ = channels_last(ndim)
  input_pads, weight_pads = [], []
  sizes = zip(x.shape[1:-1], w.shape[:-2], g.shape[1:-1], strides, pads, strict=True)
  for size, field, out_size, stride, (low, _high) in sizes:
    spread = (out_size - 1) * stride  # of the strided output, minus one
    flipped_low = field - 1 - low
    input_pads.append((flipped_low, size + field - 2 - spread - flipped_low))
    weight_pads.append((low, field + spread - size - low))
  ones, swapped_kernel = (1,) * (ndim - 2), (kernel[1], kernel[0], *kernel[2:])
  # Input gradient: the strided cotangent, spread out, with the flipped kernel, in and out swapped.
  numbers = lax.ConvDimensionNumbers(image, swapped_kernel, image)
  dx = _general_conv(g, jnp.flip(w, spatial), ones, input_pads, numbers, lhs_dilation=strides)
  # Weight gradient: the image with the cotangent as its kernel, batch axis contracted.
  swapped = (image[1], image[0], *image[2:])
  numbers = lax.ConvDimensionNumbers(swapped, swapped, swapped_kernel)
  dw = _general_conv(x, g, ones, weight_pads, numbers, rhs_dilation=strides)
  return dx, dw


_conv.defvjp(_conv_forward, _conv_backward)
