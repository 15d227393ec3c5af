"""SymBa on MNIST, preset `symba`: the symmetric loss on pairs, 784-2x500, interleaved updates.

Hard negatives are drawn in proportion to the square root of the network's own goodness.

Command: python -m experiments.train --config=experiments/configs/ff_mnist_symba.py \\
  --config.data.data_dir=DIR
Published (dah33/explore_forward_forward, test monitored during training): 2.2 % test error.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=60,
      method="forward_forward",
      methods={
        "forward_forward": ForwardForwardConfig(
          negatives="goodness_hard",
          label_at_max=True,
          normalization="l2",
          goodness="mean",
          loss="symba",
          alpha=4.0,
        )
      },
      networks={"mlp": {"sizes": (500, 500)}},
      kernel_init="torch_linear",
      schedule="interleaved",
      readouts=("score_sum",),
      optimizer=OptimizerConfig("adam", 0.35),
      data=DataConfig("mnist", batch_size=4096, normalization="standard"),
    )
  )
