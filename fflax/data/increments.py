"""Classes that arrive in groups: which ones, their examples, and a few kept of those before.

A stream of tasks is a list of groups of classes; a task's data are a `Split` like any other.
"""

from collections.abc import Sequence

import numpy as np

from fflax.data.dataset import DataError, Split

_ORDER, _BUFFER = 0, 1  # roles of the random streams


def class_groups(num_classes: int, groups: int, seed: int) -> tuple[tuple[int, ...], ...]:
  """The classes in a random order, cut into groups as equal as can be (the first ones larger).

  Raises:
    DataError: a group would hold fewer than two classes.
  """
  if not 1 <= groups <= num_classes // 2:
    raise DataError(
      f"{groups} groups of two or more classes cannot be made of {num_classes} classes"
    )
  order = np.random.RandomState([seed, _ORDER]).permutation(num_classes)
  return tuple(tuple(int(c) for c in part) for part in np.array_split(order, groups))


def only(split: Split, classes: Sequence[int]) -> Split:
  """The examples of these classes, in their order; labels stay as they are."""
  here = np.isin(split.label, list(classes))
  return Split(split.image[here], split.label[here])


def exemplars(split: Split, per_class: int, seed: int) -> Split:
  """`per_class` random examples of every class there is (all of a class that has fewer)."""
  rng = np.random.RandomState([seed, _BUFFER])
  chosen = [
    rng.permutation(np.flatnonzero(split.label == c))[:per_class] for c in np.unique(split.label)
  ]
  rows = np.sort(np.concatenate(chosen))
  return Split(split.image[rows], split.label[rows])


def repeat(split: Split, size: int) -> Split:
  """Every class repeated, in turn, to `size` examples (cut, if it has more)."""
  rows = [np.resize(np.flatnonzero(split.label == c), size) for c in np.unique(split.label)]
  return Split(*(a[np.concatenate(rows)] for a in split))


def join(*splits: Split) -> Split:
  """All examples, one split after the other."""
  images, labels = zip(*splits, strict=True)
  return Split(np.concatenate(images), np.concatenate(labels))
