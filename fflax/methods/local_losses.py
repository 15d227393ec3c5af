"""Layers that classify or compare for themselves: the controls that are local, but not FF.

Every layer minimises a loss of its own on its own activities: the cross-entropy of a linear head
(Local-CE; "pred"), the match of its similarities with those of the labels ("sim"), or both
("predsim"; A. Nokland, L. Eidnes, ICML 2019, arXiv 1901.06656). Mono-Forward (Gong, Li, Abdulla,
2025, arXiv 2501.09238) is Local-CE on all features. One option at a time leads from DTG-FF, by way
of Local-CE, to deeply supervised backprop.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fflax.core import losses
from fflax.core.goodness import bounded_temperature, squared_activities
from fflax.core.heads import HEADS, apply_head, uniform_head, with_gradient_state
from fflax.core.normalize import CHANNEL_NORMS, dropout
from fflax.core.numerics import Numerics, float32
from fflax.core.pooling import average_pool_to, grid_features
from fflax.core.similarity import similarity_loss
from fflax.networks.layers import aux_conv_layer
from fflax.types import Array, Batch, Key, LayerOut, Method, Metrics, Place, PyTree


@dataclasses.dataclass(frozen=True)
class LocalLossesConfig:
  """Hyper-parameters; the defaults are Local-CE-Detach on the recipe of DTG-FF (arXiv 2606.06539).

  The ladder from DTG-FF to BP-DeepSup: `features` "goodness" or "linear", `head` "fixed" or
  "learned", `detach` True or False. Neighbours start with the same numbers and differ in one thing.

  Attributes:
    loss: "pred" (cross-entropy of the layer's head), "sim" (similarity matching) or "predsim"
      (`(1 - beta) pred + beta sim`).
    beta: of "predsim".
    detach: True: a layer learns from its own loss alone; False: end to end from the sum of the
      losses (deep supervision), and the run's locality is "global".
    features: what a head reads of the layer's activities z, after the nonlinearity and before any
      pooling between layers: "linear", z; "goodness", `z**2 / T` with a learned temperature T.
      Heads of squares multiply in float32 whatever the numerics, all along the ladder.
    temperature: the bounds of T; equal ones fix it.
    head: "learned" with the layer, or "fixed" as it is drawn.
    head_init: in `HEADS`: "random" (N(0, 1/K), as DTG-FF's fixed readouts), "lecun", "uniform"
      (PyTorch's linear layer), "zero".
    bias: whether heads have one.
    pool: how maps are averaged for the head: "grid" (`pool_size` x `pool_size` bins), "number" (to
      about `pool_size` features, see `average_pool_to`) or "none" (all of them).
    pool_size: see `pool`.
    smoothing: label smoothing of the heads' cross-entropy.
    normalization, eps: of what is handed on, over channels: "layer", "rms" or "none".
    dropout: of what is handed on, in training.
    drop_channels: whether dropout drops whole channels of maps.
  """

  loss: str = "pred"
  beta: float = 0.99
  detach: bool = True
  features: str = "linear"
  temperature: tuple[float, float] = (0.5, 2.0)
  head: str = "learned"
  head_init: str = "random"
  bias: bool = True
  pool: str = "grid"
  pool_size: int = 2
  smoothing: float = 0.0
  normalization: str = "layer"
  eps: float = 1e-5
  dropout: float = 0.1
  drop_channels: bool = False

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    choices = {
      "loss": ("pred", "sim", "predsim"),
      "features": ("linear", "goodness"),
      "head": ("learned", "fixed"),
      "head_init": tuple(HEADS),
      "pool": ("grid", "number", "none"),
      "normalization": tuple(CHANNEL_NORMS),
    }
    for field, allowed in choices.items():
      value = getattr(self, field)
      if value not in allowed:
        raise ValueError(f"local_losses {field} must be one of {allowed}, not {value!r}")
    if self.head == "fixed" and self.head_init == "zero":
      raise ValueError("local_losses head 'fixed' at head_init 'zero' would never answer anything")
    low, high = self.temperature
    if not 0 < low <= high < float("inf"):
      raise ValueError(f"local_losses temperature must be two positive bounds, not {(low, high)}")
    if not (self.pool_size > 0 and self.eps > 0):
      raise ValueError("local_losses pool_size and eps must be positive")
    if not 0 <= self.beta <= 1:
      raise ValueError(f"local_losses beta must be in [0, 1], not {self.beta}")
    for field in ("smoothing", "dropout"):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f"local_losses {field} must be in [0, 1), not {getattr(self, field)}")


def local_losses(
  config: LocalLossesConfig, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """Local-CE, pred, sim, predsim or Mono-Forward as a `Method`; one pass.

  "sim" compares `Aux(z)`, a 3x3 convolution or a linear map of the layer's own width without bias,
  learned with the layer, by `similarity_loss` with one-hot labels; its layers give no class scores,
  so it predicts with a readout that is trained beside them ("softmax_last"). The others predict by
  "score_sum", "last_layer" or "vote" as well.

  Deviations:
    predsim: the output layer ("softmax_last") is not weighted by `1 - beta`, which Adam would
    undo. Maps that windows do not divide are pooled as `average_pool_to` says.
    Mono-Forward: M_0, a linear classifier of the pixels that its code trains first and never uses,
    is left out.

  Raises:
    ValueError: see `LocalLossesConfig.check`.
  """
  config.check()
  numerics = numerics or float32()
  beta = {"pred": 0.0, "sim": 1.0}.get(config.loss, config.beta)
  classifies, compares, squares = beta < 1, beta > 0, config.features == "goodness"
  low, high = config.temperature
  # Of squares, bfloat16 would lose what tells examples apart, beside an offset common to all.
  head_numerics = None if squares else numerics

  def temperature(params: PyTree) -> Array:
    return bounded_temperature(params["alpha"], low, high)

  def head_features(params: PyTree, out: LayerOut) -> Array:
    """`[B, D]`, float32, of an `out` with leading axis B."""
    x = squared_activities(out) if squares else out.act.astype(jnp.float32)
    if config.pool == "number" and x.ndim == 4:
      x = average_pool_to(x, config.pool_size)
    x = grid_features(x, config.pool_size) if config.pool == "grid" else x.reshape(x.shape[0], -1)
    if squares:
      x /= temperature(params) if low < high else low
    return x

  def logits(params: PyTree, stats: PyTree, out: LayerOut, key: Key | None) -> Array:
    head = {**stats.get("head", {}), **params.get("head", {})}
    return apply_head(head, head_features(params, out), head_numerics, key)

  def compared(params: PyTree, act: Array, key: Key | None) -> Array:
    """What similarities are taken of: the layer's activities `[B, ...]` through `Aux`."""
    if act.ndim == 2:
      return apply_head(params["aux"], act, numerics, key)
    return aux(act.shape[-1]).apply(params["aux"], {}, act, train=True, key=key)[0].out

  def aux(width: int):
    return aux_conv_layer(width, use_bias=False, initializer="torch_linear", numerics=numerics)

  def init_layer(key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    del place
    params: PyTree = {}
    stats: PyTree = {}
    if squares and low < high and classifies:
      params["alpha"] = jnp.zeros(())
    if classifies:
      head = HEADS[config.head_init](key, head_features(params, out).shape[-1], num_classes)
      head = head if config.bias else {"kernel": head["kernel"]}
      # Of a fixed head, only the state of gradients moves, where the numerics carry one.
      trained = with_gradient_state(head, head_numerics)
      if config.head == "fixed":
        stats["head"] = head
        trained = {name: leaf for name, leaf in trained.items() if name not in head}
      if trained:
        params["head"] = trained
    if compares:
      # Heads split the key in two, and `fold_in(key, 1)` would be their second half.
      key, width = jax.random.fold_in(key, 2), out.act.shape[-1]
      if out.act.ndim == 4:
        params["aux"] = aux(width).init(key, out.act)[0]
      elif out.act.ndim == 2:
        kernel = uniform_head(key, width, width)["kernel"]
        params["aux"] = with_gradient_state({"kernel": kernel}, numerics)
      else:
        raise ValueError("similarity matching takes the outputs of dense and conv layers")
    return params, stats

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    del context
    head_key, aux_key = jax.random.split(key)
    shown = jax.tree.map(lambda a: a[0], out)
    loss, metrics = jnp.zeros(()), {}
    if classifies:
      z = logits(params, stats, shown, head_key)
      loss = (1 - beta) * jnp.mean(losses.cross_entropy(z, label, config.smoothing))
      metrics["train_accuracy"] = jnp.mean(jnp.argmax(z, -1) == label)
    if compares:
      onehot = jax.nn.one_hot(label, num_classes)
      match = similarity_loss(compared(params, shown.act, aux_key), onehot)
      loss += beta * match
      metrics["similarity_loss"] = match
    if "alpha" in params:
      metrics["temperature"] = temperature(params)
    return loss, (stats, metrics)

  def class_scores(params: PyTree, stats: PyTree, out: LayerOut) -> Array | None:
    if not classifies:
      return None
    return logits(params, stats, jax.tree.map(lambda a: a[0], out), None)

  def hand_on(out: LayerOut, *, train: bool, key: Key | None = None) -> Array:
    x = CHANNEL_NORMS[config.normalization](out.out, config.eps)
    if not train or key is None:
      return x
    if config.drop_channels and x.ndim == 4:
      kept = dropout(key, jnp.ones((x.shape[0], 1, 1, x.shape[-1])), config.dropout)
      return x * kept
    return dropout(key, x, config.dropout)

  def views(key: Key, batch: Batch, class_scores: Array | None) -> Array:
    del key, class_scores
    return batch.image[None]

  return Method(
    name="local_losses",
    paper="A. Nokland, L. Eidnes, ICML 2019, arXiv 1901.06656; J. Gong, B. Li, W. Abdulla, 2025",
    locality="strict" if config.detach else "global",
    single_pass=True,
    single_view=True,
    views=views,
    plain_view=lambda image: image,
    score_views=(lambda image: image[None]) if classifies else None,
    init_layer=init_layer,
    hand_on=hand_on,
    local_loss=local_loss,
    class_scores=class_scores,
    temperature=temperature if squares and low < high and classifies else None,
  )
