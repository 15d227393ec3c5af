"""What a data set is, and the checks that every source passes its arrays through."""

import math
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class DataError(ValueError):
  """Data that cannot be used: missing, damaged or contradictory. One sentence, naming the place."""


class Split(NamedTuple):
  """Labelled examples on the host.

  Attributes:
    image: `[N, H, W, C]` uint8 pixels, or `[N, D]` float32 features. Of a set that is streamed
      `fflax.data.array_record_source.Records`, which stand for such an array of pixels: they have
      its shape, and indexing reads.
    label: `[N]` int32 in `[0, num_classes)`.
  """

  image: np.ndarray
  label: np.ndarray

  def select(self, rows: np.ndarray) -> "Split":
    """Some of the examples, by a mask or their numbers; those of a streamed set are not read."""
    chosen = getattr(self.image, "select", self.image.__getitem__)(rows)
    return Split(chosen, self.label[rows])


class Dataset(NamedTuple):
  """A named set of labelled examples.

  Attributes:
    name: without directory or suffix, so that `fflax.data.normalize` knows it.
    train: what is trained on (without the validation examples).
    validation: held out of the training part, or None.
    test: never depends on a seed, except for `synthetic`, where the seed is the task.
    num_classes: K.
    max_value: the pixel value that maps to 1.0 (255 or 16); 1.0 for float features.
  """

  name: str
  train: Split
  validation: Split | None
  test: Split
  num_classes: int
  max_value: float


def check_split(image: np.ndarray, label: np.ndarray, where: str) -> Split:
  """Returns a `Split` of what can be used as it is, and refuses everything else.

  Args:
    image: `[N, H, W, C]` uint8 or `[N, D]` float32.
    label: `[N]`, any integer dtype.
    where: what the error names, such as `"/data/mnist.npz (train)"`.

  Raises:
    DataError: for a wrong dtype or rank, N that differs or is 0, NaN or infinity, negative labels.
  """
  if image.dtype == np.uint8:
    if image.ndim != 4:
      raise DataError(f"{where}: uint8 images must be [N, H, W, C], not of shape {image.shape}")
  elif image.dtype == np.float32:
    if image.ndim != 2:
      raise DataError(f"{where}: float32 features must be [N, D], not of shape {image.shape}")
  else:
    raise DataError(
      f"{where}: examples must be uint8 images or float32 features, not {image.dtype}"
    )
  if not np.issubdtype(label.dtype, np.integer):
    raise DataError(f"{where}: labels must be integers, not {label.dtype}")
  if label.ndim != 1:
    raise DataError(f"{where}: labels must be [N], not of shape {label.shape}")
  if len(image) != len(label):
    raise DataError(f"{where}: {len(image)} examples but {len(label)} labels")
  if image.size == 0:
    raise DataError(f"{where}: the split is empty, of shape {image.shape}")
  if image.dtype == np.float32:
    good = np.isfinite(image).all(axis=1)
    if not good.all():
      raise DataError(f"{where}: example {int(np.argmin(good))} holds a NaN or infinite value")
  # Compared before the cast, in which a large unsigned label would wrap.
  if label.min() < 0 or label.max() > np.iinfo(np.int32).max:
    bad = label.min() if label.min() < 0 else label.max()
    raise DataError(f"{where}: label {bad} is out of range, labels count from 0")
  return Split(image, label.astype(np.int32))


def make_dataset(
  name: str,
  train: Split,
  test: Split,
  *,
  where: str,
  validation: Split | None = None,
  num_classes: int | None = None,
  max_value: float | None = None,
) -> Dataset:
  """Puts checked splits together and checks what only shows between them.

  `num_classes` of None means one more than the largest training label; `max_value` of None means
  255 for uint8 and 1 for float32.

  Raises:
    DataError: if the splits' examples differ in shape or dtype, a label is not below `num_classes`,
      or there are fewer than 2 classes.
  """
  if num_classes is None:
    num_classes = int(train.label.max()) + 1
  if num_classes < 2:
    raise DataError(f"{where}: at least 2 classes are needed, not {num_classes}")
  for part, split in (("train", train), ("validation", validation), ("test", test)):
    if split is None:
      continue
    if split.label.max() >= num_classes:
      raise DataError(
        f"{where} ({part}): label {split.label.max()} is out of range for {num_classes} classes"
      )
    if split.image.shape[1:] != train.image.shape[1:] or split.image.dtype != train.image.dtype:
      raise DataError(
        f"{where} ({part}): examples are {split.image.dtype}{list(split.image.shape[1:])} but those"
        f" of the training split are {train.image.dtype}{list(train.image.shape[1:])}"
      )
  if max_value is None:
    max_value = 255.0 if train.image.dtype == np.uint8 else 1.0
  return Dataset(name, train, validation, test, num_classes, max_value)


def stratified_choice(label: np.ndarray, size: int, seed: int) -> np.ndarray:
  """`[size]` sorted indices, each class as often as its share asks, up to one example.

  What flooring leaves over goes to the classes with the largest fractions (the largest remainder
  method). The choice within a class uses numpy's legacy generator, whose stream is frozen across
  versions.
  """
  rng = np.random.RandomState(seed)
  count = np.bincount(label)
  quota = count * (size / len(label))
  take = np.floor(quota).astype(int)
  left_over = size - take.sum()
  take[np.argsort(take - quota, kind="stable")[:left_over]] += 1
  chosen = [
    rng.permutation(np.flatnonzero(label == k))[: take[k]] for k in range(len(count)) if count[k]
  ]
  return np.sort(np.concatenate(chosen))


def hold_out(split: Split, size: int, seed: int, where: str) -> tuple[Split, Split | None]:
  """Splits `size` stratified examples off; order is kept in both parts.

  Returns:
    `(rest, held_out)`; `held_out` is None if `size` is 0.

  Raises:
    DataError: if `size` is negative or leaves nothing to train on.
  """
  if not 0 <= size < len(split.label):
    raise DataError(
      f"{where}: validation={size} must be at least 0 and below the {len(split.label)} training"
      " examples"
    )
  if size == 0:
    return split, None
  held_out = np.zeros(len(split.label), bool)
  held_out[stratified_choice(split.label, size, seed)] = True
  return split.select(~held_out), split.select(held_out)


def with_validation(whole: Dataset, size: int, seed: int, where: str) -> Dataset:
  """The set with its own validation split, or with `size` examples held out of its training split.

  Raises:
    DataError: it has one of its own and `size` is not 0, or see `hold_out`.
  """
  if whole.validation is not None:
    if size:
      raise DataError(f"{where}: has a validation split of its own, so validation must be 0")
    return whole
  train, held_out = hold_out(whole.train, size, seed, where)
  return whole._replace(train=train, validation=held_out)


def check_room(where: pathlib.Path, shape: Sequence[int], advice: str) -> None:
  """Refuses images that this machine cannot hold, before hours of decoding.

  Raises:
    DataError: uint8 images of `shape` `[N, H, W, C]` take more than its memory.
  """
  try:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  except (AttributeError, OSError, ValueError):  # not on this system
    return
  needed = math.prod(shape)
  if needed > memory:
    raise DataError(
      f"{where}: {shape[0]} images of {shape[1]}x{shape[2]} take {needed / 2**30:.1f} GiB, and "
      f"this machine has {memory / 2**30:.1f} GiB: {advice}"
    )


def reason(error: BaseException) -> str:
  """The first line of what may be a page of advice, or the kind of error where it says nothing."""
  lines = [line.strip() for line in str(error).splitlines() if line.strip()]
  return lines[0].rstrip(".") if lines else type(error).__name__
