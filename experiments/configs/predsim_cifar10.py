"""predsim (A. Nokland, L. Eidnes, ICML 2019, arXiv 1901.06656) on CIFAR-10, on our VGG8.

Command: python -m experiments.train --config=experiments/configs/predsim_cifar10.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
The recipe (Adam 5e-4, times 0.25 after 200, 300, 350, 375 epochs, dropout 0.2, 2048 features) is
the released code's for its VGG8b: six conv layers with max-pooling and one dense layer, 94.42 %
test accuracy (pred 91.60, sim 92.84, backprop 94.01). The network is ours: seven conv layers with
average pooling, as in local_ce_cifar10, batch-normalised.
Time: days on 2 CPU cores; for a GPU or TPU. Not run yet.
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
      epochs=400,
      method="local_losses",
      methods={
        "local_losses": LocalLossesConfig(
          loss="predsim",
          head_init="zero",
          pool="number",
          pool_size=2048,
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
      optimizer=OptimizerConfig("adam", 5e-4, schedule="steps", milestones=(200, 300, 350, 375)),
      readout_optimizer=OptimizerConfig(
        "adam", 5e-4, schedule="steps", milestones=(200, 300, 350, 375)
      ),
      data=DataConfig(
        "cifar10",
        batch_size=128,
        normalization="dataset",
        augment=AugmentConfig(crop=4, flip=True),
      ),
      eval_every=10,
      checkpoint_every=10,
    )
  )
