"""Mono-Forward (J. Gong, B. Li, W. Abdulla, 2025, arXiv 2501.09238) on MNIST, 784-2x1000.

Command: python -m experiments.train --config=experiments/configs/monoforward_mnist.py \\
  --config.data.data_dir=DIR
  (--config.schedule=simultaneous --config.epochs=14 for all layers in every step)
The searched recipe of an independent rerun (arXiv 2511.01061): Adam 1.57e-3, 14 epochs a layer, one
layer after the other; 98.14 % test accuracy there, tuned backprop 98.05. Ours: no early stopping on
held-out images, biases not zero at the start.
Time: minutes on 2 CPU cores. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import DataConfig, load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("monoforward_cifar10")
  return to_flags(
    dataclasses.replace(
      base,
      epochs=28,
      networks={"mlp": {"sizes": (1000, 1000)}},
      epochs_per_layer=14,
      optimizer=dataclasses.replace(base.optimizer, learning_rate=1.57e-3),
      data=DataConfig("mnist", batch_size=128, normalization="standard"),
      eval_every=14,
      checkpoint_every=14,
    )
  )
