"""Deep supervision (BP-DeepSup) on the teacher-student task: the control of `synth_dtg`.

Command: python -m experiments.train --config=experiments/configs/synth_deepsup.py
The sweep: python -m experiments.studies.class_sweep
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.methods.backprop import BackpropConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  methods = {"backprop": BackpropConfig(heads="all")}
  return to_flags(dataclasses.replace(load_preset("synth_bp"), methods=methods))
