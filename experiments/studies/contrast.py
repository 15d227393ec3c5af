"""Does a difference between two methods grow from some conditions to others? With intervals.

A contrast is the mean difference over the high conditions minus that over the low ones. Three 95 %
intervals of it: observations resampled one by one (as published, though those of one seed share
initialisation and data), whole seeds resampled, and Student's t over the seeds' own contrasts.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

Interval = tuple[float, float]


class Contrast(NamedTuple):
  """A contrast of paired differences.

  Attributes:
    low, high: mean difference over the low and over the high conditions.
    value: `high - low`.
    naive: bootstrap of single observations, low and high apart.
    cluster: bootstrap of seeds, each with all of its conditions.
    paired_t: over the seeds' contrasts; needs two seeds.
  """

  low: float
  high: float
  value: float
  naive: Interval
  cluster: Interval
  paired_t: Interval | None


def contrast(
  differences: np.ndarray,
  low: Sequence[int],
  high: Sequence[int],
  *,
  resamples: int = 10_000,
  seed: int = 42,
) -> Contrast:
  """The contrast of `differences`.

  Args:
    differences: `[S, C]`, of S seeds under C conditions.
    low, high: indices of conditions, not empty.
    resamples: of both bootstraps.
    seed: of both.
  """
  rng = np.random.default_rng(seed)
  a, b = differences[:, list(low)], differences[:, list(high)]
  own = b.mean(axis=1) - a.mean(axis=1)

  def resampled(values: np.ndarray) -> np.ndarray:
    return rng.choice(values.ravel(), (resamples, values.size)).mean(axis=1)

  naive = resampled(b) - resampled(a)
  t = None
  if len(own) > 1:
    half = stats.t.ppf(0.975, len(own) - 1) * np.std(own, ddof=1) / np.sqrt(len(own))
    t = (float(own.mean() - half), float(own.mean() + half))
  return Contrast(
    float(a.mean()), float(b.mean()), float(own.mean()), _percentiles(naive),
    _percentiles(resampled(own)), t,
  )  # fmt: skip


def _percentiles(values: np.ndarray) -> Interval:
  low, high = np.percentile(values, [2.5, 97.5])
  return float(low), float(high)
