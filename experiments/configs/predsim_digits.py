"""predsim (arXiv 1901.06656) on scikit-learn's digits: three batch-normalised conv layers.

Command: python -m experiments.train --config=experiments/configs/predsim_digits.py
  (--config.methods.local_losses.loss=pred; loss=sim with --config.readouts="('softmax_last',)")
Time: a few minutes on 2 CPU cores. Expected: about 97 % test accuracy (one seed: 96.67).
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import DataConfig, load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("predsim_cifar10")
  losses = dataclasses.replace(base.methods["local_losses"], pool_size=128, dropout=0.1)
  optimizer = dataclasses.replace(base.optimizer, learning_rate=2e-3, milestones=(15, 22, 26, 28))
  return to_flags(
    dataclasses.replace(
      base,
      epochs=30,
      methods={"local_losses": losses},
      network="small_cnn",
      networks={"small_cnn": {"channels": (16, 32, 32), "batch_norm": True}},
      optimizer=optimizer,
      readout_optimizer=optimizer,
      data=DataConfig("digits", batch_size=100),
      checkpoint_every=30,
    )
  )
