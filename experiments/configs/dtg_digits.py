"""DTG-FF on scikit-learn's digits: four small conv layers on 8x8 images, both heads.

Command: python -m experiments.train --config=experiments/configs/dtg_digits.py
Time: about a minute on 2 CPU cores. Seed 0: 1.39 % test error by norm_head and by score_sum.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import DataConfig, load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("dtg_cifar10")
  optimizer = dataclasses.replace(base.optimizer, learning_rate=5e-3, end_rate=5e-4)
  return to_flags(
    dataclasses.replace(
      base,
      seed=0,
      epochs=30,
      network="small_cnn",
      networks={
        "small_cnn": {"channels": (32, 64, 64, 64), "pool_after": (2, 3), "pool": "avg"},
      },
      optimizer=optimizer,
      readout_optimizer=optimizer,
      data=DataConfig("digits", batch_size=64, normalization="dataset"),
    )
  )
