"""FF-INT8 on CIFAR-10, ResNet-18 with look-ahead up to deep supervision; for a GPU or TPU.

Command: python -m experiments.train --config=experiments/configs/ffint8_resnet18.py \\
  --config.data.data_dir=DIR --config.numerics=int8
  Strict: --config.lookahead.mode=none. The float32 twin: without --config.numerics.
Published (Table V): 93.1 % accuracy. The paper gives batch 32, lambda rising by 0.001 an epoch and
1000 epochs; the rest of this recipe is ours.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.data.augment import AugmentConfig
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.training.lookahead import LookaheadConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=200,
      method="forward_forward",
      methods={
        "forward_forward": ForwardForwardConfig(label_style="channels", goodness="mean", theta=2.0)
      },
      network="resnet18",
      kernel_init="he_normal",
      lookahead=LookaheadConfig("exact"),
      readouts=("score_sum",),
      optimizer=OptimizerConfig("adam", 1e-3, schedule="cosine"),
      data=DataConfig(
        "cifar10",
        batch_size=128,
        normalization="standard",
        augment=AugmentConfig(crop=4, flip=True),
      ),
      # Ten candidate labels each: a thousand images at a time.
      eval_batch_size=100,
    )
  )
