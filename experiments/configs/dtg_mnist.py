"""DTG-FF on MNIST: VGG8 on 28x28 images, the recipe of dtg_cifar10 in 100 epochs.

Command: python -m experiments.train --config=experiments/configs/dtg_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Published: nothing on MNIST; epochs and shifts are ours (those of local_ce_mnist). Maps have 28, 14,
7, 3 and 1 pixels a side: bins of odd maps overlap, and the last layer has one.
Time: many hours on 2 CPU cores; for a GPU or TPU. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base, mnist = load_preset("dtg_cifar10"), load_preset("local_ce_mnist")
  return to_flags(dataclasses.replace(base, epochs=mnist.epochs, data=mnist.data))
