"""Local cross-entropy on scikit-learn's digits: the rung between DTG-FF and deep supervision.

Command: python -m experiments.train --config=experiments/configs/local_ce_digits.py
The other rungs: --config.methods.local_losses.features=goodness, ....head=fixed, ....detach=False;
all eight with seeds: grid ladder_digits of experiments.studies.grid.
Time: under a minute on 2 CPU cores. Expected: about 98 % test accuracy (one seed: 98.06).
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.local_losses import LocalLossesConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=60,
      method="local_losses",
      methods={"local_losses": LocalLossesConfig()},
      networks={"mlp": {"sizes": (256, 256, 256)}},
      kernel_init="torch_linear",
      readouts=("score_sum", "last_layer", "vote"),
      optimizer=OptimizerConfig("adam", 1e-3),
      data=DataConfig("digits", batch_size=100),
      eval_every=10,
      checkpoint_every=30,
    )
  )
