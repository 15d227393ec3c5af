"""DTG-FF on CIFAR-100 in 50 epochs: the probe of coarse against fine labels (arXiv 2606.06539).

Command: python -m experiments.train --config=experiments/configs/dtg_cifar100_probe.py \\
  --config.data.data_dir=DIR [--config.data.superclasses=20]
Its controls and both label sets: grid coarse_cifar100 of experiments.studies.grid. The same design
where a CPU can run it: grid coarse_synth.
Published, seed 114514: 66.14 % test accuracy of 20 superclasses, 51.28 % of 100 classes; deep
supervision 74.13 and 62.63 %.
Time: for a GPU or TPU. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("dtg_cifar10")
  data = dataclasses.replace(base.data, name="cifar100")
  return to_flags(dataclasses.replace(base, seed=114514, epochs=50, data=data))
