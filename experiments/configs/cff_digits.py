"""Collaborative FF on scikit-learn's digits, 74-200-200: sum of squares, alternating, full batches.

Command: python -m experiments.train --config=experiments/configs/cff_digits.py \\
  [--config.methods.collaborative.structure=none]  (plain FF on the same recipe)
Time: under a minute on 2 CPU cores. Not run over seeds yet; grid: collaborative_digits.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.collaborative import CollaborativeConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=1200,  # a full batch for each layer in turn: 600 updates of each
      method="collaborative",
      methods={
        # A threshold of 20 for the whole layer.
        "collaborative": CollaborativeConfig(
          label_style="prepend", normalization="l2", theta=20 / 200, structure="ones"
        )
      },
      networks={"mlp": {"sizes": (200, 200)}},
      kernel_init="torch_linear",
      schedule="alternating",
      readouts=("score_sum", "last_layer"),
      optimizer=OptimizerConfig("adam", 3e-3),
      data=DataConfig("digits", batch_size=1437, shuffle=False),
      eval_every=200,
      checkpoint_every=1200,
    )
  )
