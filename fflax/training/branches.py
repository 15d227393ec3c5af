"""Branches that are always taken, and the compiler does not know it.

It does not look across them: nothing that stands in one is computed earlier, again, or fused with
what stands around, so the same function rounds alike wherever it stands (as seen on CPUs, where
barriers are dropped before that is decided).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array, PyTree


def in_branch(taken: Array, f: Callable[..., PyTree], *args: PyTree) -> PyTree:
  """`f(*args)`, in a branch of its own; `taken` `[]` is true, but nothing that is compiled in."""
  shapes = jax.eval_shape(f, *args)
  nothing = lambda *_: jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)  # noqa: E731
  return lax.cond(taken, f, nothing, *args)


def surely(witness: Array) -> Array:
  """A `taken` from integers that the compiler does not know, none of them the least of its type."""
  return jnp.min(witness) > jnp.iinfo(witness.dtype).min
