"""FF-INT8's recipe on CIFAR-10 with a small vision transformer, which the paper leaves open.

Command: python -m experiments.train --config=experiments/configs/ffint8_vit.py \\
  --config.data.data_dir=DIR --config.numerics=int8
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    dataclasses.replace(
      load_preset("ffint8_resnet18"),
      network="vit",
      activation="gelu",
      kernel_init="lecun_normal",
    )
  )
