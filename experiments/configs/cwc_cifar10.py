"""Channel-wise FF on CIFAR-10, the released code's recipe ("Acc" schedule), CFSE 20-80-240-480.

Command: python -m experiments.train --config=experiments/configs/cwc_cifar10.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Its "Fast" schedule: --config.stagger.starts="(0,2,4,6)" --config.stagger.ends="(11,18,26,32)"
  --config.stagger.readouts_from=10. FF-CNN: --config.networks.cfse.groups="(1,1,1,1)".
Time: hours on 2 CPU cores. Published: 21.89 % test error; independent reruns of the code: about 25.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.core.readouts import ReadoutConfig
from fflax.training.optimizers import OptimizerConfig
from fflax.training.schedules import StaggerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=50,
      method="channelwise",
      network="cfse",
      kernel_init="torch_linear",
      schedule="staggered",
      stagger=StaggerConfig(starts=(0,), ends=(11, 16, 21, 25)),
      readouts=("softmax_last", "last_layer", "score_sum"),
      readout=ReadoutConfig(head_bias=True),
      optimizer=OptimizerConfig("adam", 1e-2),
      readout_optimizer=OptimizerConfig("sgd", 1e-2, 0.0),
      data=DataConfig("cifar10", validation=5000, batch_size=128, normalization="imagenet"),
    )
  )
