"""Forward-Forward on MNIST, preset `paper_supervised`: 4 x 2,000 units, label overlay.

Command: python -m experiments.train --config=experiments/configs/ff_mnist_paper_supervised.py \\
  --config.data.data_dir=DIR
Time: hours on 2 CPU cores. Published: 1.36 % test error after 60 epochs.

Not in the source: peer normalisation, taken over from the preset `matlab` [default]; and the seeds,
which are the library's own, not the sources' (17, 42, 1234).
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.core.readouts import ReadoutConfig
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=60,
      method="forward_forward",
      methods={"forward_forward": ForwardForwardConfig(negatives="softmax_hard", peer="signal")},
      networks={"mlp": {"sizes": (2000, 2000, 2000, 2000)}},
      kernel_init="fan_in_normal",
      readouts=("score_sum", "softmax_head"),
      readout=ReadoutConfig(first_layer=1),
      optimizer=OptimizerConfig(
        "dampened", 0.01, 0.9, 0.001, schedule="cooldown", cooldown="matlab"
      ),
      readout_optimizer=OptimizerConfig(
        "dampened", 0.1, 0.9, 0.003, schedule="cooldown", cooldown="matlab"
      ),
      data=DataConfig("mnist", validation=10000, batch_size=100),
    )
  )
