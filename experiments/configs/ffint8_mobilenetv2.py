"""FF-INT8 on CIFAR-10, MobileNet-V2: ffint8_resnet18 with another network.

Command: python -m experiments.train --config=experiments/configs/ffint8_mobilenetv2.py \\
  --config.data.data_dir=DIR --config.numerics=int8
Published (Table V): 91.1 % accuracy, by another recipe.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    dataclasses.replace(load_preset("ffint8_resnet18"), network="mobilenet_v2", activation="relu6")
  )
