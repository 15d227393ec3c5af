"""Recurrent, top-down Forward-Forward on MNIST, 784-3x2000 with the label above the last layer.

G. Hinton, 2022, section 3.4: 8 synchronous time steps, wrong labels in proportion to what one pass
up answers, goodness of time steps 3 to 5. Depth, loss over time and rates are ours: those of preset
`matlab`, with the rate divided by the 8 time steps whose losses are summed.

Command: python -m experiments.train --config=experiments/configs/ff_mnist_recurrent.py \\
  --config.data.data_dir=DIR
Published: 1.31 % test error (60 epochs). Not run at this size; 2x100 units reach 8.9 % on the
validation split after 4 epochs.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.recurrent import RecurrentConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=60,
      method="recurrent",
      methods={"recurrent": RecurrentConfig(negatives="softmax_hard")},
      networks={"mlp": {"sizes": (2000, 2000, 2000)}},
      kernel_init="fan_in_normal",
      readouts=("score_sum", "softmax_head"),
      optimizer=OptimizerConfig(
        "dampened", 0.01 / 8, 0.9, 0.001, schedule="cooldown", cooldown="matlab"
      ),
      readout_optimizer=OptimizerConfig(
        "dampened", 0.1, 0.9, 0.003, schedule="cooldown", cooldown="matlab"
      ),
      data=DataConfig("mnist", validation=10000, batch_size=100),
    )
  )
