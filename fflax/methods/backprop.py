"""Backpropagation as a method, so that every local result has a matched control.

Same networks, data, schedule, evaluation and tables as the local rules; the gradient is global.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fflax.core import losses, prototypes
from fflax.core.heads import apply_head, lecun_head, with_gradient_state
from fflax.core.normalize import CHANNEL_NORMS, NORMALIZATIONS, check_eps
from fflax.core.numerics import Numerics, float32
from fflax.types import Array, Batch, Key, LayerOut, Method, Metrics, Place, PyTree

_BY_CHANNELS = {f"channel_{name}": CHANNEL_NORMS[name] for name in ("layer", "rms")}


@dataclasses.dataclass(frozen=True)
class BackpropConfig:
  """Hyper-parameters of the controls.

  Attributes:
    heads: "last" (one softmax head) or "all" (deep supervision, BP-DeepSup: a head and a loss at
      every layer, summed, gradient flowing end to end).
    head: "linear", or "cosine" (`scale` times the cosines of the features with one prototype a
      class: the head of the hyperspherical method, so that its control differs in nothing else).
    scale: of head "cosine".
    smoothing: label smoothing of every head's cross-entropy.
    loss_classes: the classes that compete in the loss, () for all.
    normalization, eps: what a control shares with the local method: "rms" or "l2", of the length of
      the input and between dense layers; "channel_layer" or "channel_rms", over the channels of
      whatever a layer hands on, maps, too, and never of the input; "none" is plain backprop.
    normalize_input: whether "rms" and "l2" normalise the image, too.
  """

  heads: str = "last"
  head: str = "linear"
  scale: float = 10.0
  smoothing: float = 0.0
  normalization: str = "none"
  eps: float = 1e-6
  loss_classes: tuple[int, ...] = ()
  normalize_input: bool = True

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    if self.heads not in ("last", "all"):
      raise ValueError(f"backprop heads must be 'last' or 'all', not {self.heads!r}")
    if self.head not in ("linear", "cosine"):
      raise ValueError(f"backprop head must be 'linear' or 'cosine', not {self.head!r}")
    if not self.scale > 0:
      raise ValueError(f"backprop scale must be positive, not {self.scale}")
    allowed = (*NORMALIZATIONS, *_BY_CHANNELS)
    if self.normalization not in allowed:
      raise ValueError(
        f"backprop normalization must be one of {allowed}, not {self.normalization!r}"
      )
    check_eps(self.eps)
    losses.check_classes(self.loss_classes)
    if not 0 <= self.smoothing < 1:
      raise ValueError(f"backprop smoothing must be in [0, 1), not {self.smoothing}")
    if self.smoothing and self.loss_classes:
      raise ValueError("backprop smoothing spreads over all classes: not with loss_classes")


def backprop(config: BackpropConfig, num_classes: int, numerics: Numerics | None = None) -> Method:
  """Backpropagation (single head or BP-DeepSup) as a `Method` of global locality.

  A head is a linear layer `[D, K]` with bias (LeCun-normal, zero) on the output of a dense layer or
  the spatial mean of a conv layer's map, multiplied in `numerics`; or cosines, float32 always. Deep
  supervision sums the heads' logits to predict with readout "score_sum".

  Raises:
    ValueError: see `BackpropConfig.check`; on tracing, for `loss_classes` that are not there.
  """
  config.check()
  numerics = numerics or float32()
  by_channels = _BY_CHANNELS.get(config.normalization)
  length = NORMALIZATIONS["none" if by_channels else config.normalization]
  normalize = jax.vmap(lambda x: length(x, config.eps))

  def plain_view(image: Array) -> Array:
    return normalize(image) if config.normalize_input else image

  def views(key: Key, batch: Batch, class_scores: Array | None) -> Array:
    del key, class_scores
    return plain_view(batch.image)[None]

  def features(out: Array) -> Array:
    return jnp.mean(out, axis=(-3, -2)) if out.ndim == 4 else out

  def init_layer(key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    losses.check_classes(config.loss_classes, num_classes)
    if config.heads == "last" and not place.is_last:
      return {}, {}
    width = features(out.out).shape[-1]
    if config.head == "cosine":
      return {"head": {"prototypes": prototypes.random_prototypes(key, num_classes, 1, width)}}, {}
    return {"head": with_gradient_state(lecun_head(key, width, num_classes), numerics)}, {}

  def logits_of(head: PyTree, x: Array, key: Key | None) -> Array:
    if config.head == "cosine":
      cosine = jax.vmap(lambda z: prototypes.cosines(z, head["prototypes"]))(x)
      return config.scale * cosine[..., 0]
    return apply_head(head, x, numerics, key)

  def hand_on(out: LayerOut, *, train: bool, key: Key | None = None) -> Array:
    del train, key
    if by_channels is not None:
      return by_channels(out.out, config.eps)
    return normalize(out.out) if out.out.ndim == 2 else out.out

  def class_scores(params: PyTree, stats: PyTree, out: LayerOut) -> Array | None:
    del stats
    return logits_of(params["head"], features(out.out[0]), None) if params else None

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    del context
    if not params:
      return jnp.zeros(()), (stats, {})
    logits = logits_of(params["head"], features(out.out[0]), key)
    logits = losses.among(logits, config.loss_classes)
    loss = jnp.mean(losses.cross_entropy(logits, label, config.smoothing))
    return loss, (stats, {"train_accuracy": jnp.mean(jnp.argmax(logits, -1) == label)})

  return Method(
    name="backprop",
    paper="D. Rumelhart, G. Hinton, R. Williams, 1986; deep supervision: C.-Y. Lee et al., 2015",
    locality="global",
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
