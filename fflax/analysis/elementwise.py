"""Which class of element-wise operations a primitive is, and how many of them it does."""

import math
from typing import Any, NamedTuple

from jax.extend.core import JaxprEqn


class Ops(NamedTuple):
  """Operations of one equation.

  Attributes:
    kind: "add", "mul", "div", "compare" (also select, maximum, bits), "special" (exp, tanh, roots),
      "reduce" (additions or comparisons) or "random" (words of 32 bits).
    number: how many.
    dtype: they are done in.
  """

  kind: str
  number: int
  dtype: str


_ADD = "add sub add_any round floor ceil nextafter"
_MUL = "mul square"
_COMPARE = (
  "eq ne lt le gt ge lt_to le_to max min select_n clamp abs neg sign is_finite and or not xor "
  "shift_left shift_right_logical shift_right_arithmetic population_count clz"
)
_SPECIAL = (
  "exp exp2 expm1 log log1p logistic tanh sin cos tan asin acos atan atan2 sinh cosh asinh acosh "
  "atanh sqrt rsqrt cbrt pow erf erfc erf_inv lgamma digamma igamma igammac bessel_i0e bessel_i1e"
)
_REDUCE = (
  "reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax argmin"
)
_CUMULATIVE = "cumsum cummax cummin cumprod cumlogsumexp"
_WINDOW = "reduce_window_sum reduce_window_max reduce_window_min reduce_window"
_KINDS = {
  **dict.fromkeys(_ADD.split(), "add"),
  **dict.fromkeys(_MUL.split(), "mul"),
  **dict.fromkeys(["div", "rem"], "div"),
  **dict.fromkeys(_COMPARE.split(), "compare"),
  **dict.fromkeys(_SPECIAL.split(), "special"),
}
_REDUCTIONS = frozenset(_REDUCE.split())
_CUMULATIONS = frozenset(_CUMULATIVE.split())
_WINDOWS = frozenset(_WINDOW.split())
_FREE = (
  "reshape transpose broadcast_in_dim squeeze expand_dims slice dynamic_slice dynamic_update_slice "
  "pad concatenate gather scatter rev iota convert_element_type bitcast_convert_type copy copy_p "
  "reduce_precision stop_gradient optimization_barrier layout_constraint sharding_constraint "
  "device_put pvary pbroadcast split unstack stack tile random_seed random_wrap random_unwrap "
  "random_split random_fold_in random_clone create_token reshard empty empty2 full debug_callback"
)
FREE = frozenset(_FREE.split())
"""Moves, casts, keys: no arithmetic on elements."""


def elementwise_ops(eqn: JaxprEqn) -> Ops | None:
  """The operations of an equation: `number` 0 where it only moves data, None if it is unknown."""
  name = eqn.primitive.name
  out: Any = eqn.outvars[0].aval
  arguments: list[Any] = [v.aval for v in eqn.invars]
  if name in FREE:
    return Ops("add", 0, "")
  if name in ("random_bits", "threefry2x32", "rng_bit_generator", "rng_uniform"):
    results: list[Any] = [v.aval for v in eqn.outvars[name == "rng_bit_generator" :]]
    return Ops("random", sum(-(-a.size * a.dtype.itemsize // 4) for a in results), "uint32")
  source = arguments[0]
  dtype = str(source.dtype)
  if name in _KINDS:
    # A selection's first argument is its condition.
    return Ops(_KINDS[name], out.size, str(arguments[-1].dtype))
  if name == "integer_pow":
    power = abs(eqn.params["y"])
    # Squarings, and one more product for each further one in the binary exponent.
    number = power.bit_length() + power.bit_count() - 2 if power else 0
    return Ops("mul", out.size * number, dtype)
  if name in _REDUCTIONS:
    return Ops("reduce", source.size - out.size, dtype)
  if name in _CUMULATIONS:
    axis = source.shape[eqn.params["axis"]]
    return Ops("reduce", source.size - source.size // axis if axis else 0, dtype)
  if name in _WINDOWS:
    return Ops("reduce", out.size * (math.prod(eqn.params["window_dimensions"]) - 1), dtype)
  if name.startswith("select_and_scatter"):  # of a maximum pool: find it again, add there
    return Ops("compare", source.size * math.prod(eqn.params["window_dimensions"]), dtype)
  if name in ("scatter-add", "scatter_add", "scatter-mul", "scatter-min", "scatter-max"):
    return Ops("add", arguments[2].size, dtype)
  if name in ("sort", "top_k", "approx_top_k"):
    axis = eqn.params.get("dimension", len(source.shape) - 1)
    depth = max(source.shape[axis] - 1, 0).bit_length() if source.shape else 0
    return Ops("compare", source.size * depth, dtype)
  return None
