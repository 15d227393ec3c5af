"""Channel-wise FF on Fashion-MNIST, the released code's recipe ("Acc" schedule).

Command: python -m experiments.train --config=experiments/configs/cwc_fmnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Its "Fast" schedule: --config.epochs=40 --config.stagger.starts="(0,1,2,3)"
  --config.stagger.ends="(7,10,13,16)" --config.stagger.readouts_from=5.
Published: 7.69 % test error.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.training.schedules import StaggerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("cwc_cifar10")
  return to_flags(
    dataclasses.replace(
      base,
      stagger=StaggerConfig(starts=(0,), ends=(10, 15, 19, 23)),
      data=dataclasses.replace(base.data, name="fashion_mnist", normalization="half"),
    )
  )
