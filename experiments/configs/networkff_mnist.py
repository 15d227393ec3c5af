"""NetworkFF on MNIST, 784-2x500: mean of squares, full batches, layer after layer.

Command: python -m experiments.train --config=experiments/configs/networkff_mnist.py \\
  --config.data.data_dir=DIR
A-CFF as it stands; F-CFF: --config.methods.collaborative.gamma_rule=fixed; plain FF:
--config.methods.collaborative.structure=none. The published loss has no threshold; where it is
silent the settings are those of mpezeshki/pytorch_forward_forward, like the ones it does state, but
for the negatives, which are uniform wrong labels here.
Published: 93.8 % test accuracy (A-CFF), 93.2 (F-CFF), 92.6 (FF), read off summaries.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.methods.collaborative import CollaborativeConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("ff_mnist_pezeshki")
  return to_flags(
    dataclasses.replace(
      base,
      method="collaborative",
      epochs_per_layer=0,  # half of the epochs each
      methods={
        "collaborative": CollaborativeConfig(
          label_at_max=True,
          normalization="l2",
          eps=1e-4,
          goodness="mean",
          theta=2.0,
          gamma_rule="sgd",
        )
      },
    )
  )
