"""DTG-FF on the other image sets of its paper (arXiv 2606.06539): VGG8, or VGG11 at 224x224.

Command: python -m experiments.train --config=experiments/configs/dtg_images.py:stl10 \\
  --config.data.data_dir=DIR
Sets: fashion_mnist, stl10, tiny_imagenet, imagenet100, pathmnist, dermamnist, bloodmnist. Where
they come from: fflax/data/catalog.py, and what loading says if they are not there.
Published: Tiny ImageNet 48.17 %, ImageNet-100 49.4 %, BloodMNIST 96.61 % test accuracy.
From the paper: epochs. Ours, where it is silent: crops and holes of an eighth and a quarter to a
half of the side; sets of 28x28 stay so (the paper enlarges them to 32x32); STL-10 is made 32x32;
ImageNet-100 is cropped after a resize, not to random sizes. MedMNIST brings a validation split.
Time: for a GPU or TPU. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.data.augment import AugmentConfig

_GREY = AugmentConfig(crop=4, flip=True, cutout=14)
_SMALL = dataclasses.replace(_GREY, brightness=0.2, contrast=0.2, saturation=0.2)
_SETS = {
  "fashion_mnist": (400, "vgg8", 0, _GREY),
  "stl10": (400, "vgg8", 32, dataclasses.replace(_SMALL, cutout=16)),
  "tiny_imagenet": (200, "vgg8", 0, dataclasses.replace(_SMALL, crop=8, cutout=32)),
  "imagenet100": (200, "vgg11", 0, dataclasses.replace(_SMALL, crop=28, cutout=0)),
  "pathmnist": (400, "vgg8", 0, _SMALL),
  "dermamnist": (400, "vgg8", 0, _SMALL),
  "bloodmnist": (400, "vgg8", 0, _SMALL),
}


def get_config(name: str = "fashion_mnist") -> ConfigDict:
  """The configuration of one set; override its fields with --config.x.y=value."""
  if name not in _SETS:
    raise ValueError(f"dtg_images has no set {name!r}; there are {', '.join(_SETS)}")
  epochs, network, size, augment = _SETS[name]
  base = load_preset("dtg_cifar10")
  data = dataclasses.replace(base.data, name=name, image_size=size, augment=augment)
  return to_flags(dataclasses.replace(base, epochs=epochs, network=network, data=data))
