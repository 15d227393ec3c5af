"""Recurrent, top-down Forward-Forward (G. Hinton, 2022, arXiv 2212.13345, section 3.4).

An image is a boring video: every layer reads the layers below and above at the last time step, with
the label as the layer above the last, and all layers move at once:

  h_l(t) = damping h_l(t-1) + (1 - damping) relu(N(h_{l-1}(t-1)) U_l + N(h_{l+1}(t-1)) D_l + b_l)

with h_l(0) from one pass upwards. At every t a layer has the loss of Forward-Forward on its h_l(t).
"""

import dataclasses

import jax
import jax.numpy as jnp

from fflax.core import labels as labels_lib
from fflax.core.normalize import NORMALIZATIONS
from fflax.core.numerics import Numerics
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward, wrong_labels
from fflax.types import Array, Batch, Between, Key, Method, Recurrence

_NOT_READ = (
  "supervision",
  "label_style",
  "label_at_max",
  "pattern_size",
  "pattern_seed",
  "hybrid_blurs",
)


@dataclasses.dataclass(frozen=True)
class RecurrentConfig(ForwardForwardConfig):
  """Hyper-parameters of recurrent FF: those of Forward-Forward, and how layers settle.

  How labels are written into images does not apply: the label, one-hot of `label_value` and length-
  normalised as every layer's activities are, stands above the last layer.

  Attributes:
    steps: time steps in training; the losses of all of them count.
    damping: share of a layer's last activities in the next ones.
    answer_from, answer_to: the time steps, from 1, over which an answer averages goodness.
  """

  steps: int = 8
  damping: float = 0.3
  answer_from: int = 3
  answer_to: int = 5

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    super().check()
    for field in _NOT_READ:
      if getattr(self, field) != getattr(ForwardForwardConfig(), field):
        raise ValueError(
          "recurrent layers have the label above them, not in the image: "
          f"{field} does not apply and must stay {getattr(ForwardForwardConfig(), field)!r}"
        )
    if self.steps < 1:
      raise ValueError(f"steps must be 1 or more, not {self.steps}")
    if not 0 <= self.damping < 1:
      raise ValueError(f"damping must be in [0, 1), not {self.damping}")
    if not 1 <= self.answer_from <= self.answer_to:
      raise ValueError(
        "an answer needs 1 <= answer_from <= answer_to, not "
        f"{self.answer_from} and {self.answer_to}"
      )


def recurrent(
  config: RecurrentConfig, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """Recurrent FF as a `Method`, on any of Forward-Forward's losses, goodnesses and negatives.

  Locality: strict. Activities, as numbers, go up and down; gradients pass neither a layer nor a
  time step. Layers answer with their goodness for every candidate label, averaged over the window
  (one pass up and `answer_to` time steps for each label). A trained readout answers from the pass
  up alone, in which no label is shown; "softmax_hard" negatives come from it, as in the paper.

  Deviations: the paper states neither depth nor loss over time; the losses of all time steps are
  summed here and a layer moves once a batch, so rates are to be chosen for the sum. With peer
  normalisation the mean activities move in every time step. eps stands under the root.

  Raises:
    ValueError: see `RecurrentConfig.check`.
  """
  config.check()
  base = forward_forward(config, num_classes, numerics)
  normalize = jax.vmap(lambda x: NORMALIZATIONS[config.normalization](x, config.eps))

  def show(image: Array, label: Array) -> Between:
    code = jax.vmap(lambda k: labels_lib.one_hot(k, num_classes, config.label_value))(label)
    return Between(normalize(image), normalize(code))

  def views(key: Key, batch: Batch, class_scores: Array | None) -> Between:
    wrong = wrong_labels(config, num_classes, key, batch.label, class_scores)
    both = [show(batch.image, label) for label in (batch.label, wrong)]
    return jax.tree.map(lambda *views: jnp.stack(views), *both)

  def score_views(image: Array) -> Between:
    candidates = jnp.arange(num_classes)
    return jax.vmap(lambda k: show(image, jnp.full(image.shape[0], k)))(candidates)

  return base._replace(
    name="recurrent",
    paper="G. Hinton, The Forward-Forward Algorithm, 2022, arXiv 2212.13345, section 3.4",
    views=views,
    plain_view=normalize,
    score_views=score_views,
    recurrence=Recurrence(config.steps, config.damping, (config.answer_from, config.answer_to)),
  )
