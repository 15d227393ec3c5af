"""Makes the folders that `fflax.data.array_record_source` reads, one image in memory at a time."""

import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from fflax.data.array_record_source import FORMAT, SUFFIX
from fflax.data.dataset import DataError, reason
from fflax.data.normalize import count_pixels

# Each record alone, so that one is read without its neighbours; photographs hardly compress.
_OPTIONS = "group_size:1,uncompressed"


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
    DataError: the folder cannot be made or written, an image is not uint8 of the first one's shape,
      images and labels differ in number, a label is out of range, or a part is empty.
  """
  from array_record.python import array_record_module

  path = pathlib.Path(path)
  check_target(path)
  try:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = pathlib.Path(tempfile.mkdtemp(prefix=f".{path.stem}.", dir=path.parent))
  except OSError as error:
    raise DataError(f"{path}: cannot be made ({reason(error)})") from error
  shape: tuple[int, ...] | None = None
  try:
    sizes: dict[str, int] = {}
    pixels: Any = 0
    for part, (images, label) in parts.items():
      where = f"{path} ({part})"
      if len(label) and not 0 <= label.min() <= label.max() < num_classes:
        bad = label.max() if label.min() >= 0 else label.min()
        raise DataError(f"{where}: label {bad} is out of range for {num_classes} classes")
      file, count = unfinished / f"{part}{SUFFIX}", 0
      writer = array_record_module.ArrayRecordWriter(str(file), _OPTIONS)
      for one in images:
        shape = one.shape if shape is None else shape
        if one.dtype != np.uint8 or one.ndim != 3 or one.shape != shape:
          raise DataError(
            f"{where}: example {count} is {one.dtype}{list(one.shape)}, but records are of uint8 "
            f"images of one size, here {list(shape)}"
          )
        writer.write(one.tobytes())
        if part == "train":
          pixels = pixels + count_pixels(one)
        count += 1
      writer.close()
      if not count or count != len(label):
        raise DataError(f"{where}: {count} images but {len(label)} labels")
      sizes[part] = file.stat().st_size
    labels: Any = {part: label.astype(np.int32) for part, (_, label) in parts.items()}
    np.savez(unfinished / "labels.npz", **labels)
    said = {
      "format": FORMAT,
      "shape": shape,
      "num_classes": num_classes,
      "max_value": max_value,
      "class_names": list(class_names),
      "counts": {part: len(label) for part, (_, label) in parts.items()},
      "bytes": sizes,
      "train_pixels": pixels.tolist(),
    }
    (unfinished / "set.json").write_text(json.dumps(said, indent=2) + "\n")
    unfinished.chmod(0o755)  # mkdtemp makes it private
    unfinished.rename(path)
  except (RuntimeError, OSError) as error:  # the writer raises the first when the disk is full
    raise DataError(f"{path}: cannot be written ({reason(error)})") from error
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)
