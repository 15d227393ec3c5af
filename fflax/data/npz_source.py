"""One `.npz` file a data set: what travels to a machine without internet.

Keys: `x_train`, `y_train`, `x_test`, `y_test`, and optionally `x_validation`, `y_validation` and
the scalar `num_classes`; other keys are left alone. Images are uint8 `[N, H, W, C]`, features
float32 `[N, D]`, labels integers `[N]`. Nothing is ever unpickled.

The files of MedMNIST (J. Yang et al., 2023, arXiv 2110.14795) are read as they are, too:
`train_images`, `train_labels`, and so on with `val` and `test`; grey images `[N, H, W]` and labels
`[N, 1]`.
"""

import lzma
import os
import pathlib
import struct
import tempfile
import zipfile
import zlib
from typing import Any

import numpy as np

from fflax.data.dataset import DataError, Dataset, Split, check_split, make_dataset, with_validation

DAMAGE = (
  *(zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, OSError, ValueError),
  *(KeyError, IndexError, OverflowError, MemoryError, RuntimeError, SyntaxError),
)
"""What numpy and zipfile raise while they read a file that is cut, altered or no `.npz` at all.

A flipped bit may name another compression or ask for a password: RuntimeErrors.
"""

_OURS = {part: (f"x_{part}", f"y_{part}") for part in ("train", "validation", "test")}
_MEDMNIST = {
  part: (f"{name}_images", f"{name}_labels")
  for part, name in (("train", "train"), ("validation", "val"), ("test", "test"))
}


def load(
  path: str | os.PathLike[str],
  *,
  validation: int = 0,
  seed: int = 0,
  num_classes: int | None = None,
) -> Dataset:
  """Reads the data set in one `.npz` file.

  Args:
    path: the file; its stem is the data set's name.
    validation: number of examples to hold out of the training split.
    seed: of that choice.
    num_classes: K; None: the file's own, else one more than the largest training label.

  Raises:
    DataError: for a missing or damaged file and for arrays that cannot be used, see `check_split`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise DataError(f"{path}: there is no such file")
  arrays = _read(path)
  layout = _MEDMNIST if "x_train" not in arrays and "train_images" in arrays else _OURS
  parts = {}
  for part, (x, y) in layout.items():
    if part == "validation" and not {x, y} & set(arrays):
      continue
    for key in (x, y):
      if key not in arrays:
        raise DataError(f"{path}: array {key!r} is missing")
    image, label = arrays[x], arrays[y]
    if layout is _MEDMNIST:
      image = image[..., None] if image.ndim == 3 else image
      label = label[:, 0] if label.ndim == 2 and label.shape[1] == 1 else label
    parts[part] = check_split(image, label, f"{path} ({part})")
  if num_classes is None and "num_classes" in arrays:
    declared = arrays["num_classes"]
    if declared.ndim or not np.issubdtype(declared.dtype, np.integer):
      raise DataError(f"{path}: 'num_classes' must be one integer, not {declared!r}")
    num_classes = int(declared)
  # Checked as it stands in the file, so that a bad label is found whichever part it falls into.
  whole = make_dataset(
    path.stem,
    parts["train"],
    parts["test"],
    validation=parts.get("validation"),
    num_classes=num_classes,
    where=str(path),
  )
  return with_validation(whole, validation, seed, str(path))


def _read(path: pathlib.Path) -> dict[str, np.ndarray]:
  """The known arrays; a file that is no archive is not offered to numpy's other readers."""
  wanted = {key for layout in (_OURS, _MEDMNIST) for keys in layout.values() for key in keys}
  key = None
  try:
    with zipfile.ZipFile(path) as archive:
      archive.namelist()
    with np.load(path, allow_pickle=False) as file:
      arrays = {}
      for key in sorted((wanted | {"num_classes"}) & set(file.files)):
        arrays[key] = file[key]
  except DAMAGE as error:
    place = f"array {key!r}" if key else "the archive"
    reason = " ".join(str(error).split()) or type(error).__name__
    raise DataError(f"{path}: {place} cannot be read ({reason})") from error
  for key, array in arrays.items():
    if not isinstance(array, np.ndarray):
      raise DataError(f"{path}: {key!r} is no array")
  return arrays


def check_target(path: pathlib.Path) -> None:
  """Refuses a file that `save` would not write, before the work of decoding a set is done.

  Raises:
    DataError: if `path` does not end in `.npz` or exists.
  """
  if path.suffix != ".npz":
    raise DataError(f"{path}: the name must end in .npz")
  if path.exists():
    raise DataError(f"{path}: exists and is not overwritten")


def save(path: str | os.PathLike[str], dataset: Dataset) -> None:
  """Writes `dataset` as `.npz`, whole or not at all: a temporary file beside it, then a rename.

  Raises:
    DataError: if `path` does not end in `.npz`, exists, or the pixels are not scaled by 255.
  """
  path = pathlib.Path(path)
  check_target(path)
  if dataset.train.image.dtype == np.uint8 and dataset.max_value != 255:
    raise DataError(f"{path}: pixels up to {dataset.max_value:g} cannot be told from 255 in .npz")
  arrays: dict[str, Any] = {"num_classes": np.asarray(dataset.num_classes)}
  for part in ("train", "validation", "test"):
    split: Split | None = getattr(dataset, part)
    if split is not None:
      arrays |= {f"x_{part}": split.image, f"y_{part}": split.label}
  path.parent.mkdir(parents=True, exist_ok=True)
  handle, part_name = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part", dir=path.parent)
  try:
    with os.fdopen(handle, "wb") as file:
      np.savez_compressed(file, **arrays)
      file.flush()
      os.fsync(file.fileno())
    os.chmod(part_name, 0o644)  # mkstemp makes it private
    os.rename(part_name, path)
  except BaseException:
    pathlib.Path(part_name).unlink(missing_ok=True)
    raise
