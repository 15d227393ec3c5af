"""Gradients that keep a function's arguments only, and run it again on the way down."""

from collections.abc import Callable

import jax

from fflax.core.branches import in_branch, surely
from fflax.types import Array, PyTree


def pull_again(f: Callable[..., PyTree], witness: Array, *args: PyTree) -> Callable[..., tuple]:
  """What `jax.vjp(f, *args)` pulls cotangents back with, for which nothing but `args` is kept.

  What `jax.checkpoint` promises (T. Chen et al., 2016, arXiv 1604.06174), also on a CPU: there XLA
  drops the barriers that hold the second run back, runs it at once, and keeps what it gives. Here
  the second run stands in a branch together with its gradient, and cannot start before.

  Args:
    f: of arrays with gradients; what else it needs, it may close over, but has no gradient of.
    witness: any integer array that the compiler does not know, see `fflax.core.branches`.
    *args: of `f`.
  """

  def pull(cotangents: PyTree) -> tuple:
    return in_branch(surely(witness), lambda: jax.vjp(f, *args)[1](cotangents))

  return pull


def rematerialized(f: Callable[..., PyTree], witness: Array) -> Callable[..., PyTree]:
  """`f` with the same values and gradients, of which nothing but the arguments is kept.

  Args:
    f: see `pull_again`.
    witness: see there.
  """

  @jax.custom_vjp
  def run(*args: PyTree) -> PyTree:
    return f(*args)

  def forward(*args: PyTree) -> tuple[PyTree, tuple]:
    return run(*args), args

  def backward(args: tuple, cotangents: PyTree) -> tuple:
    return pull_again(f, witness, *args)(cotangents)

  run.defvjp(forward, backward)
  return run
