"""FF-INT8 on scikit-learn's digits, 74-256-256, the small test of the specification.

Command: python -m experiments.train --config=experiments/configs/ffint8_digits.py \\
  [--config.numerics=int8] [--config.lookahead.mode=exact --config.lookahead.slope=0.01]
Time: under a minute on 2 CPU cores. Expected: experiments/results/ffint8_digits.md.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.backprop import BackpropConfig
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=60,
      method="forward_forward",
      methods={
        # The paper's threshold of 2 is for the whole layer, ours for each unit.
        "forward_forward": ForwardForwardConfig(
          label_style="prepend", normalization="l2", theta=2 / 256
        ),
        "backprop": BackpropConfig(),
      },
      networks={"mlp": {"sizes": (256, 256)}},
      readouts=("score_sum",),
      optimizer=OptimizerConfig("adam", 1e-3),
      data=DataConfig("digits", batch_size=32),
      eval_every=20,
      checkpoint_every=60,
    )
  )
