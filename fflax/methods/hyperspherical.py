"""Hyperspherical Forward-Forward: S. Sarode et al., 2026, arXiv 2605.00082.

Every layer classifies its own unit-norm features by class prototypes on the sphere: one pass trains
and predicts, and other classes' prototypes take the place of negative data.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from fflax.core import losses, prototypes
from fflax.core.normalize import NORMALIZATIONS, check_eps
from fflax.core.numerics import Numerics
from fflax.core.pooling import adaptive_average_pool
from fflax.networks.layers import aux_conv_layer
from fflax.types import Array, Batch, Key, Layer, LayerOut, Method, Metrics, Place, PyTree

_MAKE = {
  "learned": prototypes.random_prototypes,
  "fixed_random": prototypes.random_prototypes,
  "fixed_orthogonal": prototypes.orthogonal_prototypes,
  "fixed_etf": prototypes.etf_prototypes,
  "ema": prototypes.random_prototypes,
  "ema_centered": prototypes.random_prototypes,
}


@dataclasses.dataclass(frozen=True)
class HypersphericalConfig:
  """Hyper-parameters of hyperspherical FF; the paper's own values are not public.

  Attributes:
    scale: alpha of the loss, the inverse temperature of the class scores.
    margin: additive margin m >= 0 on the own class's score, in training only.
    pooling: beta, how sharply a class's prototypes are pooled; 0 takes `scale`.
    prototypes_per_class: M.
    prototypes: "learned", "fixed_random", "fixed_orthogonal", "fixed_etf", "ema" or "ema_centered",
      where features are taken less their running mean: class means of units that are never negative
      all point the same way.
    ema_decay: rho of "ema" and "ema_centered".
    center_rate: of the running mean of "ema_centered".
    loss: "smooth" (the margin cross-entropy) or "hard" (its limit).
    normalization, eps: of what dense layers hand on; conv layers hand on their (batch-normalised)
      maps as they are.
    normalize_input: whether the image is normalised so too (conv nets take it standardised).
    aux_features, aux_kernel, aux_pool: the auxiliary conv head of layers with spatial outputs:
      `aux_kernel` conv to `aux_features` channels, no nonlinearity, average-pooled to a grid of
      `aux_pool` x `aux_pool`.
    loss_classes: the classes that compete in the loss, () for all: of learning class by class,
      where the others' prototypes then keep still.
  """

  scale: float = 10.0
  margin: float = 0.0
  pooling: float = 0.0
  prototypes_per_class: int = 1
  prototypes: str = "learned"
  ema_decay: float = 0.99
  center_rate: float = 0.01
  loss: str = "smooth"
  normalization: str = "rms"
  eps: float = 1e-6
  normalize_input: bool = True
  aux_features: int = 256
  aux_kernel: int = 3
  aux_pool: int = 2
  loss_classes: tuple[int, ...] = ()

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    choices = {
      "prototypes": tuple(_MAKE),
      "loss": ("smooth", "hard"),
      "normalization": tuple(NORMALIZATIONS),
    }
    for field, allowed in choices.items():
      value = getattr(self, field)
      if value not in allowed:
        raise ValueError(f"hyperspherical {field} must be one of {allowed}, not {value!r}")
    for field in ("scale", "prototypes_per_class", "aux_features", "aux_kernel", "aux_pool"):
      if not getattr(self, field) > 0:
        raise ValueError(f"hyperspherical {field} must be positive, not {getattr(self, field)}")
    check_eps(self.eps)
    losses.check_classes(self.loss_classes)
    if self.margin < 0 or self.pooling < 0:
      raise ValueError("hyperspherical margin and pooling must not be negative")
    for field in ("ema_decay", "center_rate"):
      if not 0 <= getattr(self, field) <= 1:
        raise ValueError(f"hyperspherical {field} must be in [0, 1], not {getattr(self, field)}")


def make_features(
  config: HypersphericalConfig, numerics: Numerics | None = None
) -> tuple[Layer, Callable[..., Array]]:
  """The auxiliary conv head, and what a layer compares with its prototypes.

  The latter is `(params, stats, out, key=None) -> [B, D]`, from the layer's extras and its output
  `[B, ...]`: through the head if that is a map `[B, H, W, C]`, less the running mean if there is
  one; with a key as in training.
  """
  aux = aux_conv_layer(config.aux_features, kernel_size=config.aux_kernel, numerics=numerics)

  def features(params: PyTree, stats: PyTree, out: Array, key: Key | None = None) -> Array:
    if out.ndim == 4:
      out = adaptive_average_pool(
        aux.apply(params["aux"], {}, out, train=key is not None, key=key)[0].out, config.aux_pool
      )
    z = out.reshape(out.shape[0], -1)
    return z - stats["mean"][None, :] if "mean" in stats else z

  return aux, features


def hyperspherical(
  config: HypersphericalConfig, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """Hyperspherical FF as a `Method`.

  Loss (our reconstruction): softmax cross-entropy of `scale (S_c - margin [c = y])`, with `S_c` the
  pooled cosine of the layer's features with the prototypes of class c. Locality: strict; one pass.

  Deviations: the paper's constants are not public; every default here is ours. In "ema" modes the
  prototypes are statistics and receive no gradient. Every layer whose output is a map `[H, W, C]`
  gets an auxiliary conv head, which multiplies in `numerics`; similarities are float32 always.

  Raises:
    ValueError: see `HypersphericalConfig.check`; on tracing, for `loss_classes` that are not there.
  """
  config.check()
  pooling = config.pooling or config.scale
  normalize = jax.vmap(lambda x: NORMALIZATIONS[config.normalization](x, config.eps))
  aux, features = make_features(config, numerics)
  trained = config.prototypes == "learned"

  def plain_view(image: Array) -> Array:
    return normalize(image) if config.normalize_input else image

  def views(key: Key, batch: Batch, class_scores: Array | None) -> Array:
    del key, class_scores
    return plain_view(batch.image)[None]

  def init_layer(key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    del place
    losses.check_classes(config.loss_classes, num_classes)
    aux_key, prototype_key = jax.random.split(key)
    params = {"aux": aux.init(aux_key, out.out)[0]} if out.out.ndim == 4 else {}
    width = features(params, {}, out.out).shape[-1]
    p = _MAKE[config.prototypes](prototype_key, num_classes, config.prototypes_per_class, width)
    if trained:
      return {**params, "prototypes": p}, {}
    centered = config.prototypes == "ema_centered"
    return params, {"prototypes": p, **({"mean": jnp.zeros((width,))} if centered else {})}

  def scores(
    params: PyTree, stats: PyTree, out: LayerOut, key: Key | None = None
  ) -> tuple[Array, Array]:
    """Features `[B, D]` and class scores `[B, K]` of view 0."""
    z = features(params, stats, out.out[0], key)
    p = (params if trained else stats)["prototypes"]
    return z, jax.vmap(lambda v: prototypes.class_scores(v, p, pooling))(z)

  def hand_on(out: LayerOut, *, train: bool, key: Key | None = None) -> Array:
    del train, key
    return normalize(out.out) if out.out.ndim == 2 else out.out

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    del context
    z, s = scores(params, stats, out, key)
    s = losses.among(s, config.loss_classes)
    if config.loss == "smooth":
      rows = jax.vmap(lambda v, y: losses.margin_cross_entropy(v, y, config.scale, config.margin))(
        s, label
      )
    else:
      rows = jax.vmap(lambda v, y: losses.hard_margin_loss(v, y, config.margin))(s, label)
    if config.prototypes.startswith("ema"):
      p = prototypes.ema_prototypes(stats["prototypes"], z, label, config.ema_decay)
      stats = {**stats, "prototypes": p}
    if "mean" in stats:
      stats = {**stats, "mean": stats["mean"] + config.center_rate * jnp.mean(z, axis=0)}
    own = jnp.take_along_axis(s, label[:, None], axis=1)[:, 0]
    rivals = len(config.loss_classes or range(num_classes)) - 1
    others = (jnp.sum(jnp.where(s < -1.5, 0, s), axis=1) - own) / rivals  # cosines are above -1
    metrics = {
      "goodness_pos": jnp.mean(own),
      "goodness_neg": jnp.mean(others),
      "train_accuracy": jnp.mean(jnp.argmax(s, -1) == label),
    }
    return jnp.mean(rows), (stats, metrics)

  def class_scores(params: PyTree, stats: PyTree, out: LayerOut) -> Array:
    return scores(params, stats, out)[1]

  return Method(
    name="hyperspherical",
    paper="S. Sarode et al., Hyperspherical Forward-Forward, 2026, arXiv 2605.00082",
    locality="strict",
    single_pass=True,
    single_view=True,
    views=views,
    plain_view=plain_view,
    score_views=lambda image: plain_view(image)[None],
    init_layer=init_layer,
    hand_on=hand_on,
    local_loss=local_loss,
    class_scores=class_scores,
  )
