"""Image sets that are known by name: what they look like, and where they come from."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

_TFDS = "tensorflow-datasets prepares it (python -m experiments.prepare_data --dataset={name})"
_MEDMNIST = "put {name}.npz of MedMNIST (https://medmnist.com) there as it is"
_FOLDER = (
  "pack its folders of images with python -m experiments.prepare_data --folder=FOLDER "
  "--npz={name}.npz"
)


class KnownSet(NamedTuple):
  """A published image set.

  Attributes:
    shape: `(H, W, C)` of its images; of those without a size of their own, as usually resized.
    num_classes: K.
    source: a clause that says how to get it, with a place for its name.
  """

  shape: tuple[int, int, int]
  num_classes: int
  source: str


KNOWN: Mapping[str, KnownSet] = MappingProxyType(
  {
    "digits": KnownSet((8, 8, 1), 10, "scikit-learn brings it"),
    "mnist": KnownSet((28, 28, 1), 10, _TFDS),
    "fashion_mnist": KnownSet((28, 28, 1), 10, _TFDS),
    "cifar10": KnownSet((32, 32, 3), 10, _TFDS),
    "cifar100": KnownSet((32, 32, 3), 100, _TFDS),
    "stl10": KnownSet((96, 96, 3), 10, _TFDS),
    "tiny_imagenet": KnownSet(
      (64, 64, 3), 200, f"{_FOLDER} (http://cs231n.stanford.edu/tiny-imagenet-200.zip)"
    ),
    "imagenet100": KnownSet(
      (224, 224, 3),
      100,
      "make records of its folders of images with python -m experiments.prepare_data "
      "--folder=FOLDER --array_record={name}.array_record --image_size=224 --class_list=FILE "
      "(ImageNet, 100 classes)",
    ),
    "pathmnist": KnownSet((28, 28, 3), 9, _MEDMNIST),
    "dermamnist": KnownSet((28, 28, 3), 7, _MEDMNIST),
    "bloodmnist": KnownSet((28, 28, 3), 8, _MEDMNIST),
  }
)
"""By the name that `sources.load` takes."""


def how_to_get(name: str) -> str:
  """A clause for the error that `name` is not there; empty for sets that are not known."""
  known = KNOWN.get(name)
  return "" if known is None else known.source.format(name=name)
