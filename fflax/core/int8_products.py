"""Exact matrix products of int8 arrays, and the two products of their gradients.

All operands are int8 in [-127, 127]. `int8_dot` adds in int32; its length limit is checked, never
wrapped. Backends are bit-equal:

- "int8": integer products; on a CPU of operands in the layout that stays on the fast path.
- "emulate": float32 products of chunks short enough to be exact, added in int32. Runs anywhere.
- "bfloat16": the same with bfloat16 operands, which hold every int8, and float32 accumulation. For
  CPUs whose bfloat16 units are faster than their integer units.
- None: "bfloat16" on a CPU with bfloat16 units but no AMX tiles for int8, whose int8 products XLA
  does not run fast (`experiments/benchmarks/README.md`); else "int8".
"""

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.numerics import cpu_flags, has_bfloat16_units, row_major
from fflax.types import Array

Backend = Literal["int8", "emulate", "bfloat16"]

BACKENDS: tuple[Backend, ...] = ("int8", "emulate", "bfloat16")

MAX_CONTRACTION = 133_144
"""The longest sum of products of magnitudes up to 127 that fits int32 for certain."""

_EXACT_IN_FLOAT32 = 1024  # times 127 squared is below 2^24


def check_contraction(length: int) -> None:
  """Raises ValueError if a sum of so many products could overflow int32."""
  if length > MAX_CONTRACTION:
    raise ValueError(
      f"an int8 product over {length} elements could overflow int32; at most {MAX_CONTRACTION}"
    )


def int8_dot(a: Array, b: Array, *, backend: Backend | None = None) -> Array:
  """`[..., M, K]` times `[..., K, N]`: `[..., M, N]` int32.

  Raises:
    ValueError: if K is above `MAX_CONTRACTION`, or the backend unknown.
  """
  return _product(a, b, -2, backend)


def int8_dot_input_gradient(g: Array, b: Array, *, backend: Backend | None = None) -> Array:
  """`g [..., M, N]` times `b [..., K, N]` transposed: `[..., M, K]` int32.

  Raises:
    ValueError: if N is above `MAX_CONTRACTION`, or the backend unknown.
  """
  return _product(g, b, -1, backend)


def int8_dot_weight_gradient(a: Array, g: Array, *, backend: Backend | None = None) -> Array:
  """`a [..., M, K]` transposed times `g [..., M, N]`: `[..., K, N]` float32.

  The exact sum, rounded once to float32, for M up to `MAX_CONTRACTION`. Beyond that, such sums of
  parts are added in float32.

  Raises:
    ValueError: if the backend is unknown.
  """

  def part(start: int) -> Array:
    rows = slice(start, start + MAX_CONTRACTION)
    # The transpose as a view would leave the fast path on a CPU, by a factor of ten and more.
    transposed = row_major(jnp.swapaxes(a[..., rows, :], -1, -2))
    return int8_dot(transposed, g[..., rows, :], backend=backend).astype(jnp.float32)

  total = part(0)
  for start in range(MAX_CONTRACTION, a.shape[-2], MAX_CONTRACTION):
    total += part(start)
  return total


def _default_backend() -> Backend:
  on_cpu = jax.default_backend() == "cpu"
  return "bfloat16" if on_cpu and has_bfloat16_units() and "amx_int8" not in cpu_flags() else "int8"


def _product(a: Array, b: Array, b_axis: int, backend: Backend | None) -> Array:
  """Contracts the last axis of `a` with axis `b_axis` of `b`; the leading axes are mapped."""
  if backend not in (None, *BACKENDS):
    raise ValueError(f"unknown int8 backend {backend!r}; there are {', '.join(BACKENDS)}")
  length = a.shape[-1]
  check_contraction(length)
  axis = b.ndim + b_axis
  batch = tuple(range(a.ndim - 2))
  numbers = (((a.ndim - 1,), (axis,)), (batch, batch))
  if (backend or _default_backend()) == "int8":
    return lax.dot_general(a, b, numbers, preferred_element_type=jnp.int32)
  full, rest = divmod(length, _EXACT_IN_FLOAT32)

  def add(start: Array | int, size: int, total: Array | int) -> Array:
    part = _float_product(
      lax.dynamic_slice_in_dim(a, start, size, a.ndim - 1),
      lax.dynamic_slice_in_dim(b, start, size, axis),
      numbers,
      jnp.float32 if backend == "emulate" else jnp.bfloat16,
    )
    return total + part.astype(jnp.int32)

  total = add(full * _EXACT_IN_FLOAT32, rest, 0)
  if full == 0:
    return total
  return lax.fori_loop(
    0,
    full,
    lambda i, total: add(i * _EXACT_IN_FLOAT32, _EXACT_IN_FLOAT32, total),
    total,
    unroll=full <= 8,
  )


def _float_product(a: Array, b: Array, numbers: Any, dtype: jax.typing.DTypeLike) -> Array:
  """float32; exact for sums below 2^24."""
  out = lax.dot_general(
    a.astype(dtype),
    b.astype(dtype),
    numbers,
    precision=lax.Precision.HIGHEST if dtype == jnp.float32 else None,
    preferred_element_type=jnp.float32,
  )
  # XLA cannot run a bfloat16 product on a CPU whose result its consumer transposes.
  return out if dtype == jnp.float32 else row_major(out)
