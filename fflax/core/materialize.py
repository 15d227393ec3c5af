"""Arrays computed once, where XLA's CPU backend would compute it again in every consumer."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array

_T = TypeVar("_T")


def computed_once(values: Callable[[], _T], impossible: Array) -> _T:
  """`values()`, computed once and kept.

  XLA on a CPU fuses what is cheap by its count into each consumer, noise and all: random values
  were drawn again for each consumer, several times for each element where a consumer pools, and
  the operand, often four times their size, was kept alive for it. `lax.optimization_barrier` does
  not stop it; a branch that it cannot foresee does. Under `vmap` of `impossible` both sides of the
  branch are computed, and nothing is gained.

  Args:
    values: makes an array, or a tree of arrays.
    impossible: bool, any shape; never true, which XLA must not be able to tell.
  """
  if jax.default_backend() != "cpu":
    return values()
  zeros = lambda: jax.tree.map(jnp.zeros_like, jax.eval_shape(values))  # noqa: E731
  return lax.cond(jnp.any(impossible), zeros, values)
