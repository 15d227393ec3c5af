"""The matched backprop control of any run: nothing else differs but the gradient and the head."""

import dataclasses

from experiments.config import ExperimentConfig
from fflax.methods.backprop import BackpropConfig


def matched_backprop(config: ExperimentConfig, head: str = "cosine") -> ExperimentConfig:
  """Backprop with the network, data, optimiser, budget and length normalisation of `config`.

  Args:
    config: any run.
    head: "cosine" (the head and the scale of hyperspherical FF) or "linear".
  """
  own = config.methods[config.method]
  # Conv nets of the hyperspherical method take images as they are, and maps are never normalised.
  normalized = getattr(own, "normalize_input", True)
  control = BackpropConfig(
    head=head,
    scale=getattr(own, "scale", BackpropConfig.scale),
    normalization=getattr(own, "normalization", "none") if normalized else "none",
    eps=getattr(own, "eps", BackpropConfig.eps),
    loss_classes=getattr(own, "loss_classes", ()),
  )
  return dataclasses.replace(
    config,
    method="backprop",
    methods={**config.methods, "backprop": control},
    readouts=("score_sum",),
    schedule="simultaneous",
    lookahead=ExperimentConfig().lookahead,
  )
