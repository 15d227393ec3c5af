"""How far the layers of a network agree: from their predictions alone, in numpy.

`predictions` are `[L, N]` classes, -1 where a layer had no answer (NaN scores), which is wrong and
differs from every answer but another -1; `labels` are `[N]`. Audit D of Y. Chen, 2026, arXiv
2606.06539, beside the error correlations of L. Kuncheva, C. Whitaker, 2003.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def _checked(predictions: ArrayLike, labels: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
  predictions, labels = np.asarray(predictions), np.asarray(labels)
  if predictions.ndim != 2 or labels.shape != predictions.shape[1:] or not predictions.size:
    raise ValueError(
      f"predictions {list(predictions.shape)} and labels {list(labels.shape)} are not [L, N], [N]"
    )
  return predictions, labels


def layer_accuracy(predictions: ArrayLike, labels: ArrayLike) -> Floats:
  """The share of right answers of each layer, `[L]`.

  Raises:
    ValueError: the shapes do not fit; so in all functions of this module.
  """
  predictions, labels = _checked(predictions, labels)
  return np.mean(predictions == labels, axis=1)


def disagreement(predictions: ArrayLike) -> Floats:
  """`D_ij`: how often layers i and j answer differently, right or wrong, `[L, L]`."""
  predictions, _ = _checked(predictions, np.zeros(np.shape(predictions)[-1]))
  return np.mean(predictions[:, None] != predictions[None], axis=2)


def mean_off_diagonal(matrix: ArrayLike) -> float:
  """The mean over the pairs of different layers; NaN for one layer."""
  matrix = np.asarray(matrix, np.float64)
  pairs = matrix[~np.eye(len(matrix), dtype=bool)]
  return float(pairs.mean()) if pairs.size else float("nan")


def oracle_accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
  """The share of examples that at least one layer gets right: what no fusion can exceed."""
  predictions, labels = _checked(predictions, labels)
  return float(np.mean(np.any(predictions == labels, axis=0)))


def oracle_chance(num_layers: int, num_classes: int) -> float:
  """`1 - (1 - 1/K)**L`: what the oracle makes of L independent guessers."""
  return 1 - (1 - 1 / num_classes) ** num_layers


def error_correlation(predictions: ArrayLike, labels: ArrayLike) -> Floats:
  """Cohen's kappa between the layers' being right, `[L, L]`: 1 if they fail together, 0 by chance.

  `(p - q) / (1 - q)`, p the share of examples on which both are right or both are wrong, q what it
  would be if they failed independently. NaN between layers that are always, or never, right.
  """
  predictions, labels = _checked(predictions, labels)
  right = (predictions == labels).astype(np.float64)
  rate = right.mean(axis=1)
  together = (right @ right.T + (1 - right) @ (1 - right).T) / right.shape[1]
  chance = np.outer(rate, rate) + np.outer(1 - rate, 1 - rate)
  with np.errstate(invalid="ignore", divide="ignore"):
    return np.where(chance < 1, (together - chance) / (1 - chance), np.nan)
