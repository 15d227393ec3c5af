"""DTG-FF on CIFAR-10: VGG8, the paper's recipe (arXiv 2606.06539), both of its heads in one run.

Command: python -m experiments.train --config=experiments/configs/dtg_cifar10.py \\
  --config.data.data_dir=DIR [--config.numerics=bfloat16]
Other data: --config.data.name=cifar100. VGG11: --config.network=vgg11. The paper's second seed:
--config.seed=43. Its older schedule (layers see updated outputs): --config.schedule=interleaved.
Its ablations: --config.methods.dtg.temperature="(1.,1.)", ....normalization=none or rms,
....readout=unit_columns, --config.data.augment.cutout=0; no regularisation of the head:
--config.readout.head_dropout=0 --config.readout.head_smoothing=0.
From the paper: network, AdamW 2e-4 to 1e-5 by a cosine, decay 1e-3, batch 128, 400 epochs, crops,
flips, jitter, Cutout 16, dropout 0.1 and 0.2, smoothing 0.1. Ours, where it is silent: clipping at
1 (it clips, at a number it does not give), jitter of strength 0.2, a grid of 2x2 bins, the start of
weights (PyTorch's), decay of all parameters, batch norm of the head at epsilon 1e-5.
Published, seeds 42, 43: 91.33, 91.18 % test accuracy (norm_head); 91.79 % (score_sum, a run of its
own). CIFAR-100: 67.28, 66.95 %. VGG11: 84.36 and 54.79 %.
Time: days on 2 CPU cores; for a GPU or TPU. Not run yet.
"""

import dataclasses

from ml_collections import ConfigDict

from experiments.config import load_preset, to_flags
from fflax.methods.dtg import DtgConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  base = load_preset("local_ce_cifar10")  # the recipe, so that the rungs differ in nothing else
  return to_flags(
    dataclasses.replace(
      base,
      seed=42,
      method="dtg",
      methods={"dtg": DtgConfig()},
      readouts=("norm_head", "score_sum", "last_layer"),
      readout_optimizer=base.optimizer,
    )
  )
