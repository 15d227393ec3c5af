"""CFSE: convolutional layers whose channels are divided among the classes.

A block separates and extracts features: an ordinary convolution that mixes all channels, then a
grouped one in which the channels of a class read that class's channels only, and a pool.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import flax.linen as nn
import jax.numpy as jnp

from fflax.core.absorption import AffineCounts, dense
from fflax.core.numerics import Numerics
from fflax.networks.activations import Activation, largest_count
from fflax.networks.architectures import pooling_layers, positive_integers
from fflax.networks.initializers import Initializer
from fflax.networks.layers import (
  DEFAULT_INITIALIZER,
  FLOAT32,
  counting,
  from_linen,
  require_image,
  require_space,
)
from fflax.networks.products import absorbing, conv_product, told
from fflax.networks.substitutes import SubstituteNorm
from fflax.networks.units import Normed, SquareNorm, activate
from fflax.types import Array, LayerOut, Network

LossInput = Literal["post_norm", "pre_norm"]
LOSS_INPUTS = ("post_norm", "pre_norm")


def _batch_norm(x: Array, square: Array | None, train: bool, affine: bool, name: str) -> Normed:
  if square is not None:
    return SquareNorm(epsilon=1e-4, affine=affine, name=name)(x, square, train)
  norm = nn.BatchNorm(
    use_running_average=not train,
    momentum=0.9,
    epsilon=1e-4,
    use_scale=affine,
    use_bias=affine,
    name=name,
  )
  return Normed(norm(x), None)


def _batch_frozen(x: Array, square: Array | None, train: bool, affine: bool, name: str) -> Normed:
  norm = SquareNorm(epsilon=1e-4, affine=affine, frozen=True, name=name)
  normed = norm(x, x * x if square is None else square, train)
  return normed if square is not None else normed._replace(square=None)


def _no_norm(x: Array, square: Array | None, train: bool, affine: bool, name: str) -> Normed:
  del train, affine, name
  return Normed(x, square, jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1]))


def _gain(x: Array, square: Array | None, train: bool, affine: bool, name: str) -> Normed:
  return SubstituteNorm(scale=affine, name=name)(x, square, train)


def _bias(x: Array, square: Array | None, train: bool, affine: bool, name: str) -> Normed:
  if not affine:
    return _no_norm(x, square, train, affine, name)
  return SubstituteNorm(gain=False, scale=False, bias=True, name=name)(x, square, train)


def _gain_bias(x: Array, square: Array | None, train: bool, affine: bool, name: str) -> Normed:
  return SubstituteNorm(scale=affine, bias=affine, name=name)(x, square, train)


NORMS: Mapping[str, Callable[[Array, Array | None, bool, bool, str], Normed]] = MappingProxyType(
  {
    "batch": _batch_norm,
    "batch_frozen": _batch_frozen,
    "gain": _gain,
    "bias": _bias,
    "gain_bias": _gain_bias,
    "none": _no_norm,
  }
)
"""Normalisations of `[B, H, W, C]` by name, inside a module.

They map `(x, square, train, affine, name)` to `Normed`; for a square see `LayerOut`.
`batch`: over batch and space, running averages with momentum 0.9, epsilon 1e-4; `batch_frozen`: the
same, but no gradient passes the batch's statistics. Without statistics
of the batch in the forward pass: `gain`, division by a running root mean square (momentum, epsilon
as above) and a learned scale; `bias`, a learned offset alone; `gain_bias`, all three. What is
learned is there if `affine`.
"""


class ChannelwiseLayer(nn.Module):
  """3x3 convolution, activation, optional 2x2 max-pooling and a norm, on `[B, H, W, C]`.

  Nothing stands after the norm: `out` is signed, and the goodness of a class is read from it.
  Paper: Papachristodoulou et al., "Convolutional Channel-Wise Competitive Learning for the
  Forward-Forward Algorithm", AAAI 2024, arXiv 2312.12668; order and constants as in its code.

  Attributes:
    features: number of output channels.
    groups: of the convolution; neighbouring channels belong together.
    pool: whether the activity is pooled before the norm.
    norm: of the output, in `NORMS`, with a learned scale and shift.
    input_norm: of the input, in `NORMS`, without them.
    activation: elementwise.
    initializer: of kernel and bias.
    numerics: how it multiplies.
    reads: largest count of the input, where it comes from p-bits, see `Product`. A norm between
      them, here or in the layer below, is absorbed: the product is one of the counts, with a bias
      map beside it.

  Deviations:
    The running variance is the biased one, where PyTorch keeps the unbiased one.
  """

  features: int
  groups: int = 1
  pool: bool = False
  norm: str = "batch"
  input_norm: str = "none"
  activation: Activation = nn.relu
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32
  reads: int = 0

  @property
  def emits(self) -> int:
    """The largest count behind `out`; 0 if it is real."""
    return largest_count(self.activation)

  @nn.compact
  def __call__(self, x: Array | AffineCounts, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, C]` to `LayerOut` of `[B, H, W, features]`; `out` is halved if pooled.

    An affine map of counts is absorbed into the kernel and a bias map, and the product is one of
    the counts (`fflax.core.absorption`).

    Raises:
      ValueError: if `x` is not `[B, H, W, C]`, if its channels cannot be divided into the groups,
        or if it is too small to be pooled.
    """
    counted, x = x if isinstance(x, AffineCounts) else None, dense(x)
    require_image(x)
    if x.shape[-1] % self.groups:
      raise ValueError(
        f"An input of shape {x.shape} has channels that cannot be divided into {self.groups} "
        "groups."
      )
    if self.pool:
      require_space(x, 2, x, "2x2 pooling")
    square = None if counted is None else x * x
    normed = NORMS[self.input_norm](x, square, train, False, "input_norm")
    product: dict[str, Any]
    if counted is None:
      product = {"conv_general_dilated_cls": conv_product(self.numerics, self.reads, self.emits)}
      x = normed.out
    else:
      assert normed.scale is not None and normed.shift is not None
      scale = counted.scale[0] * normed.scale
      shift = counted.shift[0] * normed.scale + normed.shift
      product = {"conv_general_dilated": absorbing(self, scale, shift)}
      x = counted.counts
    pre = nn.Conv(
      self.features,
      (3, 3),
      feature_group_count=self.groups,
      kernel_init=self.initializer.kernel,
      bias_init=functools.partial(self.initializer.bias, fan_in=9 * x.shape[-1] // self.groups),
      name="conv",
      **product,
    )(x)
    units = activate(self, self.activation, pre, "max" if self.pool else None)
    normed = NORMS[self.norm](units.out, units.square, train, True, "norm")
    affine = told(self.numerics, units, normed.scale, normed.shift)
    return units._replace(out=normed.out, square=normed.square, affine=affine)


def cfse(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  channels: Sequence[int] = (20, 80, 240, 480),
  groups: Sequence[int] = (1, 10, 1, 10),
  pool_after: Sequence[int] = (2, 4),
  norm: str = "batch",
  loss_input: LossInput = "post_norm",
) -> Network:
  """Channel-wise feature separators and extractors: `[B, H, W, C]` to `[B, H', W', channels[-1]]`.

  The default is the paper's net for ten classes: 280,560 parameters for 28x28x1, 280,920 for
  32x32x3. For CIFAR-100: channels 60-120-240-400-800-1600, groups 1-20-1-20-1-100, pools after 2, 4
  and 6. With groups of 1 everywhere it is the paper's control, "FF-CNN".

  Args:
    numerics: how it multiplies.
    activation: of every layer.
    initializer: of every layer.
    channels: output channels of each layer, to be divided among the classes.
    groups: of each layer's convolution: 1, or the number of classes that its channels belong to.
    pool_after: layers, counted from 1, that end with 2x2 max-pooling.
    norm: in `NORMS`.
    loss_input: what a layer emits, and so its loss sees. "post_norm": its normalised activity, with
      a learned scale and shift; "pre_norm": its activity, which the next layer normalises without
      them (no layer normalises the image).

  Raises:
    ValueError: if a name is unknown, if the lists do not fit each other, or if channels cannot be
      divided into the groups.
  """
  channels, groups = positive_integers("channels", channels), positive_integers("groups", groups)
  pool_after = pooling_layers(pool_after, len(channels))
  if len(channels) != len(groups):
    raise ValueError(
      f"Got channels={channels!r} and groups={groups!r}, but both must have one entry for each "
      "layer."
    )
  if norm not in NORMS:
    raise ValueError(f"Got norm={norm!r}; allowed: {', '.join(NORMS)}.")
  if loss_input not in LOSS_INPUTS:
    raise ValueError(f"Got loss_input={loss_input!r}; allowed: {', '.join(LOSS_INPUTS)}.")
  if norm in ("bias", "gain_bias") and loss_input == "pre_norm":
    raise ValueError(
      f"Got norm={norm!r} with loss_input='pre_norm', but an offset is learned only where the loss "
      "sees it: use 'post_norm'."
    )
  modules: list[ChannelwiseLayer] = []
  inputs = (groups[0], *channels)  # those of the image are checked when there is one
  for inside, outside, divisor in zip(inputs, channels, groups, strict=False):
    number = len(modules) + 1
    if inside % divisor or outside % divisor:
      raise ValueError(
        f"Got channels={channels!r} and groups={groups!r}, but the groups of layer {number} must "
        "divide the channels that it reads and those that it emits."
      )
    module = ChannelwiseLayer(
      outside,
      divisor,
      pool=number in pool_after,
      norm=norm if loss_input == "post_norm" else "none",
      input_norm=norm if loss_input == "pre_norm" and modules else "none",
      activation=activation,
      initializer=initializer,
      numerics=numerics,
    )
    modules.append(module)
  layers = [
    from_linen(module, f"cfse_{number}") for number, module in enumerate(counting(modules), start=1)
  ]
  return Network("cfse", tuple(layers))
