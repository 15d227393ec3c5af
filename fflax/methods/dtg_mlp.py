"""The dense variant of DTG-FF (Y. Chen, 2026, arXiv 2606.06539): Forward-Forward with a temperature
and a learned threshold, and a classifier that trains the layers end to end.

The paper calls it a hybrid of FF and backprop, and so does its locality here: "global". The setting
`end_to_end=False` is the strict method that remains when the classifier is detached.
"""

import dataclasses

import jax
import jax.numpy as jnp

from fflax.core import labels as labels_lib
from fflax.core.goodness import bounded_temperature, mean_of_squares
from fflax.core.normalize import CHANNEL_NORMS
from fflax.core.numerics import Numerics
from fflax.types import Array, Batch, Key, LayerOut, Method, Metrics, Place, PyTree


@dataclasses.dataclass(frozen=True)
class DtgMlpConfig:
  """Hyper-parameters of the dense variant; the defaults are the paper's.

  Attributes:
    end_to_end: whether the classifier's gradient reaches the layers.
    weight: of the layers' own losses beside the classifier's.
    label_value: lambda, the value of the label's pixel.
    temperature: bounds of the learned temperature, which begins in their middle; equal ones fix it.
    normalization, eps: of what is handed on, over the units: "layer", "rms" or "none".
  """

  end_to_end: bool = True
  weight: float = 0.1
  label_value: float = 1.0
  temperature: tuple[float, float] = (0.1, 2.0)
  normalization: str = "layer"
  eps: float = 1e-5

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    if self.normalization not in CHANNEL_NORMS:
      allowed = tuple(CHANNEL_NORMS)
      raise ValueError(
        f"dtg_mlp normalization must be one of {allowed}, not {self.normalization!r}"
      )
    low, high = self.temperature
    if not 0 < low <= high < float("inf"):
      raise ValueError(f"dtg_mlp temperature must be two positive bounds, not {(low, high)}")
    for field in ("weight", "label_value", "eps"):
      if not 0 < getattr(self, field) < float("inf"):
        raise ValueError(f"dtg_mlp {field} must be positive, not {getattr(self, field)}")


def inverse_softplus(y: Array) -> Array:
  """`log(exp(y) - 1)` without overflow; y itself above 20, and at least 1e-3."""
  y = jnp.maximum(y, 1e-3)
  return jnp.where(y > 20, y, y + jnp.log(-jnp.expm1(-jnp.minimum(y, 20.0))))


def dtg_mlp(config: DtgMlpConfig, num_classes: int, numerics: Numerics | None = None) -> Method:
  """The dense variant of DTG-FF as a `Method`, for dense nets and a trained readout "norm_head".

  `loss = weight (softplus(theta - g_pos / T) + softplus(g_neg / T - theta))`, g the mean square of
  a layer's units, `T = low + (high - low) sigmoid(alpha)` and `theta = softplus(theta_0)` learned,
  theta beginning at the mean goodness of the first batch. Labels overlay the first K pixels. The
  readout's features are pre-activations on the view of the neutral label. End to end they carry its
  gradient into the layers below, while the layers' own losses stay their own (so batch norm
  needs `norm_groups=3`: statistics that views share would carry them down). The paper's head
  leaves out the last layer, which thus learns by its own loss alone (`ReadoutConfig`:
  `head_first=0, head_without_last=True, head_dropout=0, head_smoothing=0`).

  Locality: global; strict if not `end_to_end`. Readout "norm_head" answers in one pass, "score_sum"
  by the sum of `g / T` for each candidate label.

  Deviations: theta_0 is kept as the number that the first batch gave plus a learned one that begins
  at zero, so that weight decay draws it there and not to zero. Where the paper is silent: the first
  batch's mean goodness is over both views; a wrong label is uniform; the neutral label writes
  `label_value / K`; the norm between layers has no scale and shift. It takes goodness, not
  goodness / T, for the first theta, though the middle of T is 1.05.

  Raises:
    ValueError: see `DtgMlpConfig.check`; examples of no more than K numbers.
  """
  del numerics  # nothing here multiplies
  config.check()
  low, high = config.temperature

  def write(image: Array, code: Array) -> Array:
    if image[0].size <= num_classes:
      raise ValueError(
        f"dtg_mlp overlays more than {num_classes} input values, not {image[0].size}"
      )
    return jax.vmap(labels_lib.overlay, in_axes=(0, 0 if code.ndim == 2 else None))(image, code)

  def labelled(image: Array, label: Array) -> Array:
    return write(image, labels_lib.one_hot(label, num_classes, config.label_value))

  def plain_view(image: Array) -> Array:
    return write(image, labels_lib.neutral(num_classes, config.label_value))

  def score_views(image: Array) -> Array:
    return jax.vmap(lambda label: labelled(image, label))(jnp.arange(num_classes))

  def views(key: Key, batch: Batch, class_scores: Array | None) -> Array:
    wrong = labels_lib.uniform_wrong(key, batch.label, num_classes, class_scores)
    both = [labelled(batch.image, label) for label in (batch.label, wrong)]
    return jnp.stack([*both, plain_view(batch.image)] if config.end_to_end else both)

  def init_layer(key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    del key, out, place
    params = {"alpha": jnp.zeros(()), "threshold": jnp.zeros(())}
    return params, {"first": jnp.zeros(()), "started": jnp.zeros((), bool)}

  def heat(params: PyTree) -> Array:
    return bounded_temperature(params["alpha"], low, high)

  def goodness(params: PyTree, stats: PyTree, out: LayerOut) -> Array:
    del params, stats
    return jax.vmap(jax.vmap(mean_of_squares))(out.act, out.act_square)

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    del label, context, key
    g_pos, g_neg = goodness(params, stats, out)[:2]
    now = jax.lax.stop_gradient(inverse_softplus(0.5 * (jnp.mean(g_pos) + jnp.mean(g_neg))))
    first = jnp.where(stats["started"], stats["first"], now)
    theta = jax.nn.softplus(first + params["threshold"])
    temperature = heat(params)
    z_pos, z_neg = g_pos / temperature - theta, g_neg / temperature - theta
    loss = config.weight * jnp.mean(jax.nn.softplus(-z_pos) + jax.nn.softplus(z_neg))
    metrics = {
      "goodness_pos": jnp.mean(g_pos),
      "goodness_neg": jnp.mean(g_neg),
      "pair_accuracy": jnp.mean(g_pos > g_neg),
      "temperature": temperature,
      "threshold": theta,
    }
    return loss, ({"first": first, "started": jnp.ones((), bool)}, metrics)

  def class_scores(params: PyTree, stats: PyTree, out: LayerOut) -> Array | None:
    return jnp.transpose(goodness(params, stats, out)) / heat(params)

  def hand_on(out: LayerOut, *, train: bool, key: Key | None = None) -> Array:
    del train, key
    return CHANNEL_NORMS[config.normalization](out.out, config.eps)

  return Method(
    name="dtg_mlp",
    paper="Y. Chen, Synthetic Benchmarks Overstate Forward-Forward Scaling, arXiv 2606.06539",
    locality="global" if config.end_to_end else "strict",
    single_pass=False,
    views=views,
    plain_view=plain_view,
    score_views=score_views,
    init_layer=init_layer,
    hand_on=hand_on,
    local_loss=local_loss,
    class_scores=class_scores,
    goodness=goodness,
    temperature=heat if low < high else None,
    readout_features=lambda out: out.pre.astype(jnp.float32),
    end_to_end_view=2 if config.end_to_end else None,
  )
