"""Local cross-entropy on CIFAR-10: VGG8 and the recipe of DTG-FF (arXiv 2606.06539), a control.

Command: python -m experiments.train --config=experiments/configs/local_ce_cifar10.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
DTG-FF's own losses: --config.methods.local_losses.features=goodness and ....head=fixed; BP-DeepSup:
--config.methods.local_losses.detach=False; all eight rungs: grid ladder_cifar10.
Published: not run by the paper, which names this control. Of the recipe, the norm without scale and
shift, the grid of 2x2, the clipping at 1 and the strength of the jitter are ours, in all rungs.
Time: days on 2 CPU cores; for a GPU or TPU. Not run yet.
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
      epochs=400,
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
        "cifar10",
        batch_size=128,
        normalization="dataset",
        augment=AugmentConfig(
          crop=4, flip=True, brightness=0.2, contrast=0.2, saturation=0.2, cutout=16
        ),
      ),
      eval_every=10,
      checkpoint_every=10,
    )
  )
