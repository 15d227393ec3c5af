"""Binary stochastic FF on Fashion-MNIST: seven p-bits a unit on channel-wise FF's recipe.

Command: python -m experiments.train --config=experiments/configs/bsff_fmnist.py \\
  --config.data.data_dir=DIR
Fewer units: --config.pbits.units=1. BGBSFF: --config.pbits.estimator=binary_slope. Loss before
batch norm: --config.networks.cfse.loss_input=pre_norm. Answers of T sampled passes:
--config.eval_samples=T; without, the mean field answers.
The paper tells neither rate nor estimator: ours.
Published: not available.
"""

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from experiments.configs.bsff_cifar10 import of_p_bits


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(of_p_bits(load_preset("cwc_fmnist")))
