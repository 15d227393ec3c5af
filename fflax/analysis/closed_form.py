"""Multiply-accumulates of training and prediction in closed form, one rule a kind of method.

n_l are the MACs of layer l's forward pass for one view, r those of trained heads and f those of
fixed projections on the way to the losses. Traced steps of networks with one product a layer must
agree with these formulas: backward products beyond them are input gradients that should not exist.
Layers of several products (residual blocks) have input gradients inside, which are not in them.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple


class TrainingMacs(NamedTuple):
  """MACs of training on one example.

  Attributes:
    forward: of all views.
    weights: of the weight gradients.
    inputs: of gradients with respect to inputs.
  """

  forward: int
  weights: int
  inputs: int

  @property
  def backward(self) -> int:
    """Of all gradients."""
    return self.weights + self.inputs

  @property
  def total(self) -> int:
    """All of it."""
    return self.forward + self.weights + self.inputs


class Rule(NamedTuple):
  """How a kind of method trains.

  Attributes:
    views: passes of an example through the layers.
    through: whether gradients pass from layer to layer.
    broadcasts: views of a forward sweep before, in which layers tell their goodness.
  """

  views: int
  through: bool
  broadcasts: int = 0


RULES: Mapping[str, Rule] = MappingProxyType(
  {
    "forward_forward": Rule(2, False),  # positive and negative; also FF-INT8
    "collaborative": Rule(2, False, broadcasts=2),  # what a compiler may merge counts twice
    "hyperspherical": Rule(1, False),
    "local_losses": Rule(1, False),  # detached, as it is unless told otherwise
    "dtg": Rule(1, False),  # its readouts are fixed projections
    "channelwise": Rule(1, False),
    "binary_stochastic": Rule(1, False),
    "backprop": Rule(1, True),
  }
)
"""By name of a registered method, which stands for its kind.

Of two there is none: layers of "recurrent" have two products and settle over time, those of
"dtg_mlp" learn from two losses on views of their own.
"""


def expected_training_macs(
  method: str,
  layers: Sequence[int],
  heads: int = 0,
  *,
  fixed: int = 0,
  lookahead: bool = False,
  neutral_passes: int = 0,
  detached_heads: int = 0,
) -> TrainingMacs:
  """Training MACs of one example.

  Args:
    method: in `RULES`.
    layers: n_l.
    heads: r, summed over the layers that have one.
    fixed: f; projections on the way to the loss whose weights are not trained.
    lookahead: exact look-ahead, which takes the gradient through all layers.
    neutral_passes: passes through the layers without a gradient (hard negatives, readouts).
    detached_heads: of readouts that are trained on detached features.

  Raises:
    ValueError: there is no rule for the method.
  """
  if method not in RULES:
    raise ValueError(f"no closed form for method {method!r}; there are {', '.join(RULES)}")
  views, through, broadcasts = RULES[method]
  n = sum(layers)
  between = n - layers[0] if through or lookahead else 0
  return TrainingMacs(
    forward=views * (n + heads + fixed) + (neutral_passes + broadcasts) * n + detached_heads,
    weights=views * (n + heads) + detached_heads,
    inputs=views * (between + heads + fixed),
  )


def expected_prediction_macs(layers: Sequence[int], heads: int = 0, *, passes: int = 1) -> int:
  """MACs of one prediction by `passes` passes: one, or one for each candidate label."""
  return passes * (sum(layers) + heads)
