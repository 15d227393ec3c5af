"""Backprop on scikit-learn's digits: the matched control of ff_digits and hff_digits.

Command: python -m experiments.train --config=experiments/configs/bp_digits.py
  (--config.methods.backprop.heads=all for deep supervision)
Time: under a minute on 2 CPU cores. Expected: about 97.5 % test accuracy.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.backprop import BackpropConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=60,
      method="backprop",
      methods={"backprop": BackpropConfig()},
      networks={"mlp": {"sizes": (256, 256, 256)}},
      kernel_init="he_normal",
      readouts=("score_sum",),
      optimizer=OptimizerConfig("adam", 1e-3),
      data=DataConfig("digits", batch_size=100),
      eval_every=10,
      checkpoint_every=30,
    )
  )
