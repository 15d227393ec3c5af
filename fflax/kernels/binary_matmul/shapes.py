"""Which implementation applies to a product, why one does not, and into which tiles it is cut."""

import importlib.util
import math
from typing import Literal, NamedTuple, get_args

import jax

from fflax.core.int8_products import MAX_CONTRACTION
from fflax.kernels.binary_matmul.packing import Packed
from fflax.types import Array

Implementation = Literal["reference", "pallas_tpu", "pallas_gpu"]
IMPLEMENTATIONS: tuple[Implementation, ...] = get_args(Implementation)

Form = Literal["counts", "packed along k", "packed along rows", "sampled"]

WEIGHTS = ("float32", "bfloat16", "int8")

_BACKENDS = {"pallas_tpu": "tpu", "pallas_gpu": "gpu"}
_TRITON = "jax.experimental.pallas.triton"


class Problem(NamedTuple):
  """A product `[rows, length]` times `[length, columns]`.

  Attributes:
    rows: R.
    length: K, what is summed over.
    columns: N.
    weights: dtype of the right operand.
    form: of the left operand.
  """

  rows: int
  length: int
  columns: int
  weights: str
  form: Form


class Tile(NamedTuple):
  """What one step of a kernel multiplies: `[rows, length]` times `[length, columns]`."""

  rows: int
  columns: int
  length: int


def problem_of(x: Array | Packed, w: Array) -> Problem:
  """The product of int8 counts `[R, K]`, or packed ones, with weights `[K, N]`."""
  if not isinstance(x, Packed):
    return Problem(x.shape[0], x.shape[1], w.shape[1], str(w.dtype), "counts")
  form: Form = "packed along k" if x.axis == "k" else "packed along rows"
  return Problem(x.rows, x.length, w.shape[1], str(w.dtype), form)


def sampled_problem(v: Array, w: Array) -> Problem:
  """The product of the counts sampled for `v` `[R, K]` with weights `[K, N]`."""
  return Problem(v.shape[0], v.shape[1], w.shape[1], str(w.dtype), "sampled")


def check(implementation: str, problem: Problem, interpret: bool) -> None:
  """Raises ValueError, with one sentence that says why, if the implementation does not apply.

  Args:
    implementation: its name.
    problem: what it should compute.
    interpret: whether a kernel would run in Pallas' interpreter, and so on any machine.
  """
  if implementation not in IMPLEMENTATIONS:
    names = ", ".join(IMPLEMENTATIONS)
    raise ValueError(f"unknown implementation {implementation!r}; there are {names}")
  reason = _operands(problem)
  if reason is None and implementation != "reference":
    reason = _kernel(implementation, problem) or _machine(implementation, interpret)
  if reason is not None:
    raise ValueError(f"binary_matmul's {implementation} does not apply: {reason}")


def _operands(problem: Problem) -> str | None:
  if problem.weights not in WEIGHTS:
    return f"weights are {', '.join(WEIGHTS)}, not {problem.weights}"
  if problem.weights == "int8" and problem.length > MAX_CONTRACTION:
    return f"int8 sums over {problem.length} could overflow, at most {MAX_CONTRACTION}"
  return None


def _kernel(implementation: str, problem: Problem) -> str | None:
  sizes = (problem.rows, problem.length, problem.columns)
  if 0 in sizes:
    return "an axis is empty"
  if implementation == "pallas_tpu" and problem.form == "packed along k":
    return "a TPU unpacks along rows only, so pack with axis='rows'"
  rows, length, columns = sizes
  largest = max(rows * length, length * columns, rows * columns)
  if implementation == "pallas_gpu" and largest > 2**31 - 1:
    return f"it addresses with 32 bits, and an array has {largest} elements"
  return None


def _machine(implementation: str, interpret: bool) -> str | None:
  if interpret:
    return None
  if implementation == "pallas_gpu" and importlib.util.find_spec(_TRITON) is None:
    return f"JAX {jax.__version__} has no {_TRITON}"
  wanted, found = _BACKENDS[implementation], jax.default_backend()
  return None if found == wanted else f"it needs a {wanted}, and the default backend is {found}"


def tpu_tile(problem: Problem) -> Tile:
  """Multiples of a TPU's own tiles: 128 lanes; 32 rows of int8, or 8 words of 32 packed rows."""
  return Tile(
    rows=256,
    columns=_at_most(problem.columns, 512 if problem.form == "sampled" else 256, 128),
    length=_at_most(problem.length, 512, 128),
  )


def gpu_tile(problem: Problem) -> Tile:
  """Powers of two, as Triton wants them.

  A sampled tile is wide, because every tile of columns draws the counts anew.
  """
  wide = problem.form == "sampled"
  return Tile(
    rows=_power_of_two(problem.rows, 32, 64 if wide else 128),
    columns=_power_of_two(problem.columns, 16, 256 if wide else 128),
    length=64,
  )


def _at_most(size: int, limit: int, multiple: int) -> int:
  return min(limit, multiple * math.ceil(size / multiple))


def _power_of_two(size: int, least: int, limit: int) -> int:
  return min(limit, max(least, 1 << (size - 1).bit_length()))
