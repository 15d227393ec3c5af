"""Prepares an image set with tensorflow-datasets, and packs one into a single .npz file.

  python -m experiments.prepare_data --dataset=mnist --data_dir=DIR
  python -m experiments.prepare_data --dataset=mnist --data_dir=DIR --npz=mnist.npz
  python -m experiments.prepare_data --folder=tiny-imagenet-200 --npz=DIR/tiny_imagenet.npz
  python -m experiments.prepare_data --folder=imagenet --class_list=imagenet100.txt \\
    --image_size=224 --npz=DIR/imagenet100.npz

Preparing downloads the set and needs TensorFlow (pip install 'fflax[data]'); a set that is prepared
already is left as it is. Packing a prepared set, or folders of images (a folder a class below
`train` and `val`; see `fflax.data.folder_source`), needs no TensorFlow. A list of classes, one in a
line, chooses and orders the labels.
"""

import importlib.util
import pathlib

from absl import flags

from experiments import cli
from fflax.data import folder_source, npz_source, tfds_source
from fflax.data.dataset import Dataset

_DATASET = flags.DEFINE_string(
  "dataset", None, "Set to prepare, as tensorflow-datasets names it: NAME or NAME/CONFIG."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where prepared sets lie; default: that of tensorflow-datasets."
)
_NPZ = flags.DEFINE_string("npz", None, "File to pack the prepared set into; must not exist.")
_FOLDER = flags.DEFINE_string(
  "folder", None, "Folders of images to pack, in the place of a prepared set."
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
  """Writes the file and says what it holds."""
  npz_source.save(out, dataset)
  print(
    f"{out} holds {len(dataset.train.label)} training and {len(dataset.test.label)} test examples"
    f" of {dataset.num_classes} classes, {out.stat().st_size / 2**20:.1f} MiB"
  )


def main(argv: list[str]) -> None:
  """Prepares, then packs if asked to; or packs a folder."""
  del argv
  name, folder = _DATASET.value or "", _FOLDER.value
  if not name and not folder:
    raise cli.UsageError("--dataset is missing, for example --dataset=mnist")
  if folder and (name or not _NPZ.value):
    raise cli.UsageError("--folder goes with --npz=FILE, and without --dataset")
  if _CLASS_LIST.value and not folder:
    raise cli.UsageError("--class_list is for --folder")
  out = None if _NPZ.value is None else pathlib.Path(_NPZ.value)
  with cli.checking():
    if out is not None:
      npz_source.check_target(out)
      if folder:
        size, listed = _IMAGE_SIZE.value, _CLASS_LIST.value
        pack(folder_source.load(folder, image_size=size, class_list=listed), out)
        return
    directory = prepare(name, _DATA_DIR.value)
  print(f"{name} is prepared in {directory}")
  if out is None:
    return
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
