"""Float hyper-parameters as tracers: one program for points that differ in them.

Configurations are frozen dataclasses of Python floats that pure functions close over. A
`TracedFloat` stands in such a field for the numbers of several points at once: inside `jax.vmap` it
computes with the tracer of one point, while comparisons, which choose what is computed or refuse a
value, are answered by the numbers themselves. So validation holds, and code that would take another
path for some of the points is found instead of compiled wrongly.
"""

import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fflax.types import Array


class NotTraceable(TypeError):
  """Some code needs the number itself, or takes other ways for other points; one sentence."""


def weak(value: Array) -> Array:
  """The scalar as a Python float would enter a computation: it widens no bfloat16."""
  return jnp.asarray(0.0).at[()].set(value)


class TracedFloat:
  """The values of one hyper-parameter at all points of a program.

  It is no float on purpose: whatever asks for a Python number fails, and is not compiled with the
  number of one point for all.

  Attributes:
    name: of the hyper-parameter, for messages.
    array: scalar, traced: the value of one point.
    numbers: `[P]` float64, those of all points.
  """

  __slots__ = ("array", "name", "numbers")
  __array_ufunc__ = None  # numpy's arrays leave the operation to this class
  __hash__ = None  # type: ignore[assignment]

  def __init__(self, name: str, array: Array, numbers: Any):
    self.name, self.array, self.numbers = name, array, np.asarray(numbers, np.float64)

  def __jax_array__(self) -> Array:
    return self.array

  def __repr__(self) -> str:
    return f"{self.name} in {sorted(set(self.numbers.tolist()))}"

  def __bool__(self) -> bool:
    return bool(self != 0)

  def __neg__(self) -> "TracedFloat":
    return TracedFloat(self.name, -self.array, -self.numbers)

  def __abs__(self) -> "TracedFloat":
    return TracedFloat(self.name, jnp.abs(self.array), abs(self.numbers))

  def _agreed(self, answers: np.ndarray, question: str) -> bool:
    if answers.all() or not answers.any():
      return bool(answers.all())
    raise NotTraceable(f"the points do not agree in whether {self.name} {question}")


def _arithmetic(name: str) -> Callable[[TracedFloat, Any], Any]:
  compute = getattr(operator, name)

  def method(self: TracedFloat, other: Any) -> Any:
    if isinstance(other, TracedFloat):
      pair = compute(self.array, other.array), compute(self.numbers, other.numbers)
    elif isinstance(other, int | float):
      pair = compute(self.array, other), compute(self.numbers, other)
    elif isinstance(other, jax.Array | np.ndarray | np.generic):
      return compute(self.array, other)
    else:
      return NotImplemented
    return TracedFloat(self.name, *pair)

  return method


def _reflected(name: str) -> Callable[[TracedFloat, Any], Any]:
  compute = getattr(operator, name)

  def method(self: TracedFloat, other: Any) -> Any:
    if isinstance(other, int | float):
      return TracedFloat(self.name, compute(other, self.array), compute(other, self.numbers))
    if isinstance(other, jax.Array | np.ndarray | np.generic):
      return compute(other, self.array)
    return NotImplemented

  return method


def _comparison(name: str, sign: str) -> Callable[[TracedFloat, Any], Any]:
  compare = getattr(operator, name)

  def method(self: TracedFloat, other: Any) -> Any:
    if isinstance(other, TracedFloat):
      return self._agreed(compare(self.numbers, other.numbers), f"{sign} {other.name}")
    if isinstance(other, int | float):
      return self._agreed(compare(self.numbers, other), f"{sign} {other}")
    if isinstance(other, jax.Array | np.ndarray | np.generic):
      return compare(self.array, other)
    return NotImplemented

  return method


for _name in ("add", "sub", "mul", "truediv", "pow"):
  setattr(TracedFloat, f"__{_name}__", _arithmetic(_name))
  setattr(TracedFloat, f"__r{_name}__", _reflected(_name))
for _name, _sign in {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}.items():
  setattr(TracedFloat, f"__{_name}__", _comparison(_name, _sign))

# Functions under `jit`, most of `jax.numpy` among them, take pytrees, but no other objects.
jax.tree_util.register_pytree_node(
  TracedFloat,
  lambda traced: ((traced.array,), (traced.name, tuple(traced.numbers.tolist()))),
  lambda known, arrays: TracedFloat(known[0], arrays[0], known[1]),
)
