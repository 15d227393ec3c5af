"""Image sets that do not fit into memory: folders of array_record files, read image by image.

`NAME.array_record/` holds `train.array_record`, `test.array_record` and perhaps
`validation.array_record`: one record an image, its raw pixels (uint8, `[H, W, C]`, all of one
size). Beside them `labels.npz`, the labels `[N]` of each part, and `set.json`: shape, classes,
counts, sizes of files, and how often each pixel value is there. Nothing is ever unpickled.

A split's `image` is then `Records` in the place of an array. `fflax.data.array_record_writer` makes
such folders, and `fflax.data.record_stream` reads ahead of a run, with Grain (extra `stream`).
"""

import json
import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import numpy as np

from fflax.data.dataset import (
  DataError,
  Dataset,
  Split,
  check_room,
  check_split,
  make_dataset,
  reason,
  with_validation,
)
from fflax.data.npz_source import DAMAGE

SUFFIX = ".array_record"
FORMAT = 1
_PARTS = ("train", "validation", "test")
_BLOCK = 2**24  # bytes that are read at once, where all are wanted


class Records:
  """Images in a file, read when they are indexed, as an array is; from several threads, too.

  Attributes:
    shape, dtype, ndim, size: of the array `[N, H, W, C]` uint8 that it stands for.
    pixel_counts: `[C, 256]`, how often each value is there in all of them, or None: not known.
  """

  dtype = np.dtype(np.uint8)
  ndim = 4

  def __init__(
    self,
    path: pathlib.Path,
    source: Any,
    shape: Sequence[int],
    rows: np.ndarray,
    pixel_counts: np.ndarray | None = None,
  ):
    """Images of `shape` at the numbers `rows` of an open Grain source."""
    self._path, self._source, self._rows = path, source, rows
    self.shape = (len(rows), *shape)
    self.size = math.prod(self.shape)
    self.pixel_counts = pixel_counts

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, index: Any) -> np.ndarray:
    """Reads the images of an integer, a slice or an array of integers or booleans.

    Raises:
      DataError: a record cannot be read, or is no image of this shape.
    """
    rows = self._rows[index]
    flat = np.ravel(rows).tolist()
    try:
      records = self._source.__getitems__(flat) if flat else []
    except (RuntimeError, OSError, ValueError) as error:
      raise DataError(f"{self._path}: cannot be read ({reason(error)})") from error
    one = math.prod(self.shape[1:])
    for row, record in zip(flat, records, strict=True):
      if len(record) != one:
        raise DataError(
          f"{self._path}: record {row} has {len(record)} bytes, but an image of "
          f"{list(self.shape[1:])} has {one}"
        )
    pixels = np.frombuffer(b"".join(records), np.uint8)
    return pixels.reshape(*np.shape(rows), *self.shape[1:])

  def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
    """All of them, for what needs them in memory.

    Raises:
      DataError: see indexing; or they are larger than this machine's memory.
    """
    del copy  # there is none to share
    check_room(self._path, self.shape, "this command does not stream")
    found = np.empty(self.shape, np.uint8)
    block = max(1, _BLOCK // math.prod(self.shape[1:]))
    for first in range(0, len(self), block):
      found[first : first + block] = self[first : first + block]
    return found if dtype is None else found.astype(dtype, copy=False)

  def select(self, rows: np.ndarray) -> "Records":
    """Those at some numbers or under a mask; nothing is read."""
    return Records(self._path, self._source, self.shape[1:], self._rows[rows])


def is_streamed(split: Split) -> bool:
  """Whether the split's images are `Records`."""
  return isinstance(split.image, Records)


class _Description(NamedTuple):
  """What `set.json` says."""

  shape: tuple[int, int, int]
  num_classes: int
  max_value: float
  counts: dict[str, int]
  bytes: dict[str, int]
  train_pixels: np.ndarray | None


def load(path: str | os.PathLike[str], *, validation: int = 0, seed: int = 0) -> Dataset:
  """Opens the set in a folder; of the images, one of each part is read.

  Args:
    path: the folder; its stem is the data set's name.
    validation: number of examples to hold out of the training part.
    seed: of that choice.

  Raises:
    DataError: Grain is not installed, or the folder is not what `array_record_writer` made.
  """
  path = pathlib.Path(path)
  if not path.is_dir():
    raise DataError(f"{path}: there is no such folder")
  try:
    from grain import sources
  except ImportError as error:
    raise DataError(
      f"{path}: streaming needs Grain, which is not installed: pip install 'fflax[stream]'"
    ) from error
  said = _describe(path / "set.json")
  labels = _labels(path / "labels.npz", said)
  parts = {}
  for part, count in said.counts.items():
    file = path / f"{part}{SUFFIX}"
    if not file.is_file():
      raise DataError(f"{file}: there is no such file")
    if file.stat().st_size != said.bytes[part]:
      raise DataError(
        f"{file}: has {file.stat().st_size} bytes, not the {said.bytes[part]} that were written"
      )
    try:
      source = sources.ArrayRecordDataSource(str(file))
    except (RuntimeError, OSError, ValueError) as error:
      raise DataError(f"{file}: cannot be read ({reason(error)})") from error
    if len(source) != count:
      raise DataError(f"{file}: holds {len(source)} records, not the {count} of set.json")
    pixels = said.train_pixels if part == "train" else None
    images = Records(file, source, said.shape, np.arange(count), pixels)
    images[:1]  # a wrong size of records shows here, not in the first step
    parts[part] = check_split(cast(np.ndarray, images), labels[part], f"{path} ({part})")
  whole = make_dataset(
    path.stem,
    parts["train"],
    parts["test"],
    validation=parts.get("validation"),
    num_classes=said.num_classes,
    max_value=said.max_value,
    where=str(path),
  )
  return with_validation(whole, validation, seed, str(path))


def _describe(file: pathlib.Path) -> _Description:
  try:
    found = json.loads(file.read_text())
    if found["format"] != FORMAT:
      raise ValueError(f"format {found['format']!r}, where this version reads {FORMAT}")
    said = _Description(
      cast(tuple[int, int, int], tuple(found["shape"])),
      found["num_classes"],
      float(found["max_value"]),
      dict(found["counts"]),
      dict(found["bytes"]),
      np.array(found["train_pixels"]) if found.get("train_pixels") else None,
    )
    whole = [*said.shape, said.num_classes, *said.counts.values(), *said.bytes.values()]
    if not {"train", "test"} <= set(said.counts) <= set(_PARTS) or len(said.shape) != 3:
      raise ValueError("its parts are not train and test, or its shape is not [H, W, C]")
    if set(said.counts) != set(said.bytes) or not said.max_value > 0:
      raise ValueError("counts, bytes or max_value are not those of a set")
    if not all(isinstance(n, int) and n > 0 for n in whole):
      raise ValueError("shape, classes, counts and bytes must be positive integers")
    height, width, channels = said.shape
    of_a_channel, pixels = said.counts["train"] * height * width, said.train_pixels
    if pixels is not None and not (
      pixels.shape == (channels, 256)
      and pixels.dtype.kind == "i"
      and pixels.min() >= 0
      and (pixels.sum(1) == of_a_channel).all()
    ):
      raise ValueError(f"train_pixels are not the counts of {of_a_channel} pixels a channel")
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f"{file}: does not describe a set ({reason(error)})") from error
  return said


def _labels(file: pathlib.Path, said: _Description) -> dict[str, np.ndarray]:
  try:
    with np.load(file, allow_pickle=False) as arrays:
      return {part: arrays[part] for part in said.counts}
  except DAMAGE as error:
    raise DataError(f"{file}: cannot be read ({reason(error)})") from error
