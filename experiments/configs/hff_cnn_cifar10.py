"""Hyperspherical FF on CIFAR-10, preset `hff_cnn_cifar10`: six batch-normalised conv layers.

Every layer has an auxiliary conv head and four prototypes a class; for a GPU or TPU.

Command: python -m experiments.train --config=experiments/configs/hff_cnn_cifar10.py \\
  --config.data.data_dir=DIR
Published: 83.08 % test accuracy (the paper's settings are not public; these are ours).
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
      epochs=150,
      method="hyperspherical",
      methods={
        "hyperspherical": HypersphericalConfig(
          scale=15.0, margin=0.1, prototypes_per_class=4, normalize_input=False
        )
      },
      network="hff_cnn",
      kernel_init="he_normal",
      readouts=("score_sum", "last_layer", "vote"),
      optimizer=OptimizerConfig(
        "adamw", 1e-3, weight_decay=5e-4, schedule="cosine", warmup_epochs=5
      ),
      data=DataConfig(
        "cifar10",
        batch_size=128,
        normalization="standard",
        augment=AugmentConfig(crop=4, flip=True),
      ),
    )
  )
