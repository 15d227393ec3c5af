"""Image sets that do not fit into memory: folders of array_record files, read image by image.

`NAME.array_record/` holds `train.array_record`, `test.array_record` and perhaps
`validation.array_record`: one record an image, its raw pixels (uint8, `[H, W, C]`, all of one
size). Beside them `labels.npz`, the labels `[N]` of each part, and `set.json`: shape, classes,
counts and sizes of files. Nothing is ever unpickled.

A split's `image` is then `Records` in the place of an array. `fflax.data.record_stream` reads
ahead of a run, with Grain (extra `stream`).
"""

import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
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
_PARTS = ("train", "validation", "test")
_FORMAT = 1
# Each record alone, so that one is read without its neighbours; photographs hardly compress.
_WRITER_OPTIONS = "group_size:1,uncompressed"


class Records:
  """Images in a file, read when they are indexed, as an array is; from several threads, too.

  Attributes:
    shape, dtype, ndim, size: of the array `[N, H, W, C]` uint8 that it stands for.
  """

  dtype = np.dtype(np.uint8)
  ndim = 4

  def __init__(self, path: pathlib.Path, source: Any, shape: Sequence[int], rows: np.ndarray):
    """Images of `shape` at the numbers `rows` of an open Grain source."""
    self._path, self._source, self._rows = path, source, rows
    self.shape = (len(rows), *shape)
    self.size = math.prod(self.shape)

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
    return np.asarray(self[:], dtype)

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


def load(path: str | os.PathLike[str], *, validation: int = 0, seed: int = 0) -> Dataset:
  """Opens the set in a folder; of the images, one of each part is read.

  Args:
    path: the folder; its stem is the data set's name.
    validation: number of examples to hold out of the training part.
    seed: of that choice.

  Raises:
    DataError: Grain is not installed, or the folder is not what `write` made.
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
    images = Records(file, source, said.shape, np.arange(count))
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
    if found["format"] != _FORMAT:
      raise ValueError(f"format {found['format']!r}, where this version reads {_FORMAT}")
    said = _Description(
      cast(tuple[int, int, int], tuple(found["shape"])),
      found["num_classes"],
      float(found["max_value"]),
      dict(found["counts"]),
      dict(found["bytes"]),
    )
    whole = [*said.shape, said.num_classes, *said.counts.values(), *said.bytes.values()]
    if not {"train", "test"} <= set(said.counts) <= set(_PARTS) or len(said.shape) != 3:
      raise ValueError("its parts are not train and test, or its shape is not [H, W, C]")
    if set(said.counts) != set(said.bytes) or not said.max_value > 0:
      raise ValueError("counts, bytes or max_value are not those of a set")
    if not all(isinstance(n, int) and n > 0 for n in whole):
      raise ValueError("shape, classes, counts and bytes must be positive integers")
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise DataError(f"{file}: does not describe a set ({reason(error)})") from error
  return said


def _labels(file: pathlib.Path, said: _Description) -> dict[str, np.ndarray]:
  try:
    with np.load(file, allow_pickle=False) as arrays:
      return {part: arrays[part] for part in said.counts}
  except DAMAGE as error:
    raise DataError(f"{file}: cannot be read ({reason(error)})") from error


def check_target(path: pathlib.Path) -> None:
  """Refuses a folder that `write` would not make, before the work of decoding a set is done.

  Raises:
    DataError: if `path` does not end in `.array_record` or exists.
  """
  if path.suffix != SUFFIX:
    raise DataError(f"{path}: the name must end in {SUFFIX}")
  if path.exists():
    raise DataError(f"{path}: exists and is not overwritten")


def write(
  path: str | os.PathLike[str],
  parts: Mapping[str, tuple[Iterable[np.ndarray], np.ndarray]],
  *,
  num_classes: int,
  max_value: float = 255.0,
  class_names: Sequence[str] = (),
) -> None:
  """Writes a set, whole or not at all: a temporary folder beside it, then a rename.

  Args:
    path: the folder, `NAME.array_record`.
    parts: "train", "test" and perhaps "validation" -> images `[H, W, C]` uint8, taken one by one,
      and their labels `[N]`.
    num_classes: K.
    max_value: the pixel value that maps to 1.0.
    class_names: written down, where they are known.

  Raises:
    DataError: the folder cannot be made, an image is not uint8 of the first one's shape, images
      and labels differ in number, a label is out of range, or a part is empty.
  """
  from array_record.python import array_record_module

  path = pathlib.Path(path)
  check_target(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
  shape: tuple[int, ...] | None = None
  try:
    sizes = {}
    for part, (images, label) in parts.items():
      where = f"{path} ({part})"
      if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        bad = label.max() if label.min() >= 0 else label.min()
        raise DataError(f"{where}: label {bad} is out of range for {num_classes} classes")
      file, count = unfinished / f"{part}{SUFFIX}", 0
      writer = array_record_module.ArrayRecordWriter(str(file), _WRITER_OPTIONS)
      for one in images:
        shape = one.shape if shape is None else shape
        if one.dtype != np.uint8 or one.ndim != 3 or one.shape != shape:
          raise DataError(
            f"{where}: example {count} is {one.dtype}{list(one.shape)}, but records are of uint8 "
            f"images of one size, here {list(shape)}"
          )
        writer.write(one.tobytes())
        count += 1
      writer.close()
      if not count or count != len(label):
        raise DataError(f"{where}: {count} images but {len(label)} labels")
      sizes[part] = file.stat().st_size
    labels: Any = {part: label.astype(np.int32) for part, (_, label) in parts.items()}
    np.savez(unfinished / "labels.npz", **labels)
    said = {
      "format": _FORMAT,
      "shape": shape,
      "num_classes": num_classes,
      "max_value": max_value,
      "class_names": list(class_names),
      "counts": {part: len(label) for part, (_, label) in parts.items()},
      "bytes": sizes,
    }
    (unfinished / "set.json").write_text(json.dumps(said, indent=2) + "\n")
    unfinished.chmod(0o755)  # mkdtemp makes it private
    unfinished.rename(path)
  except RuntimeError as error:  # of the writer, when the disk is full
    raise DataError(f"{path}: cannot be written ({reason(error)})") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
