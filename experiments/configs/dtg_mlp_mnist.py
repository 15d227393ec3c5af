"""The dense variant of DTG-FF on MNIST, 784-4x1000: Forward-Forward plus an end-to-end classifier.

Its author calls it a hybrid of FF and backprop, and its locality is "global": do not list it as FF.
Command: python -m experiments.train --config=experiments/configs/dtg_mlp_mnist.py \\
  --config.data.data_dir=DIR
The strict rest, the classifier detached: --config.methods.dtg_mlp.end_to_end=False. The paper's own
run: --config.data.name=cifar10 --config.data.normalization=dataset
  --config.networks.mlp.sizes="(2048,2048,2048,2048)"
From the paper: goodness, learned threshold and temperature in [0.1, 2], warm start, label overlay,
weight 0.1 of the layers' losses, a classifier on the batch-normalised pre-activations of all layers
but the last, 100 epochs. Ours, where it is silent: MNIST and its sizes, Adam 1e-3 with decay 1e-4
and batch 128 (its public code's), no augmentation, the neutral label's value of 1/K, no scale and
shift between layers, no dropout or smoothing in the classifier.
Published: nothing on MNIST; CIFAR-10 63.72 % test accuracy (norm_head).
Time: hours on 2 CPU cores. Not run yet.
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.core.readouts import ReadoutConfig
from fflax.methods.dtg_mlp import DtgMlpConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  optimizer = OptimizerConfig("adam", 1e-3, weight_decay=1e-4, no_decay=())
  return to_flags(
    ExperimentConfig(
      seed=42,
      epochs=100,
      method="dtg_mlp",
      methods={"dtg_mlp": DtgMlpConfig()},
      networks={"mlp": {"sizes": (1000, 1000, 1000, 1000)}},
      kernel_init="torch_linear",
      readouts=("norm_head", "score_sum"),
      readout=ReadoutConfig(
        head_first=0, head_without_last=True, head_dropout=0.0, head_smoothing=0.0
      ),
      optimizer=optimizer,
      readout_optimizer=optimizer,
      data=DataConfig("mnist", batch_size=128),
      eval_every=5,
      checkpoint_every=10,
    )
  )
