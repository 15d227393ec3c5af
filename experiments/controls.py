"""The matched backprop control of any run: nothing else differs but the gradient and the head."""

import dataclasses
from typing import Any

from experiments.config import ExperimentConfig
from fflax.core.int8_config import Int8Config
from fflax.methods.backprop import BackpropConfig
from fflax.training.lookahead import LookaheadConfig

# What serves several views, or labels in them, and is nothing for the one view of backprop.
_OF_VIEWS = {"label_maps": 0, "norm_groups": 1}
# Methods that hand on by channels, and never touch the image; the others normalise lengths.
_BY_CHANNELS = ("dtg", "dtg_mlp", "local_losses")
_CHANNEL_NORMS = {"layer": "channel_layer", "rms": "channel_rms", "none": "none"}


def matched_backprop(
  config: ExperimentConfig, head: str | None = "cosine", numerics: str | None = None
) -> ExperimentConfig:
  """Backprop with the network, data, optimiser and budget of `config`.

  Its one view needs neither label maps nor statistics and scales by view: the network has none.
  Normalisation is that of `config`'s method, but for length normalisation of maps (Forward-Forward
  on conv nets), which backprop does not have; dropout between layers is not carried over.

  Args:
    config: any run.
    head: "cosine" (the head and the scale of hyperspherical FF) or "linear", with the normalisation
      and the classes of `config`'s method; None: backprop as `config` itself sets it, its own head
      and nothing more unless it says otherwise.
    numerics: None for those of `config`; others come without the settings of its own.
  """
  int8, store = dataclasses.replace(config.int8, scale_groups=1), config.weight_store
  if numerics not in (None, config.numerics):
    int8, store = Int8Config(), "float32"
  network = dict(config.networks[config.network])
  network |= {name: value for name, value in _OF_VIEWS.items() if name in network}
  methods = dict(config.methods)
  if head is not None:
    methods["backprop"] = _like(config.method, methods[config.method], head)
  return dataclasses.replace(
    config,
    method="backprop",
    methods=methods,
    networks={**config.networks, config.network: network},
    numerics=numerics or config.numerics,
    int8=int8,
    weight_store=store,
    readouts=("score_sum",),
    schedule="simultaneous",
    epochs_per_layer=0,
    lookahead=LookaheadConfig(),
  )


def _like(method: str, own: Any, head: str) -> BackpropConfig:
  norm = getattr(own, "normalization", "none")
  by_channels = method in _BY_CHANNELS
  return BackpropConfig(
    head=head,
    scale=getattr(own, "scale", BackpropConfig.scale),
    normalization=_CHANNEL_NORMS[norm] if by_channels else norm,
    normalize_input=not by_channels and getattr(own, "normalize_input", True),
    eps=getattr(own, "eps", BackpropConfig.eps),
    loss_classes=getattr(own, "loss_classes", ()),
  )
