"""Local cross-entropy on MNIST: VGG8, the recipe of local_ce_cifar10 in 100 epochs.

Command: python -m experiments.train --config=experiments/configs/local_ce_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Published: nothing on this network; epochs and shifts are ours.
Time: many hours on 2 CPU cores; for a GPU or TPU. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.data.augment import AugmentConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("local_ce_cifar10")
  data = dataclasses.replace(base.data, name="mnist", augment=AugmentConfig(shift=2))
  return to_flags(dataclasses.replace(base, epochs=100, data=data))
