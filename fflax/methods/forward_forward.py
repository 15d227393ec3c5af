"""Forward-Forward (G. Hinton, 2022, arXiv 2212.13345) and SymBa (Lee, Song, 2023, 2303.08418).

Every layer raises its goodness on positive views and lowers it on negative ones:
`L_l = mean_B (softplus(-z_pos) + softplus(z_neg)) / 2`, `z = (G_l - theta_l) / T`. Labels are part
of the input; a wrong label makes a negative. Without labels, negatives are hybrids of two images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Literal

import jax
import jax.numpy as jnp

from fflax.core import goodness as goodness_lib
from fflax.core import labels as labels_lib
from fflax.core import losses
from fflax.core.normalize import NORMALIZATIONS, check_eps
from fflax.core.numerics import Numerics
from fflax.types import Array, Batch, Key, LayerOut, Method, Metrics, Place, PyTree


@dataclasses.dataclass(frozen=True)
class ForwardForwardConfig:
  """Hyper-parameters of Forward-Forward; the defaults are the paper's loss and scale.

  Attributes:
    supervision: "label" (the label is part of the input) or "hybrid" (unsupervised).
    label_style: "overlay" (over the first K pixels), "prepend" (before the pixels), "pattern" (a
      fixed random binary pattern per class, before the pixels; SymBa's intrinsic class pattern,
      whose exact form is not published), "channels" (K constant maps behind the image's channels:
      for convolutional networks) or "image_pattern" (a fixed random image of -1 and 1 per class,
      added to the image). Where the label is unknown, every class is written with `label_value / K`
      (so "image_pattern" adds the mean of its images).
    label_value: the value of the label's pixel or map, the amplitude of its pattern.
    label_at_max: scale `label_value` by the example's largest pixel (popular code takes the largest
      of the whole batch, which makes an answer depend on the other examples).
    pattern_size: of label_style "pattern".
    pattern_seed: of label_styles "pattern" and "image_pattern".
    negatives: "uniform", "permuted", "permuted_once", "softmax_hard" or "goodness_hard".
    negatives_seed: of the one permutation of "permuted_once", which only makes sense where every
      batch is the whole training split in its stored order.
    hybrid_blurs: blurs of the hybrid mask; not in the paper.
    normalization, eps: length normalisation of every layer's input: "rms", "l2" or "none".
    goodness: "sum", "mean" or "unsquared".
    theta: threshold per unit: a layer of D units cuts "sum" at `theta * D` and "mean" at `theta`.
    temperature: T above.
    maximize: False pushes goodness down on positive views instead.
    loss: "logistic", "symba" or "swish"; `alpha` is the scale of the latter two.
    peer: peer normalisation: "none", "signal" (the Matlab form) or "variance" (the loss form).
    peer_strength, peer_momentum: its strength and the momentum of the running mean activities.
  """

  supervision: str = "label"
  label_style: str = "overlay"
  label_value: float = 1.0
  label_at_max: bool = False
  pattern_size: int = 100
  pattern_seed: int = 0
  negatives: str = "uniform"
  negatives_seed: int = 0
  hybrid_blurs: int = 6
  normalization: str = "rms"
  eps: float = 1e-6
  goodness: str = "sum"
  theta: float = 1.0
  temperature: float = 1.0
  maximize: bool = True
  loss: str = "logistic"
  alpha: float = 4.0
  peer: str = "none"
  peer_strength: float = 0.03
  peer_momentum: float = 0.9

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    choices = {
      "supervision": ("label", "hybrid"),
      "label_style": ("overlay", "prepend", "pattern", "channels", "image_pattern"),
      "negatives": tuple(labels_lib.WRONG_LABELS),
      "normalization": tuple(NORMALIZATIONS),
      "goodness": tuple(goodness_lib.GOODNESS),
      "loss": ("logistic", "symba", "swish"),
      "peer": ("none", "signal", "variance"),
    }
    for field, allowed in choices.items():
      value = getattr(self, field)
      if value not in allowed:
        raise ValueError(f"forward_forward {field} must be one of {allowed}, not {value!r}")
    for field in ("temperature", "alpha", "label_value", "pattern_size"):
      if not 0 < getattr(self, field) < float("inf"):
        raise ValueError(f"forward_forward {field} must be positive, not {getattr(self, field)}")
    for field in ("theta", "peer_strength"):
      if not abs(getattr(self, field)) < float("inf"):
        raise ValueError(f"forward_forward {field} must be finite, not {getattr(self, field)}")
    if self.hybrid_blurs < 0:
      raise ValueError(f"hybrid_blurs must be 0 or more, not {self.hybrid_blurs}")
    for field in ("pattern_seed", "negatives_seed"):
      if not 0 <= getattr(self, field) < 2**32:
        raise ValueError(f"{field} must be in [0, 2**32), not {getattr(self, field)}")
    if self.negatives == "goodness_hard" and not self.maximize:
      raise ValueError(
        "negatives 'goodness_hard' are drawn in proportion to the root of the goodness and need "
        "maximize=True"
      )
    check_eps(self.eps)
    if not 0 <= self.peer_momentum < 1:
      raise ValueError(f"peer_momentum must be in [0, 1), not {self.peer_momentum}")


def _make_code(config: ForwardForwardConfig, num_classes: int):
  """How a label (or none, the neutral code) is written into one example."""
  patterns = None
  if config.label_style == "pattern":  # part of the method, not of a run's randomness
    bits = jax.random.bernoulli(
      jax.random.key(config.pattern_seed), 0.5, (num_classes, config.pattern_size)
    )
    patterns = bits.astype(jnp.float32)

  def write(image: Array, label: Array | None) -> Array:
    value = config.label_value * (jnp.max(image) if config.label_at_max else 1.0)
    if label is None:
      code = labels_lib.neutral(num_classes, value)
    else:
      code = labels_lib.one_hot(label, num_classes, value)
    if config.label_style == "overlay":
      if image.size <= num_classes:
        raise ValueError(
          f"overlay needs more than {num_classes} input values, not {image.size}: use label_style "
          "'prepend'"
        )
      return labels_lib.overlay(image, code)
    if config.label_style == "channels":
      return labels_lib.append_maps(image, code)
    if config.label_style == "image_pattern":
      key = jax.random.key(config.pattern_seed)
      signs = labels_lib.class_patterns(key, num_classes, image.shape)
      return labels_lib.add_pattern(image, code, signs)
    return labels_lib.prepend(image, code if patterns is None else code @ patterns)

  return write


def wrong_labels(
  config: ForwardForwardConfig,
  num_classes: int,
  key: Key,
  label: Array,
  class_scores: Array | None,
) -> Array:
  """The labels of the negative views, `[B]`; `class_scores` `[B, K]` choose hard ones."""
  if config.negatives == "permuted_once":  # the same in every step, as its source has it
    key = jax.random.key(config.negatives_seed)
  return labels_lib.WRONG_LABELS[config.negatives](key, label, num_classes, class_scores)


def forward_forward(
  config: ForwardForwardConfig, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """Forward-Forward as a `Method`.

  Locality: strict. Supervised layers answer with their goodness for every candidate label (K
  passes, `[B, K]`, negated if `maximize` is False); a trained readout answers from the neutral
  label in one pass. Unsupervised layers give no class scores: use a trained readout. The method
  multiplies nothing itself, so `numerics` have no effect.

  Deviations: eps stands under the root; `softmax_hard` excludes the true class with -inf instead of
  -1000; the readout is updated before the layers of the same step, from pre-update features; batch
  norm, where a network has it, normalises positive and negative views together, unless the network
  parts them.

  Raises:
    ValueError: see `ForwardForwardConfig.check`.
  """
  del numerics
  config.check()
  supervised = config.supervision == "label"
  normalize = jax.vmap(lambda x: NORMALIZATIONS[config.normalization](x, config.eps))
  measure = jax.vmap(jax.vmap(goodness_lib.GOODNESS[config.goodness]))
  write = _make_code(config, num_classes)

  def views(key: Key, batch: Batch, class_scores: Array | None) -> Array:
    if supervised:
      wrong = wrong_labels(config, num_classes, key, batch.label, class_scores)
      both = [jax.vmap(write)(batch.image, label) for label in (batch.label, wrong)]
    else:
      both = [batch.image, labels_lib.hybrid_negatives(key, batch.image, config.hybrid_blurs)]
    return jnp.stack([normalize(x) for x in both])

  def plain_view(image: Array) -> Array:
    return normalize(jax.vmap(lambda x: write(x, None))(image) if supervised else image)

  def score_views(image: Array) -> Array:
    def candidate(label: Array) -> Array:
      return normalize(jax.vmap(lambda x: write(x, label))(image))

    return jax.vmap(candidate)(jnp.arange(num_classes))

  def init_layer(key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    del key, place
    width = out.act[0].size
    stats = {} if config.peer == "none" else {"mean_activity": jnp.full((width,), 0.5, jnp.float32)}
    return {}, stats

  def hand_on(out: LayerOut, *, train: bool, key: Key | None = None) -> Array:
    del train, key
    return normalize(out.out)

  def peer_loss(stats: PyTree, out: LayerOut) -> tuple[Array, PyTree]:
    if config.peer == "none":
      return jnp.zeros(()), stats
    rows = out.act.shape[1]
    mean = losses.peer_update(
      stats["mean_activity"], out.act[0].reshape(rows, -1), config.peer_momentum
    )
    if config.peer == "signal":
      extra = losses.peer_signal_loss(mean, out.pre[0].reshape(rows, -1), config.peer_strength)
    else:
      extra = losses.peer_variance_loss(mean, config.peer_strength)
    return extra, {"mean_activity": mean}

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    """Of the goodness plus `context` `[V, B]`, what a collaborative method has others add."""
    del params, label, key
    told = measure(out.act, out.act_square)
    g_pos, g_neg = told if context is None else told + context
    theta = goodness_lib.threshold(config.theta, config.goodness, out.act[0, 0].size)
    if config.loss == "logistic":
      rows = losses.logistic_loss(g_pos, g_neg, theta, config.temperature, config.maximize)
    elif config.loss == "symba":
      rows = losses.symba_loss(g_pos, g_neg, config.alpha)
    else:
      rows = losses.swish_loss(g_pos, g_neg, config.alpha)
    peer, stats = peer_loss(stats, out)
    metrics = {
      "goodness_pos": jnp.mean(told[0]),
      "goodness_neg": jnp.mean(told[1]),
      "pair_accuracy": jnp.mean((g_pos > g_neg) == config.maximize),
      "dead_units": jnp.mean(jnp.all(out.act <= 0, axis=(0, 1))),
    }
    return jnp.mean(rows) + peer, (stats, metrics)

  def goodness(params: PyTree, stats: PyTree, out: LayerOut) -> Array:
    del params, stats
    return measure(out.act, out.act_square)

  def class_scores(params: PyTree, stats: PyTree, out: LayerOut) -> Array | None:
    if not supervised:
      return None
    g = goodness(params, stats, out)
    return jnp.transpose(g if config.maximize else -g)

  hard: Mapping[str, Literal["plain", "scores"]] = {
    "softmax_hard": "plain",
    "goodness_hard": "scores",
  }
  return Method(
    name="forward_forward",
    paper="G. Hinton, The Forward-Forward Algorithm, 2022, arXiv 2212.13345",
    locality="strict",
    single_pass=not supervised,
    views=views,
    plain_view=plain_view,
    score_views=score_views if supervised else None,
    init_layer=init_layer,
    hand_on=hand_on,
    local_loss=local_loss,
    class_scores=class_scores,
    goodness=goodness,
    positive_is_high=config.maximize,
    negatives_from=hard.get(config.negatives) if supervised else None,
  )
