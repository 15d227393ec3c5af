"""Forward-Forward on MNIST, preset `paper_supervised`: 4 x 2,000 units, label overlay.

Command: python -m experiments.train --config=experiments/configs/ff_mnist_paper_supervised.py \\
  --config.data.data_dir=DIR
Time: hours on 2 CPU cores. Published: 1.36 % test error after 60 epochs.

Not in the source: peer normalisation, taken over from the preset `matlab` [default]; and the seeds,
which are the library's own, not the sources' (17, 42, 1234).
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("ff_mnist_matlab")
  return to_flags(dataclasses.replace(base, epochs=60, networks={"mlp": {"sizes": (2000,) * 4}}))
