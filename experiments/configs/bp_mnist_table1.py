"""Backprop on MNIST as in FF-INT8, Table I: 784-500-10 and its siblings, SGD.

Command: python -m experiments.train --config=experiments/configs/bp_mnist_table1.py \\
  --config.data.data_dir=DIR [--config.numerics=int8_nearest]
All of the table: python -m experiments.studies.grid --grid=ffint8_table1 --data_dir=DIR
Published: see `table1` in experiments/studies/grids.py; int8 collapses with depth. Ours, 3
seeds: no collapse (three hidden layers: 1.68 +- 0.03 % error in float32, 1.56 +- 0.12 in
int8_nearest, 1.68 +- 0.08 in int8).
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=20,
      method="backprop",
      networks={"mlp": {"sizes": (500,)}},
      kernel_init="he_normal",
      readouts=("score_sum",),
      optimizer=OptimizerConfig("sgd", 0.1, 0.0),
      data=DataConfig("mnist", validation=10000, batch_size=32),
      eval_every=5,
      checkpoint_every=5,
    )
  )
