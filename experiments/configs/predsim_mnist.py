"""predsim (A. Nokland, L. Eidnes, ICML 2019, arXiv 1901.06656) on MNIST, on our VGG8.

Command: python -m experiments.train --config=experiments/configs/predsim_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
The recipe (Adam 5e-4, times 0.25 after 50, 75, 89, 94 epochs, dropout 0.2, 1024 features) is the
released code's for its VGG8b: 99.69 % test accuracy (pred 99.60, sim 99.35, backprop 99.74). The
network is ours, see predsim_cifar10.
Time: many hours on 2 CPU cores; for a GPU or TPU. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.data.augment import AugmentConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("predsim_cifar10")
  losses = dataclasses.replace(base.methods["local_losses"], pool_size=1024)
  optimizer = dataclasses.replace(base.optimizer, milestones=(50, 75, 89, 94))
  return to_flags(
    dataclasses.replace(
      base,
      epochs=100,
      methods={"local_losses": losses},
      optimizer=optimizer,
      readout_optimizer=optimizer,
      data=dataclasses.replace(base.data, name="mnist", augment=AugmentConfig(crop=2)),
    )
  )
