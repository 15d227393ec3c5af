"""Binary stochastic FF on scikit-learn's digits: seven p-bits a unit, CFSE 20-40.

Command: python -m experiments.train --config=experiments/configs/bsff_digits.py
Fewer units: --config.pbits.units=1. BGBSFF: --config.pbits.estimator=binary_slope. Loss before
batch norm: --config.networks.cfse.loss_input=pre_norm. Answers of T sampled passes:
--config.eval_samples=T; without, the mean field answers. Counts as exact integers, int8 weights:
--config.numerics=int8_counts; with binary gradients: --config.pbits.estimator=binary_slope
--config.methods.binary_stochastic.error=binary --config.networks.cfse.norm=batch_frozen.
Time: under a minute on 2 CPU cores. Expected: see experiments/results/bsff_digits.json.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.core.pbit_config import PbitConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("cwc_digits")
  return to_flags(
    dataclasses.replace(
      base,
      epochs=12,
      method="binary_stochastic",
      activation="pbits",
      pbits=PbitConfig(units=7),
      networks={"cfse": {"channels": (20, 40), "groups": (1, 10), "pool_after": (2,)}},
    )
  )
