"""Hyperspherical FF on CIFAR-100, preset `hff_cnn_cifar100`: the net of `hff_cnn_cifar10`.

Command: python -m experiments.train --config=experiments/configs/hff_cnn_cifar100.py \\
  --config.data.data_dir=DIR
Control: --config=experiments/configs/bp_matched.py:hff_cnn_cifar100.
Published: 54.34 % test accuracy (the paper's settings are not public; these are ours). Ours: not
run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("hff_cnn_cifar10")
  method = dataclasses.replace(base.methods["hyperspherical"], scale=20.0)
  return to_flags(
    dataclasses.replace(
      base,
      epochs=200,
      methods={"hyperspherical": method},
      data=dataclasses.replace(base.data, name="cifar100"),
    )
  )
