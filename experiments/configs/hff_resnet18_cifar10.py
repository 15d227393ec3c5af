"""Hyperspherical FF on CIFAR-10, ResNet-18: the stem and every residual block learn alone.

Every layer has an auxiliary conv head; those of the first blocks cost twice what the blocks do. For
a GPU or TPU.

Command: python -m experiments.train --config=experiments/configs/hff_resnet18_cifar10.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Control: --config=experiments/configs/bp_matched.py:hff_resnet18_cifar10.
Published: nothing for this network. Ours: not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("hff_cnn_cifar10")
  return to_flags(dataclasses.replace(base, network="resnet18"))
