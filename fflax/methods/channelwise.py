"""Channel-wise competitive FF: A. Papachristodoulou et al., AAAI 2024, arXiv 2312.12668.

A layer's channels are divided into one block per class. The goodness of a block is its mean square,
and the layer minimises the cross-entropy of the true class under a softmax over its blocks: no
negative data, one pass for training and prediction.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from fflax.core import losses
from fflax.core.absorption import AffineCounts, handed_on
from fflax.core.goodness import blockwise_mean_of_squares, squared
from fflax.core.numerics import Numerics
from fflax.types import Array, Batch, Key, LayerOut, Method, Metrics, Place, PyTree

LOSSES = ("cwc", "cwc_clamped", "pvn", "cwg")


@dataclasses.dataclass(frozen=True)
class ChannelwiseConfig:
  """Hyper-parameters of channel-wise FF; the defaults are those of the released code.

  Attributes:
    loss: "cwc" (cross-entropy with logits G), "cwc_clamped" (the same with G clipped), "pvn"
      (logistic, own block against the mean of the others, at `theta`) or "cwg"
      (`cwc_weight * cwc + (1 - cwc_weight) * pvn`).
    theta: threshold of "pvn".
    cwc_weight: of "cwg".
    competing: number of competing classes J of each layer, from the first on; the last entry stands
      for all later layers, and an empty list for K in every layer. A layer with J < K competes
      between groups of classes and gives no class scores.
    class_groups: the group of each class, K numbers in [0, J), for layers with J < K; empty for
      groups of neighbouring labels, `y // (K / J)`, as in the released code.
  """

  loss: str = "cwc"
  theta: float = 2.0
  cwc_weight: float = 0.28
  competing: tuple[int, ...] = ()
  class_groups: tuple[int, ...] = ()

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    if self.loss not in LOSSES:
      raise ValueError(f"channelwise loss must be one of {LOSSES}, not {self.loss!r}")
    if not abs(self.theta) < float("inf"):
      raise ValueError(f"channelwise theta must be finite, not {self.theta}")
    if not 0 <= self.cwc_weight <= 1:
      raise ValueError(f"channelwise cwc_weight must be in [0, 1], not {self.cwc_weight}")
    for field in ("competing", "class_groups"):
      if not isinstance(getattr(self, field), tuple | list):
        raise ValueError(f"channelwise {field} must be a list, not {getattr(self, field)!r}")
    if self.class_groups and not self.competing:
      raise ValueError("channelwise class_groups are for layers with fewer blocks: set competing")
    for j in self.competing:
      if type(j) is not int or j < 1:
        raise ValueError(f"channelwise competing must hold positive numbers of classes, not {j!r}")

  def groups(self, num_groups: int, num_classes: int) -> tuple[int, ...]:
    """The group of each class when `num_groups` compete.

    Raises:
      ValueError: the classes cannot be grouped so.
    """
    if num_groups > num_classes:
      raise ValueError(
        f"channelwise competing names {num_groups} classes, but the data has {num_classes}"
      )
    if self.class_groups:
      if len(self.class_groups) != num_classes or set(self.class_groups) != set(range(num_groups)):
        raise ValueError(
          f"channelwise class_groups must name a group in [0, {num_groups}) for each of "
          f"{num_classes} classes, and leave no group empty"
        )
      return tuple(self.class_groups)
    if num_classes % num_groups:
      raise ValueError(
        f"{num_classes} classes cannot be split into {num_groups} equal groups: set "
        "channelwise class_groups"
      )
    return tuple(y // (num_classes // num_groups) for y in range(num_classes))


def block_goodness(out: LayerOut, num_blocks: int) -> Array:
  """Goodness of every block of channels on view 0, `[B, J]`."""
  one = functools.partial(blockwise_mean_of_squares, num_blocks=num_blocks)
  return jax.vmap(one)(squared(out)[0])


def compete(stats: PyTree, out: LayerOut, label: Array, num_classes: int) -> tuple[Array, Array]:
  """The goodness of a layer's J blocks on view 0, `[B, J]`, and the block of each label, `[B]`."""
  if "groups" not in stats:
    return block_goodness(out, num_classes), label
  groups = stats["groups"]
  return block_goodness(out, groups.shape[1]), jnp.argmax(groups[label], axis=-1)


def own_and_others(goodness: Array, label: Array) -> tuple[Array, Array]:
  """The goodness of the label's block and the mean of the other blocks', each `[B]`."""
  own = jnp.take_along_axis(goodness, label[:, None], axis=1)[:, 0]
  return own, (jnp.sum(goodness, axis=1) - own) / max(1, goodness.shape[1] - 1)


def competition_metrics(goodness: Array, label: Array) -> Metrics:
  """What a layer reports about its competition `[B, J]`."""
  own, others = own_and_others(goodness, label)
  return {
    "goodness_pos": jnp.mean(own),
    "goodness_neg": jnp.mean(others),
    "train_accuracy": jnp.mean(jnp.argmax(goodness, -1) == label),
  }


def channelwise(
  config: ChannelwiseConfig, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """Channel-wise FF as a `Method`, on any network whose layers have a multiple of J channels.

  Goodness (section 3.2 of the paper): `G_j = mean over block j and space of out**2`, of what the
  layer emits, after its batch norm. Locality: strict; one pass.

  Deviations: batches are whole (a last partial one is dropped); the softmax head begins at zero;
  under schedule "staggered" statistics of frozen layers stand still by default (`frozen_stats`).

  Raises:
    ValueError: see `ChannelwiseConfig.check`; a layer's channels are no multiple of J.
  """
  del numerics  # nothing here multiplies
  config.check()

  def plain_view(image: Array) -> Array:
    return image

  def views(key: Key, batch: Batch, class_scores: Array | None) -> Array:
    del key, class_scores
    return batch.image[None]

  def init_layer(key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    del key
    competing = config.competing or (num_classes,)
    num_groups = competing[min(place.position, len(competing) - 1)]
    blockwise_mean_of_squares(out.out[0], num_groups)  # refuses channels that cannot be split
    if num_groups == num_classes:
      return {}, {}
    groups = jnp.asarray(config.groups(num_groups, num_classes))
    return {}, {"groups": jax.nn.one_hot(groups, num_groups)}  # [K, J]

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    del params, context, key
    g, label = compete(stats, out, label, num_classes)
    if config.loss == "cwc_clamped":
      rows = jax.vmap(losses.clamped_competitive_loss)(g, label)
    else:
      rows = losses.cross_entropy(g, label)
    loss = jnp.mean(rows)
    if config.loss in ("pvn", "cwg"):
      pvn = jnp.mean(losses.logistic_loss(*own_and_others(g, label), config.theta))
      weight = config.cwc_weight if config.loss == "cwg" else 0.0
      loss = weight * loss + (1 - weight) * pvn
    return loss, (stats, competition_metrics(g, label))

  def class_scores(params: PyTree, stats: PyTree, out: LayerOut) -> Array | None:
    del params
    return None if "groups" in stats else block_goodness(out, num_classes)

  def hand_on(out: LayerOut, *, train: bool, key: Key | None = None) -> Array | AffineCounts:
    del train, key
    return handed_on(out)

  return Method(
    name="channelwise",
    paper="A. Papachristodoulou et al., AAAI 2024, arXiv 2312.12668",
    locality="strict",
    single_pass=True,
    single_view=True,
    views=views,
    plain_view=plain_view,
    score_views=lambda image: image[None],
    init_layer=init_layer,
    hand_on=hand_on,
    local_loss=local_loss,
    class_scores=class_scores,
  )
