"""Hyperspherical FF on MNIST, preset `hff_mlp_mnist`: 784-3x1000, one pass, shifts by two pixels.

Command: python -m experiments.train --config=experiments/configs/hff_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
The shifts are no luxury: without them (--config.data.augment.shift=0) the net fits its training set
and test accuracy falls to 97.0 +- 0.1 % after 60 epochs (98.0 on validation after 8).
Ours, three seeds, bfloat16: 98.58 +- 0.09 % test accuracy.
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
      epochs=60,
      method="hyperspherical",
      methods={"hyperspherical": HypersphericalConfig(scale=10.0, margin=0.1)},
      networks={"mlp": {"sizes": (1000, 1000, 1000)}},
      kernel_init="he_normal",
      readouts=("score_sum", "last_layer", "vote"),
      optimizer=OptimizerConfig("adam", 1e-3, schedule="cosine"),
      data=DataConfig("mnist", validation=10000, batch_size=128, augment=AugmentConfig(shift=2)),
    )
  )
