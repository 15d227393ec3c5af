"""Image-classification sets that tensorflow-datasets has prepared, read without TensorFlow.

Reading never downloads: a prepared directory is found and opened through
`tfds.builder_from_directory(...).as_data_source(...)`, which is what `tfds.data_source` comes to
once a set is there; `tfds.data_source` itself would try to fetch and to prepare a set that is not.
"""

import io
import os
import pathlib
import re
from typing import Any

import numpy as np

from fflax.data.dataset import (
  DataError,
  Dataset,
  Split,
  check_split,
  make_dataset,
  reason,
  with_validation,
)

_NAME = re.compile(r"(?P<name>\w+)(/(?P<config>[\w.-]+))?(:(?P<version>\d+\.\d+\.\d+))?")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_BLOCK = 4096
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def default_data_dir() -> pathlib.Path:
  """Where tensorflow-datasets keeps its sets unless told otherwise."""
  return pathlib.Path(os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()


def find(name: str, data_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
  """The prepared directory of `name`, `name/config` or `name:1.2.3`; None if there is none.

  Without a version the highest is taken; without a config the set must have been prepared without.

  Raises:
    DataError: if `name` is malformed, or is prepared in several configurations and names none.
  """
  match = _NAME.fullmatch(name)
  if match is None:
    raise DataError(f"{name!r} is no data set's name: NAME, NAME/CONFIG or NAME:1.2.3 is")
  root = pathlib.Path(data_dir) if data_dir is not None else default_data_dir()
  root = root.expanduser() / match["name"] / (match["config"] or "")
  found = {path.parent.name: path.parent for path in root.glob("*/dataset_info.json")}
  versions = [v for v in found if _VERSION.fullmatch(v) and match["version"] in (None, v)]
  if versions:
    return found[max(versions, key=lambda v: tuple(map(int, v.split("."))))]
  configs = sorted({path.parents[1].name for path in root.glob("*/*/dataset_info.json")})
  if configs and not match["config"]:
    raise DataError(f"{root}: name a configuration, {match['name']}/{{{','.join(configs)}}}")
  return None


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  validation: int = 0,
  seed: int = 0,
  train_split: str = "train",
  validation_split: str | None = None,
  test_split: str = "test",
  image_size: int | None = None,
) -> Dataset:
  """Reads a prepared set into memory.

  Args:
    name: `NAME`, `NAME/CONFIG`, either with `:VERSION`.
    data_dir: directory of prepared sets; None: the default of tensorflow-datasets.
    validation: number of examples to hold out of the training split.
    seed: of that choice.
    train_split: a split or a slice of one, such as `"train[:80%]"`.
    validation_split: the same, for sets that bring a validation split; excludes `validation`.
    test_split: the same; sets without a test split need `"validation"` or a slice here.
    image_size: side in pixels that images are resized to (bilinear, aspect ratio not kept); needed
      where they differ in size.

  Raises:
    DataError: if the set is not prepared there, is no image-classification set, is stored in a
      format without random access, or is damaged.
  """
  directory = find(name, data_dir)
  if directory is None:
    root = data_dir if data_dir is not None else default_data_dir()
    raise DataError(f"data set {name!r} is not prepared by tensorflow-datasets under {root}")
  if validation_split is not None and validation:
    raise DataError(f"{name}: validation_split={validation_split!r} needs validation=0")
  if image_size is not None and image_size < 1:
    raise DataError(f"{name}: image_size {image_size} must be at least 1")
  reader = _Reader(directory, image_size)
  whole = make_dataset(
    re.split("[/:]", name)[0],
    reader.read(train_split),
    reader.read(test_split),
    validation=reader.read(validation_split) if validation_split is not None else None,
    num_classes=reader.num_classes,
    where=str(directory),
  )
  return with_validation(whole, validation, seed, str(directory))


class _Reader:
  """Opens one prepared directory and decodes its splits."""

  def __init__(self, directory: pathlib.Path, image_size: int | None):
    import tensorflow_datasets as tfds  # half a second, and needed by no other source

    self.directory = directory
    self._tfds = tfds
    try:
      self._builder = tfds.builder_from_directory(directory)
      features = dict(self._builder.info.features or {})
      keys = self._builder.info.supervised_keys
    except Exception as error:  # whatever a damaged description makes the reader raise
      raise DataError(f"{directory}: cannot be opened ({reason(error)})") from error
    if not keys or len(keys) != 2:
      keys = ("image", "label")
    self._image_key, self._label_key = str(keys[0]), str(keys[1])
    image, label = features.get(self._image_key), features.get(self._label_key)
    if not isinstance(image, tfds.features.Image) or not isinstance(
      label, tfds.features.ClassLabel
    ):
      raise DataError(f"{directory}: is no set of images with one class label each")
    if image.np_dtype != np.uint8 or image.shape[-1] not in _MODES:
      raise DataError(
        f"{directory}: images are {image.np_dtype}{list(image.shape)}, not uint8 NHWC"
      )
    self._undecoded = {
      key: tfds.decode.SkipDecoding()
      for key, feature in features.items()
      if isinstance(feature, tfds.features.Image)
    }
    self.num_classes = label.num_classes
    self._mode = _MODES[image.shape[-1]]
    self._size = None if image_size is None else (image_size, image_size)
    if self._size is None and None in image.shape:
      raise DataError(f"{directory}: images differ in size, so image_size must be given")

  def read(self, split: str) -> Split:
    """Decodes one split, about 0.1 ms an example for small images."""
    where = f"{self.directory} ({split})"
    try:
      # Decoding here halves the time: tensorflow-datasets spends more around Pillow than in it.
      source: Any = self._builder.as_data_source(split, decoders=self._undecoded)
      image, label = [], []
      for start in range(0, len(source), _BLOCK):
        # Asked for one by one, each record would have its whole compressed chunk read again.
        for record in source.__getitems__(range(start, min(start + _BLOCK, len(source)))):
          image.append(self._decode(record[self._image_key]))
          label.append(int(record[self._label_key]))
    except Exception as error:  # the record reader raises its own kinds for damaged files
      raise DataError(f"{where}: cannot be read ({reason(error)})") from error
    if not image:
      raise DataError(f"{where}: the split is empty")
    if any(x.shape != image[0].shape for x in image):
      raise DataError(f"{where}: images differ in size, so image_size must be given")
    return check_split(np.stack(image), np.asarray(label), where)

  def _decode(self, encoded: bytes) -> np.ndarray:
    from PIL import Image

    with Image.open(io.BytesIO(encoded)) as file:
      image: Image.Image = file
      if image.mode != self._mode:
        image = image.convert(self._mode)
      if self._size is not None:
        image = image.resize(self._size, Image.Resampling.BILINEAR)
      pixels = np.asarray(image, np.uint8)
    return pixels[..., None] if pixels.ndim == 2 else pixels
