"""Prepares an image set with tensorflow-datasets; packs sets into one .npz file or into records.

  python -m experiments.prepare_data --dataset=mnist --data_dir=DIR
  python -m experiments.prepare_data --dataset=mnist --data_dir=DIR --npz=mnist.npz
  python -m experiments.prepare_data --folder=tiny-imagenet-200 --npz=DIR/tiny_imagenet.npz
  python -m experiments.prepare_data --folder=imagenet --class_list=imagenet100.txt \\
    --image_size=224 --array_record=DIR/imagenet100.array_record
  python -m experiments.prepare_data --dataset=DIR/mnist.npz --array_record=DIR/mnist.array_record
  python -m experiments.prepare_data --random=imagenet100:64 --array_record=DIR/noise.array_record

Preparing downloads the set and needs TensorFlow (pip install 'fflax[data]'); a set that is prepared
already is left as it is. Packing a prepared set, or folders of images (a folder a class below
`train` and `val`; see `fflax.data.folder_source`), needs no TensorFlow. A list of classes, one in a
line, chooses and orders the labels. Records (`fflax.data.array_record_source`) are streamed in
training (pip install 'fflax[stream]'), so they may be larger than memory; folders become records
one image at a time. `--random` makes noise of a known set's size and classes, as many as are asked.
"""

import importlib.util
import pathlib

from absl import flags

from experiments import cli, record_sets
from fflax.data import (
  array_record_writer,
  folder_source,
  npz_source,
  sources,
  tfds_source,
)
from fflax.data.array_record_source import SUFFIX
from fflax.data.dataset import Dataset

_DATASET = flags.DEFINE_string(
  "dataset",
  None,
  "Set to prepare, as tensorflow-datasets names it: NAME or NAME/CONFIG; or, to be packed, digits "
  "or a file .npz.",
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where prepared sets lie; default: that of tensorflow-datasets."
)
_NPZ = flags.DEFINE_string("npz", None, "File to pack the prepared set into; must not exist.")
_ARRAY_RECORD = flags.DEFINE_string(
  "array_record", None, "Folder to pack it into as records, NAME.array_record; must not exist."
)
_FOLDER = flags.DEFINE_string(
  "folder", None, "Folders of images to pack, in the place of a prepared set."
)
_RANDOM = flags.DEFINE_string(
  "random", None, "NAME:N, in the place of a set: N random images like those of a known set."
)
_CLASS_LIST = flags.DEFINE_string(
  "class_list", None, "Of a folder: file with the classes that are packed, one in a line."
)
_TRAIN_SPLIT = flags.DEFINE_string("train_split", "train", "Split or slice packed for training.")
_TEST_SPLIT = flags.DEFINE_string("test_split", "test", "Split or slice packed for testing.")
_IMAGE_SIZE = flags.DEFINE_integer(
  "image_size", None, "Side in pixels that packed images are resized to.", lower_bound=1
)


def prepare(name: str, data_dir: str | None) -> pathlib.Path:
  """Downloads and prepares a set, unless it is there; returns its directory."""
  directory = tfds_source.find(name, data_dir)
  if directory is not None:
    return directory
  if importlib.util.find_spec("tensorflow") is None:
    where = data_dir or tfds_source.default_data_dir()
    raise cli.UsageError(
      f"{name} is not prepared under {where}, and preparing it needs TensorFlow, which is not"
      " installed: pip install 'fflax[data]'"
    )
  import tensorflow_datasets as tfds

  try:
    # array_record is the format that can be read without TensorFlow.
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except ValueError as error:  # the name is unknown; tfds adds a page of names
    raise cli.UsageError(str(error).strip().splitlines()[0]) from error
  builder.download_and_prepare()
  return pathlib.Path(builder.data_dir)


def pack(dataset: Dataset, out: pathlib.Path) -> None:
  """Writes the file or the folder, whichever its name asks for, and says what it holds."""
  if out.suffix == SUFFIX:
    record_sets.from_dataset(out, dataset)
  else:
    npz_source.save(out, dataset)
  tell(out, len(dataset.train.label), len(dataset.test.label), dataset.num_classes)


def pack_folder(folder: str, out: pathlib.Path) -> None:
  """The same, of folders of images; they become records one by one, and a file all at once."""
  size, listed = _IMAGE_SIZE.value, _CLASS_LIST.value
  if out.suffix == SUFFIX:
    found = folder_source.find(folder, listed)
    record_sets.from_folder(out, found, size)
    tell(out, len(found.files["train"]), len(found.files["test"]), len(found.class_names))
  else:
    pack(folder_source.load(folder, image_size=size, class_list=listed), out)


def tell(out: pathlib.Path, train: int, test: int, classes: int) -> None:
  """Says what was packed."""
  files = [out] if out.is_file() else list(out.iterdir())
  size = sum(f.stat().st_size for f in files) / 2**20
  print(
    f"{out} holds {train} training and {test} test examples of {classes} classes, {size:.1f} MiB"
  )


def in_memory(name: str) -> bool:
  """Whether a set needs no preparing."""
  return name == "digits" or name.endswith(".npz")


def target() -> pathlib.Path | None:
  """The file or folder to pack into, which must not exist.

  Raises:
    UsageError: the flags contradict each other.
    ValueError: its name is wrong, or it exists.
  """
  packed = bool(_NPZ.value or _ARRAY_RECORD.value)
  given = [f.value for f in (_DATASET, _FOLDER, _RANDOM) if f.value]
  if not given:
    raise cli.UsageError("--dataset is missing, for example --dataset=mnist")
  if _NPZ.value and _ARRAY_RECORD.value:
    raise cli.UsageError("give --npz or --array_record, one at a time")
  if _FOLDER.value and (len(given) > 1 or not packed):
    raise cli.UsageError("--folder goes with --npz=FILE or --array_record, and without --dataset")
  if _RANDOM.value and (len(given) > 1 or not _ARRAY_RECORD.value):
    raise cli.UsageError("--random goes with --array_record, and without --dataset")
  if _CLASS_LIST.value and not _FOLDER.value:
    raise cli.UsageError("--class_list is for --folder")
  prepared = packed and _DATASET.value is not None and not in_memory(_DATASET.value)
  if _IMAGE_SIZE.value and not (_FOLDER.value or prepared):
    raise cli.UsageError("--image_size is for --folder and for prepared sets that are packed")
  for flag in (_TRAIN_SPLIT, _TEST_SPLIT):
    if flag.value != flag.default and not prepared:
      raise cli.UsageError(f"--{flag.name} is for prepared sets that are packed")
  if _ARRAY_RECORD.value:
    out = pathlib.Path(_ARRAY_RECORD.value)
    array_record_writer.check_target(out)
    return out
  if _NPZ.value:
    npz_source.check_target(pathlib.Path(_NPZ.value))
  return None if _NPZ.value is None else pathlib.Path(_NPZ.value)


def main(argv: list[str]) -> None:
  """Prepares, then packs if asked to; or packs what needs no preparing."""
  del argv
  with cli.checking():
    out, name = target(), _DATASET.value or ""
    if _FOLDER.value and out is not None:
      return pack_folder(_FOLDER.value, out)
    if _RANDOM.value and out is not None:
      return tell(out, *record_sets.random_images(out, _RANDOM.value))
    if out is not None and in_memory(name):
      return pack(sources.load(name), out)
    directory = prepare(name, _DATA_DIR.value)
  print(f"{name} is prepared in {directory}")
  if out is None:
    return None
  with cli.checking():
    dataset = tfds_source.load(
      name,
      data_dir=_DATA_DIR.value,
      train_split=_TRAIN_SPLIT.value,
      test_split=_TEST_SPLIT.value,
      image_size=_IMAGE_SIZE.value,
    )
    pack(dataset, out)


if __name__ == "__main__":
  cli.run(main)
