"""Makes sets of records: of a data set, of folders of images, or of random images."""

import pathlib
from collections.abc import Iterator

import numpy as np

from fflax.data import array_record_writer, folder_source
from fflax.data.catalog import KNOWN
from fflax.data.dataset import DataError, Dataset


def from_dataset(path: pathlib.Path, dataset: Dataset) -> None:
  """Writes a set that is in memory.

  Raises:
    DataError: its examples are no uint8 images, or see `array_record_writer.write`.
  """
  splits = {p: getattr(dataset, p) for p in ("train", "validation", "test")}
  array_record_writer.write(
    path,
    {part: tuple(split) for part, split in splits.items() if split is not None},
    num_classes=dataset.num_classes,
    max_value=dataset.max_value,
  )


def from_folder(path: pathlib.Path, found: folder_source.Folder, image_size: int | None) -> None:
  """Writes folders of images, one image in memory at a time; see `folder_source.load`."""
  array_record_writer.write(
    path,
    {p: (folder_source.decode(f, image_size), found.labels(p)) for p, f in found.files.items()},
    num_classes=len(found.class_names),
    class_names=found.class_names,
  )


def random_images(path: pathlib.Path, asked: str) -> tuple[int, int, int]:
  """Writes noise of the shape and classes of a known set: to try a run, or to time its input.

  The mean of an image grows with its label, so that there is something to learn.

  Args:
    path: see `array_record_writer.write`.
    asked: "NAME:N", the known set and how many images; every tenth (at least one) is for testing.

  Returns:
    The numbers of training examples, of test examples and of classes.

  Raises:
    DataError: the set is not known, or there are fewer than two examples.
  """
  like, _, number = asked.partition(":")
  if not number.isdecimal() or int(number) < 2:
    raise DataError(f"random images are asked for as NAME:N, N of 2 or more, not {asked!r}")
  examples = int(number)
  if like not in KNOWN:
    raise DataError(f"no set {like!r} is known, only {', '.join(KNOWN)}")
  shape, num_classes = KNOWN[like].shape, KNOWN[like].num_classes

  def images(seed: int, label: np.ndarray) -> Iterator[np.ndarray]:
    rng = np.random.default_rng(seed)
    for level in label * (128 / num_classes):
      noise = np.frombuffer(rng.bytes(int(np.prod(shape))), np.uint8).reshape(shape)
      yield noise // 2 + np.uint8(level)

  test = max(1, examples // 10)
  parts = {}
  for seed, (part, count) in enumerate({"train": examples - test, "test": test}.items()):
    label = np.arange(count, dtype=np.int32) % num_classes
    parts[part] = images(seed, label), label
  array_record_writer.write(path, parts, num_classes=num_classes)
  return examples - test, test, num_classes
