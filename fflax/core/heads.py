"""Linear heads: class scores `[B, K]` from one layer's features, `{"kernel": [D, K], "bias": [K]}`.

A head may be learned with its layer, or be drawn once and stay as it is.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fflax.core.numerics import GRADIENT_STATE, Numerics
from fflax.types import Array, Key, PyTree


def random_head(key: Key, width: int, num_classes: int) -> PyTree:
  """Kernel and bias from N(0, 1/K): the fixed random readout of DTG-FF (arXiv 2606.06539).

  Columns of the kernel have norms of about `sqrt(width / K)`, whatever the width: features are
  meant to be small (pooled squares), and logits of order one.
  """
  kernel_key, bias_key = jax.random.split(key)
  scale = num_classes**-0.5
  return {
    "kernel": scale * jax.random.normal(kernel_key, (width, num_classes)),
    "bias": scale * jax.random.normal(bias_key, (num_classes,)),
  }


def unit_columns_head(key: Key, width: int, num_classes: int) -> PyTree:
  """`random_head` with the columns of the kernel scaled to length one."""
  head = random_head(key, width, num_classes)
  length = jnp.linalg.norm(head["kernel"], axis=0, keepdims=True)
  return {**head, "kernel": head["kernel"] / length}


def lecun_head(key: Key, width: int, num_classes: int) -> PyTree:
  """Kernel of variance `1 / width` (LeCun-normal), bias zero."""
  kernel = jax.nn.initializers.lecun_normal()(key, (width, num_classes))
  return {"kernel": kernel, "bias": jnp.zeros((num_classes,))}


def uniform_head(key: Key, width: int, num_classes: int) -> PyTree:
  """Kernel and bias from U(-1/sqrt(width), 1/sqrt(width)), PyTorch's default of a linear layer."""
  kernel_key, bias_key = jax.random.split(key)
  bound = width**-0.5
  draw = lambda k, shape: jax.random.uniform(k, shape, jnp.float32, -bound, bound)  # noqa: E731
  return {"kernel": draw(kernel_key, (width, num_classes)), "bias": draw(bias_key, (num_classes,))}


def zero_head(key: Key, width: int, num_classes: int) -> PyTree:
  """Kernel and bias zero: no opinion at the start, and no gradient for what is below."""
  del key
  return {"kernel": jnp.zeros((width, num_classes)), "bias": jnp.zeros((num_classes,))}


HEADS: Mapping[str, Callable[[Key, int, int], PyTree]] = {
  "random": random_head,
  "unit_columns": unit_columns_head,
  "lecun": lecun_head,
  "uniform": uniform_head,
  "zero": zero_head,
}
"""How a head begins, by name."""


def with_gradient_state(head: PyTree, numerics: Numerics | None) -> PyTree:
  """The head with the state that learning in these numerics (None: float32) carries, if any."""
  if numerics is None or numerics.gradient_state is None:
    return head
  return {**head, "product": {GRADIENT_STATE: numerics.gradient_state(head["kernel"].shape)}}


def apply_head(
  head: PyTree, x: Array, numerics: Numerics | None = None, key: Key | None = None
) -> Array:
  """`x @ kernel + bias` of `[B, D]`, multiplied in `numerics`.

  Args:
    head: a head; without "bias", nothing is added.
    x: features.
    numerics: how it multiplies. None: in float32 proper, also where a machine's usual float32
      product rounds its operands (TF32 on GPUs, bfloat16 on TPUs).
    key: of rounding noise in training; None rounds to nearest.
  """
  if numerics is None:
    logits = jnp.matmul(x, head["kernel"], precision=jax.lax.Precision.HIGHEST)
  else:
    bound = {"key": key} if numerics.takes_key else {}
    if "product" in head:
      bound["state"] = head["product"][GRADIENT_STATE]
    numbers = (((1,), (0,)), ((), ()))
    logits = numerics.dot_general(x, head["kernel"], numbers, **bound)
  return logits + head["bias"][None, :] if "bias" in head else logits
