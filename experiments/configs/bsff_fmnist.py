"""Binary stochastic FF on Fashion-MNIST: seven p-bits a unit on channel-wise FF's recipe.

Command: python -m experiments.train --config=experiments/configs/bsff_fmnist.py \\
  --config.data.data_dir=DIR
Fewer units: --config.pbits.units=1. BGBSFF: --config.pbits.estimator=binary_slope. Loss before
batch norm: --config.networks.cfse.loss_input=pre_norm. Answers of T sampled passes:
--config.eval_samples=T; without, the mean field answers.
The paper tells neither rate nor estimator: ours.
Published: not available.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.core.pbit_config import PbitConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("cwc_fmnist")
  return to_flags(
    dataclasses.replace(
      base,
      method="binary_stochastic",
      activation="pbits",
      pbits=PbitConfig(units=7),
      optimizer=dataclasses.replace(base.optimizer, learning_rate=3e-3),
    )
  )
