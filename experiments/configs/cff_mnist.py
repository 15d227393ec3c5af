"""Layer collaboration (Lorberbom et al., AAAI 2024) on MNIST, 784-3x1000, alternating.

Command: python -m experiments.train --config=experiments/configs/cff_mnist.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
All layers: --config.methods.collaborative.structure=ones; plain FF: structure=none. Widths,
threshold and optimiser are ours, the paper's are not public.
Published: 2.2 % test error (previous layers), 2.1 (all), 3.3 (FF), read off summaries.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.collaborative import CollaborativeConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=300,  # a batch for each layer in turn: 100 epochs of updates for each
      method="collaborative",
      methods={
        # A threshold of 20 for the whole layer.
        "collaborative": CollaborativeConfig(
          normalization="l2", theta=20 / 1000, structure="previous"
        )
      },
      networks={"mlp": {"sizes": (1000, 1000, 1000)}},
      kernel_init="torch_linear",
      schedule="alternating",
      readouts=("score_sum", "last_layer"),
      optimizer=OptimizerConfig("adam", 3e-3),
      data=DataConfig("mnist", validation=10000, batch_size=512),
      eval_every=15,
      checkpoint_every=15,
    )
  )
