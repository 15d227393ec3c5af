"""fflax: Forward-Forward and layer-local learning in JAX.

A run is one point of network x numerics x method x schedule x readout:

  network = fflax.make_network("mlp", numerics=fflax.float32(), sizes=(500, 500))
  method = fflax.make_method("forward_forward", fflax.ForwardForwardConfig(), num_classes=10)
  trainer = fflax.make_trainer(
    network, method, [fflax.score_sum()], image_shape=(8, 8, 1), optimizer=optax.adam(1e-3)
  )
  state = trainer.init(jax.random.key(0), batch)
  state, metrics = jax.jit(trainer.step)(state, batch)
"""

from fflax.core.int8 import int8
from fflax.core.int8_config import Int8Config
from fflax.core.locality import locality_matrix
from fflax.core.numerics import Numerics, bfloat16, float32
from fflax.core.numerics_registry import NUMERICS, make_numerics
from fflax.core.pbit_config import PbitConfig
from fflax.core.readouts import (
  READOUTS,
  ReadoutConfig,
  last_layer,
  make_readout,
  norm_head,
  score_sum,
  softmax_head,
  vote,
)
from fflax.methods.backprop import BackpropConfig, backprop
from fflax.methods.channelwise import ChannelwiseConfig, channelwise
from fflax.methods.collaborative import CollaborativeConfig, collaborative
from fflax.methods.dtg import DtgConfig, dtg
from fflax.methods.dtg_mlp import DtgMlpConfig, dtg_mlp
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.methods.hyperspherical import HypersphericalConfig, hyperspherical
from fflax.methods.local_losses import LocalLossesConfig, local_losses
from fflax.methods.recurrent import RecurrentConfig, recurrent
from fflax.methods.registry import METHODS, make_method
from fflax.networks.registry import NETWORKS, describe, make_network
from fflax.training.lookahead import LookaheadConfig, make_lookahead
from fflax.training.optimizers import OptimizerConfig, for_numerics, make_optimizer
from fflax.training.schedules import (
  SCHEDULES,
  StaggerConfig,
  alternating,
  greedy,
  interleaved,
  make_schedule,
  simultaneous,
  staggered,
)
from fflax.training.sharding import make_mesh
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.training.weight_store import int8_store
from fflax.types import (
  Answers,
  Batch,
  Between,
  Broadcast,
  Layer,
  LayerOut,
  LayerState,
  Method,
  Network,
  Place,
  Readout,
  ReadoutState,
  Recurrence,
  Schedule,
  TrainState,
)

__version__ = "0.1.0"

__all__ = [
  "METHODS",
  "NETWORKS",
  "NUMERICS",
  "READOUTS",
  "SCHEDULES",
  "Answers",
  "BackpropConfig",
  "Batch",
  "Between",
  "Broadcast",
  "ChannelwiseConfig",
  "CollaborativeConfig",
  "DtgConfig",
  "DtgMlpConfig",
  "ForwardForwardConfig",
  "HypersphericalConfig",
  "Int8Config",
  "Layer",
  "LayerOut",
  "LayerState",
  "LocalLossesConfig",
  "LookaheadConfig",
  "Method",
  "Network",
  "Numerics",
  "OptimizerConfig",
  "PbitConfig",
  "Place",
  "Readout",
  "ReadoutConfig",
  "ReadoutState",
  "Recurrence",
  "RecurrentConfig",
  "Schedule",
  "StaggerConfig",
  "TrainState",
  "Trainer",
  "alternating",
  "backprop",
  "bfloat16",
  "channelwise",
  "collaborative",
  "describe",
  "dtg",
  "dtg_mlp",
  "float32",
  "for_numerics",
  "forward_forward",
  "greedy",
  "hyperspherical",
  "int8",
  "int8_store",
  "interleaved",
  "last_layer",
  "local_losses",
  "locality_matrix",
  "make_lookahead",
  "make_mesh",
  "make_method",
  "make_network",
  "make_numerics",
  "make_optimizer",
  "make_readout",
  "make_schedule",
  "make_trainer",
  "norm_head",
  "recurrent",
  "score_sum",
  "simultaneous",
  "softmax_head",
  "staggered",
  "vote",
]
