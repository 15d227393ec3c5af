"""Forward-Forward on CIFAR-10 with a small convolutional net, for paired runs of int8 on a CPU.

Command: python -m experiments.train --config=experiments/configs/ffint8_small_cnn.py \\
  --config.data.data_dir=DIR --config.numerics=int8
Grids: ffint8_cifar10_small, ffint8_cifar10_small_views. No published number. Not run yet.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=20,
      method="forward_forward",
      methods={
        "forward_forward": ForwardForwardConfig(label_style="channels", goodness="mean"),
        "hyperspherical": HypersphericalConfig(aux_features=64),
      },
      network="small_cnn",
      networks={"small_cnn": {"channels": (32, 64, 64), "batch_norm": True}},
      kernel_init="he_normal",
      readouts=("score_sum",),
      optimizer=OptimizerConfig("adam", 1e-3),
      data=DataConfig("cifar10", batch_size=128, normalization="standard"),
      eval_batch_size=200,
    )
  )
