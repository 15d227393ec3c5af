"""Branches and loops that are always taken once, and the compiler does not know it.

It does not look across them: nothing that stands in one is computed earlier, again, or fused with
what stands around, so the same function rounds alike wherever it stands, and what it gives is kept
(as seen on CPUs, where `lax.optimization_barrier` is dropped before that is decided).
"""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array, PyTree

_T = TypeVar("_T")


def in_branch(taken: Array, f: Callable[..., PyTree], *args: PyTree) -> PyTree:
  """`f(*args)`, in a branch of its own; `taken` `[]` is true, but nothing that is compiled in."""
  shapes = jax.eval_shape(f, *args)
  nothing = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
  return lax.cond(taken, f, nothing, *args)


def surely(witness: Array) -> Array:
  """A `taken` from integers that the compiler does not know, none of them the least of its type."""
  return jnp.min(witness) > jnp.iinfo(witness.dtype).min


def in_loop(taken: Array, f: Callable[..., tuple], state: PyTree, *args: PyTree) -> tuple:
  """`f(state, *args) -> (state, *rest)`, in a loop of its own that is taken once; on a CPU only.

  A branch copies all that leaves it; a loop moves its state in the state's own place. Under `jit`
  there is no gradient through it. Elsewhere it is `f(state, *args)`: bits are promised on CPUs
  alone, and a GPU's host would wait for the loop's condition.

  Args:
    taken: as for `in_branch`.
    f: what it gives first has the shapes and dtypes of `state`. What it closes over may be computed
      with outside of the loop: let it take arguments.
    state: may be donated by who calls.
    args: arrays, or trees of them.

  Raises:
    TypeError: `f` gives a state of other shapes or dtypes.
  """
  if jax.default_backend() != "cpu":
    return f(state, *args)
  _, *shapes = jax.eval_shape(f, state, *args)
  zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

  def body(i: Array, carry: tuple) -> tuple:
    state, args, _ = carry
    state, *rest = f(state, *args)
    # To the compiler they change: it would compute outside what depends on nothing else.
    return state, jax.tree.map(lambda a: jnp.where(i < 1, a, jnp.zeros_like(a)), args), rest

  state, _, rest = lax.fori_loop(0, taken.astype(jnp.int32), body, (state, args, zeros))
  return state, *rest


def computed_once(values: Callable[[], _T], impossible: Array) -> _T:
  """`values()`, computed once and kept; on a CPU only.

  There, XLA fuses into each consumer what it counts as cheap, noise and all: random numbers would
  be drawn again for each of them, and several times for each element where a consumer pools.

  Args:
    values: makes an array, or a tree of arrays.
    impossible: bool of any shape; never true, which XLA must not be able to tell. Under a `vmap` of
      it nothing is gained, for both sides of the branch are computed.
  """
  if jax.default_backend() != "cpu":
    return values()
  return in_branch(jnp.logical_not(jnp.any(impossible)), values)
