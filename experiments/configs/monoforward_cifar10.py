"""Mono-Forward (J. Gong, B. Li, W. Abdulla, 2025, arXiv 2501.09238) on CIFAR-10, 3072-3x2000.

Command: python -m experiments.train --config=experiments/configs/monoforward_cifar10.py \\
  --config.data.data_dir=DIR
  (--config.schedule=simultaneous --config.epochs=15 for all layers in every step)
The searched recipe of an independent rerun (arXiv 2511.01061): Adam 3.242e-4, 15 epochs a layer,
one layer after the other; 62.34 % test accuracy there, tuned backprop 61.13. Ours: crops padded
with zeros, not reflections, no early stopping, biases not zero at the start.
Time: hours on 2 CPU cores. Not run yet.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.data.augment import AugmentConfig
from fflax.methods.local_losses import LocalLossesConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=45,
      method="local_losses",
      methods={
        "local_losses": LocalLossesConfig(
          pool="none", bias=False, head_init="uniform", normalization="none", dropout=0.0
        )
      },
      networks={"mlp": {"sizes": (2000, 2000, 2000)}},
      kernel_init="torch_linear",
      schedule="greedy",
      epochs_per_layer=15,
      readouts=("last_layer", "score_sum"),
      optimizer=OptimizerConfig("adam", 3.242e-4),
      data=DataConfig(
        "cifar10",
        batch_size=128,
        normalization="standard",
        augment=AugmentConfig(crop=4, flip=True),
      ),
      eval_every=15,
      checkpoint_every=15,
    )
  )
