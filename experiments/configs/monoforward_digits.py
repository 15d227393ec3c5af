"""Mono-Forward (arXiv 2501.09238) on scikit-learn's digits, 64-2x256, all layers in every step.

Command: python -m experiments.train --config=experiments/configs/monoforward_digits.py
  (--config.schedule=greedy for one layer after the other, as the code does)
Time: under a minute on 2 CPU cores. Expected: about 97.5 % test accuracy (one seed: 97.50).
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
      methods={
        "local_losses": LocalLossesConfig(
          pool="none", bias=False, head_init="uniform", normalization="none", dropout=0.0
        )
      },
      networks={"mlp": {"sizes": (256, 256)}},
      kernel_init="torch_linear",
      readouts=("last_layer", "score_sum"),
      optimizer=OptimizerConfig("adam", 1e-3),
      data=DataConfig("digits", batch_size=100),
      eval_every=10,
      checkpoint_every=30,
    )
  )
