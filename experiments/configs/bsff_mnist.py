"""Binary stochastic FF on MNIST: seven p-bits a unit on channel-wise FF's recipe.

Command: python -m experiments.train --config=experiments/configs/bsff_mnist.py \\
  --config.data.data_dir=DIR
Fewer units: --config.pbits.units=1. BGBSFF: --config.pbits.estimator=binary_slope. Loss before
batch norm: --config.networks.cfse.loss_input=pre_norm. Answers of T sampled passes:
--config.eval_samples=T; without, the mean field answers. Counts as exact integers, int8 weights:
--config.numerics=int8_counts; with binary gradients: --config.pbits.estimator=binary_slope
--config.methods.binary_stochastic.error=binary --config.networks.cfse.norm=batch_frozen.
The paper tells neither rate nor estimator: ours.
Published: about 99 % accuracy.
"""

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from experiments.configs.bsff_cifar10 import of_p_bits


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(of_p_bits(load_preset("cwc_mnist")))
