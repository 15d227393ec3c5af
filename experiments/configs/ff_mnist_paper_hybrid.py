"""Unsupervised Forward-Forward on MNIST, preset `paper_hybrid`: negatives mix two images.

4 hidden layers of 2,000 units; a linear softmax reads the normalised activities of the last three.
It is trained beside the layers (the paper fits it afterwards) and never reaches them.

Command: python -m experiments.train --config=experiments/configs/ff_mnist_paper_hybrid.py \\
  --config.data.data_dir=DIR
Time: hours on 2 CPU cores. Published: 1.37 % test error.

Not in the source: peer normalisation, taken over from the preset `matlab` [default]; and the seeds,
which are the library's own, not the sources' (17, 42, 1234).
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.methods.forward_forward import ForwardForwardConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("ff_mnist_matlab")
  return to_flags(
    dataclasses.replace(
      base,
      epochs=100,
      methods={"forward_forward": ForwardForwardConfig(supervision="hybrid", peer="signal")},
      networks={"mlp": {"sizes": (2000,) * 4}},
      readouts=("softmax_head",),
    )
  )
