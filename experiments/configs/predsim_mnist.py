"""predsim (A. Nokland, L. Eidnes, ICML 2019, arXiv 1901.06656) on MNIST, on our VGG8.

Command: python -m experiments.train --config=experiments/configs/predsim_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
The recipe (Adam 5e-4, times 0.25 after 50, 75, 89, 94 epochs, dropout 0.2, 1024 features) is the
released code's for its VGG8b: 99.69 % test accuracy (pred 99.60, sim 99.35, backprop 99.74). The
network is ours, see predsim_cifar10.
Time: many hours on 2 CPU cores; for a GPU or TPU. Not run yet.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.core.readouts import ReadoutConfig
from fflax.data.augment import AugmentConfig
from fflax.methods.local_losses import LocalLossesConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=100,
      method="local_losses",
      methods={
        "local_losses": LocalLossesConfig(
          loss="predsim",
          head_init="zero",
          pool="number",
          pool_size=1024,
          normalization="none",
          dropout=0.2,
          drop_channels=True,
        )
      },
      network="vgg8",
      networks={"vgg8": {"batch_norm": True}},
      activation="leaky_relu",
      kernel_init="torch_linear",
      readouts=("softmax_last", "score_sum", "last_layer"),
      readout=ReadoutConfig(head_bias=True),
      optimizer=OptimizerConfig("adam", 5e-4, schedule="steps", milestones=(50, 75, 89, 94)),
      readout_optimizer=OptimizerConfig(
        "adam", 5e-4, schedule="steps", milestones=(50, 75, 89, 94)
      ),
      data=DataConfig(
        "mnist",
        batch_size=128,
        normalization="dataset",
        augment=AugmentConfig(crop=2),
      ),
      eval_every=10,
      checkpoint_every=10,
    )
  )
