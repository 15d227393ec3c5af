"""Local cross-entropy on MNIST: VGG8, the recipe of local_ce_cifar10 in 100 epochs.

Command: python -m experiments.train --config=experiments/configs/local_ce_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Published: nothing on this network; epochs and shifts are ours.
Time: many hours on 2 CPU cores; for a GPU or TPU. Not run yet.
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
      epochs=100,
      method="local_losses",
      methods={"local_losses": LocalLossesConfig()},
      network="vgg8",
      kernel_init="torch_linear",
      readouts=("score_sum", "last_layer", "vote"),
      optimizer=OptimizerConfig(
        "adamw",
        2e-4,
        weight_decay=1e-3,
        no_decay=(),
        schedule="cosine",
        end_rate=1e-5,
        clip_norm=1.0,
      ),
      data=DataConfig(
        "mnist",
        batch_size=128,
        normalization="dataset",
        augment=AugmentConfig(shift=2),
      ),
      eval_every=10,
      checkpoint_every=10,
    )
  )
