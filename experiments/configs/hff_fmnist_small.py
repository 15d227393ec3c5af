"""Hyperspherical FF on Fashion-MNIST with a conv net that a CPU trains: 32-64-128-128 channels.

Command: python -m experiments.train --config=experiments/configs/hff_fmnist_small.py \\
  --config.data.data_dir=DIR
Control: --config=experiments/configs/bp_matched.py:hff_fmnist_small. The larger net: hff_fmnist.
No published number. Ours: not run yet; about 2 minutes an epoch on one core.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("hff_fmnist")
  method = dataclasses.replace(base.methods["hyperspherical"], aux_features=64)
  return to_flags(
    dataclasses.replace(
      base,
      epochs=20,
      methods={"hyperspherical": method},
      network="small_cnn",
      networks={
        "small_cnn": {"channels": (32, 64, 128, 128), "pool_after": (1, 2, 4), "batch_norm": True}
      },
      optimizer=dataclasses.replace(base.optimizer, warmup_epochs=1),
    )
  )
