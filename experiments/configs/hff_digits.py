"""Hyperspherical FF on scikit-learn's digits, preset `hff_digits`: 64-256-256-256, one pass.

Command: python -m experiments.train --config=experiments/configs/hff_digits.py
Time: under a minute on 2 CPU cores. Expected: 97.5 to 98 % test accuracy.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=60,
      method="hyperspherical",
      methods={"hyperspherical": HypersphericalConfig(scale=10.0)},
      networks={"mlp": {"sizes": (256, 256, 256)}},
      kernel_init="he_normal",
      readouts=("score_sum", "last_layer", "vote"),
      optimizer=OptimizerConfig("adam", 1e-3),
      data=DataConfig("digits", batch_size=100),
      eval_every=10,
      checkpoint_every=30,
    )
  )
