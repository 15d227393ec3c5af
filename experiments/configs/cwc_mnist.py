"""Channel-wise FF on MNIST, the released code's recipe ("Acc" schedule), CFSE 20-80-240-480.

Command: python -m experiments.train --config=experiments/configs/cwc_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Its "Fast" schedule: --config.stagger.starts="(0,1,2,3)" --config.stagger.ends="(3,4,5,6)"
  --config.stagger.readouts_from=5. Its long one: --config.epochs=25
  --config.stagger.ends="(6,11,16,21)".
Published: 0.58 % test error; a rerun of the code: about 0.6.
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
      epochs=20,
      stagger=StaggerConfig(starts=(0,), ends=(2, 3, 4, 5)),
      data=dataclasses.replace(base.data, name="mnist", normalization="standard"),
    )
  )
