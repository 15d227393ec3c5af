"""How a layer multiplies: the `dot_general` and `conv_general_dilated` of every network.

A `Numerics` is a pair of functions with the signatures of `jax.lax`, handed to every layer from
outside, so that a network in another arithmetic is the same network with other arguments.

bfloat16 keeps parameters, outputs and accumulation in float32 and rounds only the *operands* of
each product. Where the machine has units for it (`has_bfloat16_units`), operands are bfloat16;
on other CPUs, where that would be slower than float32, the rounded operands are multiplied by the
float32 units. A product of two bfloat16 numbers is exact in float32, so the two forms differ by the
order of summation (convolutions on a CPU also by the roundings of Winograd's transforms). Functions
of equal settings compare equal and hash alike.
"""

import dataclasses
import functools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.depthwise import depthwise_conv
from fflax.core.float_conv import FloatConv, Form, channels_last, operand, round_to_bfloat16
from fflax.types import Array, PyTree

# Experimental, so it may move between JAX versions. Without it CPU products stay on float32 units.
try:
  from jax.experimental.layout import Layout, with_layout_constraint

  _HAS_LAYOUTS = True
except ImportError:  # pragma: no cover
  _HAS_LAYOUTS = False

GRADIENT_STATE = "gradient_state"
"""Name of the parameter whose "gradient" is its next value, see `Numerics.gradient_state`."""

_FORMS: Mapping[bool, Form] = MappingProxyType({False: "rounded", True: "native"})


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

  On a CPU, channels-last convolutions without dilation and their gradients are ours, of the same
  values up to the order of sums and Winograd's roundings: `fflax.core.float_conv.FloatConv`;
  depthwise ones `fflax.core.depthwise.depthwise_conv`. Forward-mode differentiation is not
  supported there.
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
        round_to_bfloat16(x),
        round_to_bfloat16(w),
        dimension_numbers,
        preferred_element_type=jnp.float32,
      )
    return out if preferred_element_type is None else out.astype(preferred_element_type)


def _use_native_dot(native: bool | None) -> bool:
  if native is None:
    native = has_bfloat16_units()
  return native and (_HAS_LAYOUTS or jax.default_backend() != "cpu")


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
  return _contract(operand(x, _FORMS[native]), operand(w, _FORMS[native]), native)


def _dot_forward(native: bool, x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
  x, w = operand(x, _FORMS[native]), operand(w, _FORMS[native])
  return _contract(x, w, native), (x, w)


def _dot_backward(
  native: bool, residuals: tuple[Array, Array], cotangent: Array
) -> tuple[Array, Array]:
  x, w = residuals
  g = operand(cotangent, _FORMS[native])
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
    pads: tuple[tuple[int, int], ...] = ()
    if plain:
      if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:-1], w.shape[:-2], strides, padding)
      pads = tuple((int(low), int(high)) for low, high in padding)
    if plain and depthwise and on_cpu:
      x, w = (round_to_bfloat16(x), round_to_bfloat16(w)) if self.bfloat16 else (x, w)
      out = depthwise_conv(x, w, strides, pads)
    elif plain and (on_cpu or (self.bfloat16 and feature_group_count == 1)):
      out = FloatConv(strides, pads, feature_group_count, self._form())(x, w)
    else:
      out = lax.conv_general_dilated(
        round_to_bfloat16(x) if self.bfloat16 else x,
        round_to_bfloat16(w) if self.bfloat16 else w,
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

  def _form(self) -> Form:
    if not self.bfloat16:
      return "exact"
    native = jax.default_backend() != "cpu" if self.native is None else self.native
    return "native" if native else "rounded"
