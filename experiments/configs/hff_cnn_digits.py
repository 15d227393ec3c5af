"""Hyperspherical FF on scikit-learn's digits with a small batch-normalised conv net.

Every layer has an auxiliary conv head of its own; one pass trains and predicts.

Command: python -m experiments.train --config=experiments/configs/hff_cnn_digits.py
Time: about a minute on 2 CPU cores. Expected: see experiments/results/hff_cnn_digits.json.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.methods.hyperspherical import HypersphericalConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("hff_digits")
  return to_flags(
    dataclasses.replace(
      base,
      epochs=30,
      methods={
        "hyperspherical": HypersphericalConfig(scale=10.0, normalize_input=False, aux_features=64)
      },
      network="small_cnn",
      networks={"small_cnn": {"channels": (32, 64, 64), "batch_norm": True}},
    )
  )
