"""Coarse labels: the same images with fewer classes, each of several."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from fflax.data.dataset import DataError, Dataset, Split

CIFAR100: Mapping[str, tuple[str, ...]] = MappingProxyType(
  {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
  }
)
"""The 20 superclasses of CIFAR-100 (A. Krizhevsky, 2009), each of five classes."""


def coarse_labels(name: str, num_classes: int, number: int) -> np.ndarray:
  """`[num_classes]` int32, the superclass of each class.

  Of `cifar100` with 20: the published ones, both label sets in alphabetical order. Otherwise
  classes with the same remainder by `number` stand together, whatever they show.

  Raises:
    DataError: `number` is not between 2 and `num_classes`.
  """
  if not 2 <= number <= num_classes:
    raise DataError(
      f"{name}: superclasses {number} must be at least 2 and at most its {num_classes} classes"
    )
  if name == "cifar100" and (num_classes, number) == (100, len(CIFAR100)):
    fine = sorted(label for group in CIFAR100.values() for label in group)
    place = {label: i for i, group in enumerate(CIFAR100.values()) for label in group}
    return np.asarray([place[label] for label in fine], np.int32)
  return np.arange(num_classes, dtype=np.int32) % number


def with_superclasses(dataset: Dataset, number: int) -> Dataset:
  """The same examples under coarse labels.

  Raises:
    DataError: see `coarse_labels`.
  """
  table = coarse_labels(dataset.name, dataset.num_classes, number)

  def coarse(split: Split) -> Split:
    return Split(split.image, table[split.label])

  return dataset._replace(
    train=coarse(dataset.train),
    validation=None if dataset.validation is None else coarse(dataset.validation),
    test=coarse(dataset.test),
    num_classes=number,
  )
