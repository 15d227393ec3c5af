"""DTG-FF: Y. Chen, 2026, arXiv 2606.06539. Every layer classifies by its squares, at a temperature.

A layer's squared activities, pooled onto a coarse grid and divided by a learned temperature, go
through a linear readout that is drawn once and never trained; the layer minimises the cross-entropy
of these logits. No negatives, no label in the input, one pass. The paper's variant for dense nets,
a hybrid with backprop, is `fflax.methods.dtg_mlp`.
"""

import dataclasses

import jax.numpy as jnp

from fflax.core.normalize import CHANNEL_NORMS
from fflax.core.numerics import Numerics
from fflax.methods.local_losses import LocalLossesConfig, local_losses
from fflax.types import Array, LayerOut, Method


@dataclasses.dataclass(frozen=True)
class DtgConfig:
  """Hyper-parameters of DTG-FF; the defaults are the paper's.

  Attributes:
    temperature: bounds of the learned temperature, which begins in their middle; equal ones fix it
      (1, 1: the paper's ablation).
    grid: squares are averaged over `grid` x `grid` bins; the paper gives only numbers of features,
      which 2 reproduces for VGG8.
    readout: "random" (entries from N(0, 1/K)) or "unit_columns" (columns of length one; an
      ablation).
    normalization, eps: of what is handed on, over channels: "layer", "rms" or "none".
    dropout: of what is handed on, in training.
  """

  temperature: tuple[float, float] = (0.5, 2.0)
  grid: int = 2
  readout: str = "random"
  normalization: str = "layer"
  eps: float = 1e-5
  dropout: float = 0.1

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    if self.readout not in ("random", "unit_columns"):
      raise ValueError(
        f"dtg readout must be one of ('random', 'unit_columns'), not {self.readout!r}"
      )
    if self.normalization not in CHANNEL_NORMS:
      allowed = tuple(CHANNEL_NORMS)
      raise ValueError(f"dtg normalization must be one of {allowed}, not {self.normalization!r}")
    low, high = self.temperature
    if not 0 < low <= high < float("inf"):
      raise ValueError(f"dtg temperature must be two positive bounds, not {(low, high)}")
    if type(self.grid) is not int or self.grid < 1:
      raise ValueError(f"dtg grid must be a positive number of bins, not {self.grid!r}")
    if not self.eps > 0:
      raise ValueError(f"dtg eps must be positive, not {self.eps}")
    if not 0 <= self.dropout < 1:
      raise ValueError(f"dtg dropout must be in [0, 1), not {self.dropout}")


def classifier_features(out: LayerOut) -> Array:
  """The mean over the map of a layer's activities before any norm or pooling, `[B, C]` float32."""
  z = out.act.astype(jnp.float32)
  return jnp.mean(z, axis=(1, 2)) if z.ndim == 4 else z


def dtg(config: DtgConfig, num_classes: int, numerics: Numerics | None = None) -> Method:
  """DTG-FF as a `Method`: a setting of `local_losses`, the first rung of the ladder to BP-DeepSup.

  With z the activities of a layer, before pooling, and u the mean of `z**2` in each bin:
  `psi = (u / T) R + b`, `T = low + (high - low) sigmoid(alpha)`, `loss = cross-entropy(psi, y)`
  (sections 3.2 and 3.3). Three paths leave z: goodness as it is; to the next layer pooled,
  normalised over channels and dropped out; to trained readouts its mean over space. Readout
  "score_sum" is the paper's logit-sum, "norm_head" its concatenating head, beside each other in one
  run. Locality: strict, also between examples. Logits are float32 whatever the numerics, on
  machines whose usual float32 product is coarser, too.

  Deviations, all where the paper is silent: the grid; pooling before the norm; the norm has no
  scale and shift (which would receive no gradient); the head's epsilon and momentum of batch norm.

  Raises:
    ValueError: see `DtgConfig.check`.
  """
  config.check()
  method = local_losses(
    LocalLossesConfig(
      loss="pred",
      features="goodness",
      temperature=config.temperature,
      head="fixed",
      head_init=config.readout,
      pool="grid",
      pool_size=config.grid,
      normalization=config.normalization,
      eps=config.eps,
      dropout=config.dropout,
    ),
    num_classes,
    numerics,
  )
  return method._replace(
    name="dtg",
    paper="Y. Chen, Synthetic Benchmarks Overstate Forward-Forward Scaling, arXiv 2606.06539",
    readout_features=classifier_features,
  )
