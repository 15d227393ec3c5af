"""Learning class by class: what a matrix of accuracies says, and answers by means of classes.

`accuracy` is `[T, T]`: entry (t, i) is the accuracy on task i after training on task t.
"""

import jax
import jax.numpy as jnp
import numpy as np

from fflax.core.prototypes import unit
from fflax.types import Array


def average_accuracy(accuracy: np.ndarray) -> float:
  """`ACC = mean_i a_{T,i}` (D. Lopez-Paz, M. Ranzato, 2017, arXiv 1706.08840, eq. 2)."""
  return float(np.mean(_square(accuracy)[-1]))


def forgetting(accuracy: np.ndarray) -> float:
  """`F = mean_{i<T} (max_{t<T} a_{t,i} - a_{T,i})` (A. Chaudhry et al., 2018, arXiv 1801.10112).

  In [-1, 1]; 0 for a single task. Below 0, tasks were answered better at the end than ever before.
  """
  a = _square(accuracy)
  if len(a) == 1:
    return 0.0
  return float(np.mean(np.max(a[:-1, :-1], axis=0) - a[-1, :-1]))


def backward_transfer(accuracy: np.ndarray) -> float:
  """`BWT = mean_{i<T} (a_{T,i} - a_{i,i})` (D. Lopez-Paz, M. Ranzato, 2017, eq. 3)."""
  a = _square(accuracy)
  if len(a) == 1:
    return 0.0
  return float(np.mean(a[-1, :-1] - np.diag(a)[:-1]))


def new_accuracy(accuracy: np.ndarray) -> float:
  """`mean_t a_{t,t}`: of every task just after it was learned."""
  return float(np.mean(np.diag(_square(accuracy))))


def _square(accuracy: np.ndarray) -> np.ndarray:
  a = np.asarray(accuracy, np.float64)
  if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size:
    raise ValueError(f"a matrix of accuracies is [tasks, tasks], not {list(a.shape)}")
  return a


def class_means(features: Array, label: Array, num_classes: int) -> Array:
  """The mean unit feature of every class, `[K, D]`, of `[B, D]`; zero for a class without examples.

  Answers by them are those of iCaRL (S.-A. Rebuffi et al., 2017, arXiv 1611.07725).
  """
  member = jax.nn.one_hot(label, num_classes)
  total = jnp.einsum("bk,bd->kd", member, unit(features))
  return total / jnp.maximum(jnp.sum(member, axis=0), 1.0)[:, None]


def mean_scores(features: Array, means: Array) -> Array:
  """The cosines of `[B, D]` features with the means `[K, D]` of the classes, `[B, K]`."""
  return unit(features) @ unit(means).T


def drift(before: Array, after: Array) -> Array:
  """`1 - cos` of two sets of class means `[K, D]`, `[K]`: how far features have moved."""
  return 1.0 - jnp.sum(unit(before) * unit(after), axis=-1)
