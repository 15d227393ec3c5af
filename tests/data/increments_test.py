"""Groups of classes, and splits made of parts of others."""

import numpy as np
import pytest

from fflax.data import increments
from fflax.data.dataset import DataError, Split

LABEL = np.array([0, 2, 1, 1, 2, 2, 0, 1, 2], np.int32)
SPLIT = Split(np.arange(9, dtype=np.uint8).reshape(9, 1, 1, 1), LABEL)


def ids(split):
  assert split.image.dtype == np.uint8 and split.label.dtype == np.int32
  found = split.image[:, 0, 0, 0].tolist()
  assert LABEL[found].tolist() == split.label.tolist()
  return found


@pytest.mark.parametrize(("classes", "groups"), [(10, 5), (10, 3), (7, 3), (4, 1)])
def test_groups_part_the_classes(classes, groups):
  found = increments.class_groups(classes, groups, seed=3)
  assert sorted(c for g in found for c in g) == list(range(classes))
  sizes = [len(g) for g in found]
  assert len(found) == groups and max(sizes) - min(sizes) <= 1 and min(sizes) >= 2
  assert found == increments.class_groups(classes, groups, seed=3)


def test_seeds_give_other_orders():
  assert len({increments.class_groups(10, 5, seed) for seed in range(20)}) == 20


def test_groups_of_one_class_are_refused():
  with pytest.raises(DataError, match="6 groups of two or more classes"):
    increments.class_groups(10, 6, 0)


def test_parts():
  assert ids(increments.only(SPLIT, (2, 0))) == [0, 1, 4, 5, 6, 8]
  some = increments.exemplars(SPLIT, 2, seed=0)
  assert np.bincount(some.label).tolist() == [2, 2, 2]
  assert len(set(ids(some))) == 6
  assert ids(some) == ids(increments.exemplars(SPLIT, 2, seed=0))
  assert {tuple(ids(increments.exemplars(SPLIT, 2, seed=s))) for s in range(9)} != {
    tuple(ids(some))
  }
  assert len(ids(increments.exemplars(SPLIT, 100, seed=0))) == 9
  assert ids(increments.repeat(SPLIT, 3)) == [0, 6, 0, 2, 3, 7, 1, 4, 5]
  both = increments.join(increments.only(SPLIT, [1]), increments.only(SPLIT, [0]))
  assert ids(both) == [2, 3, 7, 0, 6]
