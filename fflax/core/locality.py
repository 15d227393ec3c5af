"""The proof of locality: which layers' parameters move when one layer's loss is differentiated."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from fflax.types import Array, PyTree


def locality_matrix(
  moved_params: Callable[[Array], tuple[PyTree, ...]], num_layers: int
) -> np.ndarray:
  """Measures the `[L, L]` matrix of gradient reach.

  Args:
    moved_params: takes loss weights `[L]` float32 and returns the parameters of the L layers after
      one real training step in which layer i's loss is scaled by `weights[i]`. The step must move a
      parameter if and only if its gradient is not exactly zero (plain SGD, no weight decay).
    num_layers: L.

  Returns:
    Boolean matrix; entry (i, j) says that layer j's parameters move when only layer i's loss
    counts. Strict locality is the identity (or less: a layer without a loss has an empty row);
    backprop fills the lower triangle. Movement is exact: any bit counts.

  Example:
    Two layers, each moved by its own loss; then the second loss reaches the first, too.
    >>> locality_matrix(lambda w: (w[0], w[1]), 2).tolist()
    [[True, False], [False, True]]
    >>> reach = locality_matrix(lambda w: (w[0] + w[1], w[1]), 2)
    >>> reach.tolist(), measured_locality(reach)
    ([[True, False], [True, True]], 'global')
  """
  weights = jnp.concatenate([jnp.zeros((1, num_layers)), jnp.eye(num_layers)])
  still, *moved = [jax.device_get(moved_params(w)) for w in weights]

  def differs(a: PyTree, b: PyTree) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return any(not np.array_equal(x, y) for x, y in pairs)

  return np.array([[differs(s, m) for s, m in zip(still, row, strict=True)] for row in moved])


def measured_locality(matrix: np.ndarray) -> str:
  """Returns "strict" if no loss moves a foreign layer, else "global" (which covers "lookahead")."""
  off_diagonal = matrix & ~np.eye(len(matrix), dtype=bool)
  return "global" if off_diagonal.any() else "strict"


def agrees(matrix: np.ndarray, declared: str) -> bool:
  """Whether a measured matrix is what the declared class of locality allows.

  "strict" and "collaborative" forbid every entry off the diagonal; "lookahead" and "global" forbid
  entries above it (a loss cannot move later layers).
  """
  if declared in ("strict", "collaborative"):
    return measured_locality(matrix) == "strict"
  return not np.triu(matrix, 1).any()
