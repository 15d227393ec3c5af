"""Forward-Forward on scikit-learn's digits, the run of `make train`.

Command: python -m experiments.train
Time: under a minute on 2 CPU cores. Expected: see the README.
"""

from typing import Any

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.core.readouts import ReadoutConfig
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=120,
      method="forward_forward",
      methods={"forward_forward": ForwardForwardConfig(label_style="prepend", peer="variance")},
      network="mlp",
      networks={"mlp": {"sizes": (500, 500, 500)}},
      readouts=("score_sum", "softmax_head"),
      readout=ReadoutConfig(first_layer=1),
      optimizer=OptimizerConfig("sgd", 3e-3, 0.9, 3e-4, schedule="cooldown"),
      readout_optimizer=OptimizerConfig("sgd", 1e-2, 0.9, 3e-3, schedule="cooldown"),
      data=DataConfig(name="digits", batch_size=100),
      eval_every=20,
      checkpoint_every=60,
    )
  )


def sweep() -> dict[str, Any]:
  """The axes of `python -m experiments.sweep`: 32 runs in one program."""
  return {"seed": list(range(8)), "optimizer.learning_rate": [1e-3, 3e-3, 1e-2, 3e-2]}
