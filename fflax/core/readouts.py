"""Readouts: how the layers' class scores or features become one prediction `[B, K]`."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core import heads, losses
from fflax.core.normalize import dropout
from fflax.types import Array, Key, PyTree, Readout


def _scored(scores: tuple[Array | None, ...], first_layer: int, who: str) -> list[Array]:
  used = [s for s in scores[first_layer:] if s is not None]
  if not used:
    raise ValueError(
      f"the {who} readout found no layer with class scores from layer {first_layer + 1} on; "
      "choose a readout that this method's layers can serve"
    )
  return used


def _untrained(key: Key, features: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
  del key, features
  return {}, {}


def score_sum(first_layer: int = 0) -> Readout:
  """Sum of the layers' class scores from `first_layer` (counted from 0) on.

  This is per-label goodness for Forward-Forward (one pass per candidate label), the logit sum for
  layers with heads and the summed prototype score for hyperspherical layers (one pass each). Where
  scores are logits it answers as the product of the layers' softmaxes does.
  """

  def predict(
    params: PyTree, stats: PyTree, scores: tuple[Array | None, ...], features: Any
  ) -> Array:
    del params, stats, features
    first, *others = _scored(scores, first_layer, "score_sum")
    return sum(others, first)

  return Readout("score_sum", "scores", _untrained, None, predict)


def mean_probability(first_layer: int = 0) -> Readout:
  """Mean of the layers' softmax probabilities: the layers with heads as an ensemble."""

  def predict(
    params: PyTree, stats: PyTree, scores: tuple[Array | None, ...], features: Any
  ) -> Array:
    del params, stats, features
    used = jnp.stack(_scored(scores, first_layer, "mean_probability"))  # [L, B, K]
    return jnp.mean(jax.nn.softmax(used, axis=-1), axis=0)

  return Readout("mean_probability", "scores", _untrained, None, predict)


def last_layer() -> Readout:
  """The class scores of the last layer that has some, alone."""

  def predict(
    params: PyTree, stats: PyTree, scores: tuple[Array | None, ...], features: Any
  ) -> Array:
    del params, stats, features
    return _scored(scores, 0, "last_layer")[-1]

  return Readout("last_layer", "scores", _untrained, None, predict)


def vote(first_layer: int = 0) -> Readout:
  """Majority over the layers' own predictions; ties are settled by the summed scores."""

  def predict(
    params: PyTree, stats: PyTree, scores: tuple[Array | None, ...], features: Any
  ) -> Array:
    del params, stats, features
    used = jnp.stack(_scored(scores, first_layer, "vote"))  # [L, B, K]
    votes = jnp.sum(jax.nn.one_hot(jnp.argmax(used, -1), used.shape[-1]), axis=0)
    total = jnp.sum(used, axis=0)
    spread = jnp.max(total, -1, keepdims=True) - jnp.min(total, -1, keepdims=True)
    return votes + 0.5 * (total - jnp.min(total, -1, keepdims=True)) / jnp.maximum(spread, 1e-30)

  return Readout("vote", "scores", _untrained, None, predict)


def _concatenated(features: tuple[Array, ...], first_layer: int, who: str) -> Array:
  used = features[first_layer:]
  if not used:
    raise ValueError(f"the {who} readout starts at layer {first_layer + 1}, past the last")
  return jnp.concatenate([f.reshape(f.shape[0], -1) for f in used], axis=-1)


def softmax_head(
  num_classes: int,
  first_layer: int = 0,
  *,
  bias: bool = False,
  loss: str = "logits",
  name: str = "softmax_head",
) -> Readout:
  """A linear softmax head on the handed-on features of the plain view, in one pass.

  `logits = sum_l f_l V_l` over layers from `first_layer` on (-1: the last alone), `V_l` `[D_l, K]`,
  zero at the start. Trained beside the layers by its own cross-entropy; the driver detaches the
  features, so the head never reaches a layer (loeweX/Forward-Forward, jesper-olsen/ff-py).

  Args:
    num_classes: K.
    first_layer: see above.
    bias: whether logits have a bias, zero at the start.
    loss: "logits": cross-entropy of the logits; "double_softmax": of their softmax, as in the
      released code of channel-wise FF; it cannot fall below `log(1 + (K - 1) / e)`.
    name: of the readout.

  Raises:
    ValueError: unknown `loss`.
  """
  if loss not in ("logits", "double_softmax"):
    raise ValueError(f"the loss of a softmax head is logits or double_softmax, not {loss!r}")

  def init(key: Key, features: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
    width = _concatenated(features, first_layer, name).shape[-1]
    head = heads.zero_head(key, width, num_classes)
    return head if bias else {"kernel": head["kernel"]}, {}

  def predict(params: PyTree, stats: PyTree, scores: Any, features: tuple[Array, ...]) -> Array:
    del stats, scores
    return heads.apply_head(params, _concatenated(features, first_layer, name))

  def head_loss(
    params: PyTree, stats: PyTree, features: tuple[Array, ...], label: Array, key: Key
  ) -> tuple[Array, PyTree]:
    del key
    logits = predict(params, stats, (), features)
    if loss == "double_softmax":
      logits = jax.nn.softmax(logits)
    return jnp.mean(losses.cross_entropy(logits, label)), stats

  return Readout(name, "plain", init, head_loss, predict)


def norm_head(
  num_classes: int,
  first_layer: int = 1,
  *,
  without_last: bool = False,
  dropout_rate: float = 0.2,
  smoothing: float = 0.1,
) -> Readout:
  """A linear head on the batch-normalised, concatenated features of several layers, in one pass.

  The "concat" head of DTG-FF (arXiv 2606.06539): batch norm (learned scale and shift, running
  averages with momentum 0.9, epsilon 1e-5), dropout, linear layer with bias (PyTorch's default
  start), cross-entropy with label smoothing. The driver detaches the features, unless the method
  learns from it (`Method.end_to_end_view`).

  Args:
    num_classes: K.
    first_layer: layers before this one (counted from 0) are left out.
    without_last: whether the last layer is left out.
    dropout_rate: of the normalised features.
    smoothing: of the labels.
  """

  def flat(features: tuple[Array, ...]) -> Array:
    return _concatenated(
      features[:-1] if without_last else features, first_layer, "norm_head"
    ).astype(jnp.float32)

  def init(key: Key, features: tuple[Array, ...]) -> tuple[PyTree, PyTree]:
    width = flat(features).shape[-1]
    norm = {"scale": jnp.ones(width), "shift": jnp.zeros(width)}
    params = {"norm": norm, "head": heads.uniform_head(key, width, num_classes)}
    return params, {"mean": jnp.zeros(width), "var": jnp.ones(width)}

  def logits(params: PyTree, x: Array, mean: Array, var: Array, key: Key | None) -> Array:
    norm = params["norm"]
    factor = norm["scale"] * lax.rsqrt(var + 1e-5)
    x = (x - mean[None]) * factor[None] + norm["shift"][None]
    return heads.apply_head(params["head"], dropout(key, x, dropout_rate))

  def predict(params: PyTree, stats: PyTree, scores: Any, features: tuple[Array, ...]) -> Array:
    del scores
    return logits(params, flat(features), stats["mean"], stats["var"], None)

  def head_loss(
    params: PyTree, stats: PyTree, features: tuple[Array, ...], label: Array, key: Key
  ) -> tuple[Array, PyTree]:
    x = flat(features)
    now = {"mean": jnp.mean(x, axis=0), "var": jnp.var(x, axis=0)}
    found = logits(params, x, now["mean"], now["var"], key)
    moved = jax.tree.map(lambda old, new: 0.9 * old + 0.1 * new, stats, now)
    return jnp.mean(losses.cross_entropy(found, label, smoothing)), moved

  return Readout("norm_head", "plain", init, head_loss, predict)


@dataclasses.dataclass(frozen=True)
class ReadoutConfig:
  """Options of the readouts.

  Attributes:
    first_layer: layers before this one (counted from 0) are left out of sums and of "softmax_head".
    head_bias, head_loss: of "softmax_head" and "softmax_last", see `softmax_head`.
    head_first, head_without_last, head_dropout, head_smoothing: of "norm_head", see there.
  """

  first_layer: int = 0
  head_bias: bool = False
  head_loss: str = "logits"
  head_first: int = 1
  head_without_last: bool = False
  head_dropout: float = 0.2
  head_smoothing: float = 0.1

  def __post_init__(self) -> None:
    """Refuses a negative layer and impossible rates."""
    for field in ("first_layer", "head_first"):
      if getattr(self, field) < 0:
        raise ValueError(f"{field} must be 0 or more, not {getattr(self, field)}")
    for field in ("head_dropout", "head_smoothing"):
      if not 0 <= getattr(self, field) < 1:
        raise ValueError(f"{field} must be in [0, 1), not {getattr(self, field)}")


READOUTS: Mapping[str, Callable[[ReadoutConfig, int], Readout]] = {
  "score_sum": lambda c, _: score_sum(c.first_layer),
  "mean_probability": lambda c, _: mean_probability(c.first_layer),
  "last_layer": lambda c, _: last_layer(),
  "vote": lambda c, _: vote(c.first_layer),
  "softmax_head": lambda c, k: softmax_head(k, c.first_layer, bias=c.head_bias, loss=c.head_loss),
  "softmax_last": lambda c, k: softmax_head(
    k, -1, bias=c.head_bias, loss=c.head_loss, name="softmax_last"
  ),
  "norm_head": lambda c, k: norm_head(
    k,
    c.head_first,
    without_last=c.head_without_last,
    dropout_rate=c.head_dropout,
    smoothing=c.head_smoothing,
  ),
}


def make_readout(name: str, config: ReadoutConfig, num_classes: int) -> Readout:
  """The registered readout `name`.

  Raises:
    ValueError: unknown name.
  """
  if name not in READOUTS:
    raise ValueError(f"unknown readout {name!r}; there are {', '.join(READOUTS)}")
  return READOUTS[name](config, num_classes)
