"""Backprop on MNIST: the matched control of ff_mnist_loewex, 784-3x1000.

Command: python -m experiments.train --config=experiments/configs/bp_mnist.py \\
  --config.data.data_dir=DIR
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.backprop import BackpropConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=100,
      method="backprop",
      methods={"backprop": BackpropConfig()},
      networks={"mlp": {"sizes": (1000, 1000, 1000)}},
      kernel_init="he_normal",
      readouts=("score_sum",),
      optimizer=OptimizerConfig("sgd", 0.01, 0.9, 3e-4, schedule="cooldown"),
      data=DataConfig("mnist", validation=10000, batch_size=100),
    )
  )
