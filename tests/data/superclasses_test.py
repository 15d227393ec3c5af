"""Coarse labels: the published grouping of CIFAR-100, and examples that stay where they are."""

import numpy as np
import pytest

from fflax.data import sources
from fflax.data.dataset import DataError
from fflax.data.superclasses import coarse_labels

# As every copy of CIFAR-100 stores them: the coarse label of fine labels 0 to 99.
PUBLISHED = """
 4  1 14  8  0  6  7  7 18  3  3 14  9 18  7 11  3  9  7 11  6 11  5 10  7  6 13 15  3 15
 0 11  1 10 12 14 16  9 11  5  5 19  8  8 15 13 14 17 18 10 16  4 17  4  2  0 17  4 18 17
10  3  2 12 12 16 12  1  9 19  2 10  0  1 16 12  9 13 15 13 16 19  2  4  6 19  5  5  8 19
18  1  2 15  6  0 17  8 14 13
"""


def test_the_superclasses_of_cifar100_are_the_published_ones():
  want = [int(number) for number in PUBLISHED.split()]
  assert coarse_labels("cifar100", 100, 20).tolist() == want
  assert coarse_labels("cifar100", 100, 10).tolist() == [k % 10 for k in range(100)]


def test_the_same_examples_under_other_labels():
  fine = sources.load("digits", validation=100)
  coarse = sources.load("digits", validation=100, superclasses=3)
  assert coarse.num_classes == 3
  for part in ("train", "validation", "test"):
    a, b = getattr(fine, part), getattr(coarse, part)
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label % 3, b.label)
    assert b.label.dtype == np.int32


@pytest.mark.parametrize("number", [1, 11, -1])
def test_impossible_numbers_are_refused(number):
  with pytest.raises(DataError, match=f"^digits: superclasses {number} must be at least 2 and at"):
    sources.load("digits", superclasses=number)
