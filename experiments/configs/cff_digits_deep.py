"""Collaborative FF on scikit-learn's digits, 74-4x200: does collaboration help deeper nets?

Command: python -m experiments.train --config=experiments/configs/cff_digits_deep.py
As `cff_digits`, with as many updates for each layer. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("cff_digits")
  return to_flags(dataclasses.replace(base, epochs=2400, networks={"mlp": {"sizes": (200,) * 4}}))
