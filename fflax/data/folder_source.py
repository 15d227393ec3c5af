"""Folders of images, a folder a class: how ImageNet and its parts come.

`FOLDER/train/CLASS/...` and `FOLDER/val/CLASS/...` (or `FOLDER/test/CLASS/...`), images at any
depth below a class; or, as in Tiny ImageNet, `FOLDER/val/images` with the classes in
`FOLDER/val/val_annotations.txt`.
"""

import os
import pathlib
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fflax.data.dataset import (
  DataError,
  Dataset,
  Split,
  check_room,
  check_split,
  make_dataset,
)

_SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".ppm", ".webp")
_ANNOTATIONS = "val_annotations.txt"


class Folder(NamedTuple):
  """What there is to decode.

  Attributes:
    path: of the folder; its name is the data set's.
    class_names: in the order of the labels.
    files: "train" and "test" -> each image's file and label.
  """

  path: pathlib.Path
  class_names: tuple[str, ...]
  files: Mapping[str, Sequence[tuple[pathlib.Path, int]]]

  def labels(self, part: str) -> np.ndarray:
    """`[N]` int32."""
    return np.asarray([label for _, label in self.files[part]], np.int32)


def find(
  folder: str | os.PathLike[str], class_list: str | os.PathLike[str] | None = None
) -> Folder:
  """Lists every image of the classes; see `load`."""
  root = pathlib.Path(folder).expanduser()
  train = root / "train"
  if not train.is_dir():
    raise DataError(f"{root}: there is no folder 'train' with a folder for each class")
  test = next((root / name for name in ("val", "test") if (root / name).is_dir()), None)
  if test is None:
    raise DataError(f"{root}: there is neither a folder 'val' nor a folder 'test'")
  names = _listed(pathlib.Path(class_list)) if class_list is not None else _folders(train)
  return Folder(root, tuple(names), {"train": _files(train, names), "test": _files(test, names)})


def load(
  folder: str | os.PathLike[str],
  *,
  image_size: int | None = None,
  class_list: str | os.PathLike[str] | None = None,
) -> Dataset:
  """Decodes every image of the classes, as `[N, S, S, 3]` uint8.

  Args:
    folder: see above; its name is the data set's.
    image_size: side in pixels: the shorter side is resized to it, and the middle cut out
      (bilinear); needed where images differ in size.
    class_list: a file with a class in every line (its first word; "#" begins a comment), in the
      order of the labels; None: all classes of the training folder, by name.

  Raises:
    DataError: a folder, a class or the list is missing or empty, an image cannot be decoded, images
      differ in size, or all of them together are larger than this machine's memory (asked where
      `image_size` is given).
  """
  found = find(folder, class_list)
  if image_size is not None:
    check_room(
      found.path,
      (sum(map(len, found.files.values())), image_size, image_size, 3),
      "use a smaller image_size, fewer classes or --array_record, which holds one at a time",
    )

  def read(part: str) -> Split:
    pixels: np.ndarray | None = None
    for i, one in enumerate(decode(found.files[part], image_size)):
      if pixels is None:
        pixels = np.empty((len(found.files[part]), *one.shape), np.uint8)
      pixels[i] = one
    assert pixels is not None  # every class has an image
    return check_split(pixels, found.labels(part), f"{found.path} ({part})")

  return make_dataset(
    found.path.resolve().name,
    read("train"),
    read("test"),
    num_classes=len(found.class_names),
    where=str(found.path),
  )


def _listed(path: pathlib.Path) -> list[str]:
  """The classes of a list."""
  words = [line.partition("#")[0].split() for line in _lines(path.expanduser())]
  names = [line[0] for line in words if line]
  if len(names) < 2 or len(set(names)) < len(names):
    raise DataError(f"{path}: a list of classes names at least two, each once")
  return names


def _lines(path: pathlib.Path) -> list[str]:
  try:
    return path.read_text().splitlines()
  except (OSError, UnicodeDecodeError) as error:
    raise DataError(f"{path}: cannot be read ({error})") from error


def _folders(root: pathlib.Path) -> list[str]:
  names = sorted(path.name for path in root.iterdir() if path.is_dir())
  if len(names) < 2:
    raise DataError(f"{root}: at least 2 folders of classes are needed, not {len(names)}")
  return names


def _files(root: pathlib.Path, names: Sequence[str]) -> list[tuple[pathlib.Path, int]]:
  """Every image of the classes below `root`, with its label."""
  annotations = root / _ANNOTATIONS
  if annotations.is_file():
    place = {name: i for i, name in enumerate(names)}
    lines = [line.split("\t") for line in _lines(annotations) if line.strip()]
    if any(len(line) < 2 for line in lines):
      raise DataError(f"{annotations}: every line must hold a file and its class, with a tab")
    found = [(root / "images" / line[0], place[line[1]]) for line in lines if line[1] in place]
  else:
    found = []
    for label, name in enumerate(names):
      if not (root / name).is_dir():
        raise DataError(f"{root}: there is no folder of class {name!r}")
      images = (p for p in (root / name).rglob("*") if p.suffix.lower() in _SUFFIXES)
      found += [(path, label) for path in sorted(images)]
  missing = set(range(len(names))) - {label for _, label in found}
  if missing:
    raise DataError(f"{root}: there is no image of class {names[min(missing)]!r}")
  return found


def decode(
  files: Sequence[tuple[pathlib.Path, int]], image_size: int | None
) -> Iterator[np.ndarray]:
  """The images one by one, `[S, S, 3]` uint8; see `load`."""
  from PIL import Image, ImageOps

  # What Pillow raises for files that are missing, cut, altered, huge or no images at all.
  huge = Image.DecompressionBombError
  unreadable = (OSError, ValueError, SyntaxError, IndexError, struct.error, huge)
  shape: tuple[int, ...] | None = None
  for path, _ in files:
    try:
      with Image.open(path) as file:
        image = file.convert("RGB")
    except unreadable as error:
      raise DataError(f"{path}: cannot be decoded as an image ({error})") from error
    if image_size is not None:
      image = ImageOps.fit(image, (image_size, image_size), Image.Resampling.BILINEAR)
    one = np.asarray(image, np.uint8)
    if shape not in (None, one.shape):
      raise DataError(f"{path}: images differ in size, so image_size must be given")
    shape = one.shape
    yield one
