"""Contrasts of paired differences: closed forms, and intervals that cover."""

import numpy as np
import pytest
from scipy import stats

from experiments.studies.contrast import contrast


def test_of_a_constant_difference_every_interval_is_a_point():
  found = contrast(np.full((3, 4), 0.7), [0, 1], [2, 3])
  assert (found.low, found.high, found.value) == pytest.approx((0.7, 0.7, 0.0))
  for interval in (found.naive, found.cluster, found.paired_t):
    assert interval == pytest.approx((0, 0), abs=1e-12)


def test_seeds_that_only_shift_leave_the_contrast_alone():
  """What a seed adds to all of its conditions cancels; single observations do not know that."""
  shift = np.array([[-2.0], [0.0], [5.0]])
  found = contrast(shift + np.array([[0.0, 0.0, 1.0]]), [0, 1], [2])
  assert found.value == pytest.approx(1.0)
  assert found.cluster == pytest.approx((1, 1))
  assert found.paired_t == pytest.approx((1, 1))
  assert found.naive[1] - found.naive[0] > 3


def test_intervals_are_the_library_s():
  values = np.random.default_rng(0).normal(size=(5, 6))
  found = contrast(values, [0, 1, 2, 3], [4, 5])
  own = values[:, 4:].mean(1) - values[:, :4].mean(1)
  low, high = stats.t.interval(0.95, 4, own.mean(), stats.sem(own))
  assert found.paired_t == pytest.approx((low, high))
  other = stats.bootstrap((own,), np.mean, n_resamples=10_000, method="percentile", rng=0)
  assert found.cluster == pytest.approx(tuple(other.confidence_interval), abs=0.05)
  assert contrast(values[:1], [0], [1]).paired_t is None
