"""Checks and stratified splits, against counting."""

import numpy as np
import pytest

from fflax.data import dataset
from fflax.data.dataset import DataError, Split, check_split, hold_out, make_dataset

IMAGE = np.zeros((4, 2, 2, 1), np.uint8)
LABEL = np.asarray([0, 1, 1, 0])


def nan_at(row):
  x = np.zeros((4, 3), np.float32)
  x[row, 1] = np.nan
  return x


@pytest.mark.parametrize(
  ("image", "label", "message"),
  [
    (IMAGE[..., 0], LABEL, r"uint8 images must be \[N, H, W, C\], not of shape \(4, 2, 2\)"),
    (IMAGE.astype(np.float32), LABEL, r"float32 features must be \[N, D\]"),
    (IMAGE.astype(np.int64), LABEL, "must be uint8 images or float32 features, not int64"),
    (nan_at(2).astype(np.float64), LABEL, "not float64"),
    (IMAGE, LABEL.astype(np.float32), "labels must be integers, not float32"),
    (IMAGE, LABEL[:, None], r"labels must be \[N\], not of shape \(4, 1\)"),
    (IMAGE, LABEL[:3], "4 examples but 3 labels"),
    (IMAGE[:0], LABEL[:0], "the split is empty"),
    (IMAGE[:, :0], LABEL, "the split is empty"),
    (nan_at(2), LABEL, "example 2 holds a NaN"),
    (IMAGE, np.asarray([0, 1, -1, 0]), "label -1 is out of range"),
    (IMAGE, np.asarray([0, 1, 2**32 + 1, 0], np.uint64), "label 4294967297 is out of range"),
  ],
)
def test_unusable_arrays_are_refused_with_their_place(image, label, message):
  with pytest.raises(DataError, match="^here: .*" + message):
    check_split(image, label, "here")


def test_good_arrays_pass_unchanged():
  split = check_split(IMAGE, LABEL.astype(np.uint8), "here")
  assert split.image is IMAGE and split.label.dtype == np.int32
  np.testing.assert_array_equal(split.label, LABEL)


def test_what_shows_only_between_splits_is_refused():
  train = check_split(IMAGE, LABEL, "here")
  wider = check_split(np.zeros((4, 2, 3, 1), np.uint8), LABEL, "here")
  more = check_split(IMAGE, LABEL + 1, "here")
  with pytest.raises(DataError, match=r"here \(test\): examples are uint8\[2, 3, 1\] but"):
    make_dataset("x", train, wider, where="here")
  with pytest.raises(DataError, match=r"here \(test\): label 2 is out of range for 2 classes"):
    make_dataset("x", train, more, where="here")
  with pytest.raises(DataError, match=r"here \(validation\): label 2 is out of range"):
    make_dataset("x", train, train, validation=more, where="here")
  with pytest.raises(DataError, match=r"here \(train\): label 2 is out of range for 2 classes"):
    make_dataset("x", more, train, num_classes=2, where="here")


def test_one_class_is_no_task():
  single = check_split(IMAGE, LABEL * 0, "here")
  with pytest.raises(DataError, match="at least 2 classes are needed, not 1"):
    make_dataset("x", single, single, where="here")


@pytest.mark.parametrize("size", [1, 10, 37, 99])
def test_stratified_choice_keeps_shares_to_within_one(size):
  """A class drawn twice as often would bias every validation score."""
  label = np.random.RandomState(0).choice(4, 100, p=[0.5, 0.3, 0.15, 0.05])
  chosen = dataset.stratified_choice(label, size, seed=1)
  assert len(set(chosen)) == size
  np.testing.assert_array_equal(chosen, np.sort(chosen))
  share = np.bincount(label, minlength=4) * size / 100
  assert np.abs(np.bincount(label[chosen], minlength=4) - share).max() < 1


def test_stratified_choice_is_uniform_within_a_class():
  """Every member of a class of 20, of whom 5 are taken, is taken in a quarter of the seeds."""
  label = np.repeat([0, 1], 20)
  taken = np.zeros(40)
  for seed in range(2000):
    taken[dataset.stratified_choice(label, 10, seed)] += 1
  assert np.abs(taken / 2000 - 0.25).max() < 4.5 * np.sqrt(0.25 * 0.75 / 2000)


def test_hold_out_is_a_partition_and_follows_the_seed():
  label = np.arange(50) % 5
  split = Split(np.arange(50, dtype=np.float32)[:, None], label.astype(np.int32))
  rest, held = hold_out(split, 10, 0, "here")
  assert held is not None
  both = np.concatenate([rest.image, held.image])[:, 0]
  np.testing.assert_array_equal(np.sort(both), np.arange(50))
  np.testing.assert_array_equal(held.image[:, 0] % 5, held.label)
  np.testing.assert_array_equal(np.bincount(held.label), [2] * 5)
  again, other = hold_out(split, 10, 0, "here")[1], hold_out(split, 10, 1, "here")[1]
  np.testing.assert_array_equal(held.image, again.image)
  assert not np.array_equal(held.image, other.image)


@pytest.mark.parametrize("size", [-1, 50, 51])
def test_a_validation_part_must_leave_something(size):
  split = Split(np.zeros((50, 1), np.float32), np.zeros(50, np.int32))
  with pytest.raises(DataError, match=f"here: validation={size} .* 50 training examples"):
    hold_out(split, size, 0, "here")
  assert hold_out(split, 0, 0, "here") == (split, None)
