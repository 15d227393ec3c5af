"""The matched backprop control of any preset: same network, data, optimiser, epochs, cosine head.

Command: python -m experiments.train --config=experiments/configs/bp_matched.py:hff_mnist \\
  --config.data.data_dir=DIR
With the usual linear head: --config.methods.backprop.head=linear. Deep supervision, the control of
answers that sum over layers: --config.methods.backprop.heads=all.
"""

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from experiments.controls import matched_backprop


def get_config(preset: str = "hff_digits") -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(matched_backprop(load_preset(preset)))
