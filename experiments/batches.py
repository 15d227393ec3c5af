"""A function of a few examples, applied to many."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fflax.types import Array


def in_batches(fn: Callable[..., Any], size: int, *arrays: np.ndarray | Array) -> Any:
  """`fn(*rows)` over all rows, `size` at a time; the results `[N, ...]` on the host.

  The last batch is filled up with copies of the last row, so that one compilation serves all.

  Args:
    fn: jitted; from arrays `[size, ...]` to a pytree of arrays `[size, ...]`.
    size: examples at a time.
    *arrays: `[N, ...]` each.
  """
  total = len(arrays[0])
  size = min(size, total)
  found = []
  for first in range(0, total, size):
    rows = np.minimum(np.arange(first, first + size), total - 1)
    found.append(jax.tree.map(np.asarray, fn(*(jnp.asarray(a[rows]) for a in arrays))))
  return jax.tree.map(lambda *parts: np.concatenate(parts)[:total], *found)
