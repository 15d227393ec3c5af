"""Channel-wise FF on scikit-learn's digits: CFSE 20-40-80-80 on 8x8 images.

Command: python -m experiments.train --config=experiments/configs/cwc_digits.py
Time: under a minute on 2 CPU cores. Expected: see experiments/results/cwc_digits.json.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import DataConfig, load_preset, to_flags
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("cwc_cifar10")
  return to_flags(
    dataclasses.replace(
      base,
      epochs=20,
      networks={"cfse": {"channels": (20, 40, 80, 80)}},
      schedule="simultaneous",
      readout_optimizer=OptimizerConfig("adam", 1e-2),
      data=DataConfig("digits", batch_size=64, normalization="dataset"),
    )
  )
