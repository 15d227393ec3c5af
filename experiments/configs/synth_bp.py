"""Backprop on the teacher-student task, 50-4x128: a control of the class sweep.

Command: python -m experiments.train --config=experiments/configs/synth_bp.py
More classes: --config.data.num_classes=50. Deep supervision: --config.methods.backprop.heads=all.
The sweep: python -m experiments.studies.class_sweep
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.backprop import BackpropConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=103,  # 8,000 steps and a little
      method="backprop",
      methods={"backprop": BackpropConfig()},
      networks={"mlp": {"sizes": (128,) * 4}},
      kernel_init="torch_linear",
      readouts=("score_sum",),
      optimizer=OptimizerConfig("adam", 1e-3),
      data=DataConfig("synthetic", batch_size=256),
      eval_every=10,
      checkpoint_every=50,
    )
  )
