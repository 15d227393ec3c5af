"""Hyperspherical FF on CIFAR-10, preset `hff_mlp_cifar10`: 3072-3x2000, four prototypes a class.

Command: python -m experiments.train --config=experiments/configs/hff_cifar10_mlp.py \\
  --config.data.data_dir=DIR
Control: --config=experiments/configs/bp_matched.py:hff_cifar10_mlp.
Published: 61.93 % test accuracy (the paper's settings are not public; these are ours). Ours: not
run yet.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.data.augment import AugmentConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=100,
      method="hyperspherical",
      methods={
        "hyperspherical": HypersphericalConfig(scale=15.0, margin=0.1, prototypes_per_class=4)
      },
      networks={"mlp": {"sizes": (2000, 2000, 2000)}},
      kernel_init="he_normal",
      readouts=("score_sum", "last_layer", "vote"),
      optimizer=OptimizerConfig("adamw", 1e-3, weight_decay=1e-4, schedule="cosine"),
      data=DataConfig(
        "cifar10",
        batch_size=128,
        normalization="standard",
        augment=AugmentConfig(crop=4, flip=True),
      ),
    )
  )
