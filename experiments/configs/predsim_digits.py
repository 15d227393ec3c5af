"""predsim (arXiv 1901.06656) on scikit-learn's digits: three batch-normalised conv layers.

Command: python -m experiments.train --config=experiments/configs/predsim_digits.py
  (--config.methods.local_losses.loss=pred; loss=sim with --config.readouts="('softmax_last',)")
Time: a few minutes on 2 CPU cores. Expected: about 97 % test accuracy (one seed: 96.67).
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.core.readouts import ReadoutConfig
from fflax.methods.local_losses import LocalLossesConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=30,
      method="local_losses",
      methods={
        "local_losses": LocalLossesConfig(
          loss="predsim",
          head_init="zero",
          pool="number",
          pool_size=128,
          normalization="none",
          dropout=0.1,
          drop_channels=True,
        )
      },
      network="small_cnn",
      networks={"small_cnn": {"channels": (16, 32, 32), "batch_norm": True}},
      activation="leaky_relu",
      kernel_init="torch_linear",
      readouts=("softmax_last", "score_sum", "last_layer"),
      readout=ReadoutConfig(head_bias=True),
      optimizer=OptimizerConfig("adam", 2e-3, schedule="steps", milestones=(15, 22, 26, 28)),
      readout_optimizer=OptimizerConfig(
        "adam", 2e-3, schedule="steps", milestones=(15, 22, 26, 28)
      ),
      data=DataConfig("digits", batch_size=100),
      eval_every=10,
      checkpoint_every=30,
    )
  )
