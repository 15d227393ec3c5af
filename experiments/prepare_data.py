"""Prepares an image set with tensorflow-datasets, and packs one into a single .npz file.

  python -m experiments.prepare_data --dataset=mnist --data_dir=DIR
  python -m experiments.prepare_data --dataset=mnist --data_dir=DIR --npz=mnist.npz

Preparing downloads the set and needs TensorFlow (pip install 'fflax[data]'); a set that is prepared
already is left as it is. Packing a prepared set needs no TensorFlow.
"""

import importlib.util
import pathlib

from absl import flags

from experiments import cli
from fflax.data import npz_source, tfds_source

_DATASET = flags.DEFINE_string(
  "dataset", None, "Set to prepare, as tensorflow-datasets names it: NAME or NAME/CONFIG."
)
_DATA_DIR = flags.DEFINE_string(
  "data_dir", None, "Where prepared sets lie; default: that of tensorflow-datasets."
)
_NPZ = flags.DEFINE_string("npz", None, "File to pack the prepared set into; must not exist.")
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


def main(argv: list[str]) -> None:
  """Prepares, then packs if asked to."""
  del argv
  name = _DATASET.value
  if not name:
    raise cli.UsageError("--dataset is missing, for example --dataset=mnist")
  out = None if _NPZ.value is None else pathlib.Path(_NPZ.value)
  with cli.checking():
    if out is not None:
      npz_source.check_target(out)
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
    npz_source.save(out, dataset)
  print(
    f"{out} holds {len(dataset.train.label)} training and {len(dataset.test.label)} test examples"
    f" of {dataset.num_classes} classes, {out.stat().st_size / 2**20:.1f} MiB"
  )


if __name__ == "__main__":
  cli.run(main)
