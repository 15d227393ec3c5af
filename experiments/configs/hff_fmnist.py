"""Hyperspherical FF on Fashion-MNIST: the conv net of `hff_cnn_cifar10` at half its width.

Command: python -m experiments.train --config=experiments/configs/hff_fmnist.py \\
  --config.data.data_dir=DIR
Control: --config=experiments/configs/bp_matched.py:hff_fmnist. A perceptron:
--config=experiments/configs/hff_mnist.py --config.data.name=fashion_mnist.
Expected: above the 88.5 % test accuracy that the perceptron should reach. Ours: not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.data.augment import AugmentConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("hff_cnn_cifar10")
  method = dataclasses.replace(base.methods["hyperspherical"], aux_features=128)
  return to_flags(
    dataclasses.replace(
      base,
      epochs=60,
      methods={"hyperspherical": method},
      networks={"hff_cnn": {"width": 0.5}},
      data=dataclasses.replace(
        base.data,
        name="fashion_mnist",
        validation=5000,
        augment=AugmentConfig(crop=2, flip=True),
      ),
    )
  )
