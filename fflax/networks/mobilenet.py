"""MobileNet-V2 and EfficientNet-B0 as sequences of layers: the inverted-residual block is a layer.

Papers: Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", 2018, arXiv
1801.04381; Tan, Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks",
2019, arXiv 1905.11946.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp

from fflax.core.numerics import Numerics
from fflax.networks.activations import Activation
from fflax.networks.batch_norm import check_norm_groups
from fflax.networks.conv_blocks import (
  ConvNorm,
  ConvNormLayer,
  check_label_maps,
  check_stem,
  network_of_blocks,
  scaled,
)
from fflax.networks.initializers import Initializer
from fflax.networks.layers import DEFAULT_INITIALIZER, FLOAT32, carrying, require_image
from fflax.networks.products import dense_product
from fflax.networks.units import activate
from fflax.types import Array, LayerOut, Network


class InvertedResidual(nn.Module):
  """Expand (1x1), depthwise, squeeze-excite, project (1x1): `[B, H, W, C]` to `[B, H', W', F]`.

  Each convolution has a batch norm; an activation follows all but the projection, which is linear.
  The input is added where the shape does not change.

  Attributes:
    features: number of output channels.
    activation: after the expansion, after the depthwise convolution and inside squeeze-excite.
    expansion: hidden channels for each input channel; with 1 there is no expanding convolution.
    kernel_size: of the depthwise convolution.
    strides: of the depthwise convolution.
    label_maps: last channels of the input that the skip does not see and that are not expanded, and
      that are handed on as they are, see `carrying`.
    squeeze_excite: whether hidden channels are scaled by a function of their means.
    batch_norm, norm_groups: see `ConvNorm`.
    initializer: of kernels and biases.
    numerics: how it multiplies.
  """

  features: int
  activation: Activation = nn.relu6
  expansion: int = 6
  kernel_size: int = 3
  strides: int = 1
  label_maps: int = 0
  squeeze_excite: bool = False
  batch_norm: bool = True
  norm_groups: int = 1
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, C]` to `LayerOut`; `pre`, `act` and `out` are the same array.

    Raises:
      ValueError: if `x` is not `[B, H, W, C]`.
    """
    require_image(x)
    channels = x.shape[-1] - self.label_maps
    hidden = x.shape[-1] if self.expansion == 1 else self.expansion * channels
    conv = functools.partial(
      ConvNorm,
      batch_norm=self.batch_norm,
      norm_groups=self.norm_groups,
      initializer=self.initializer,
      numerics=self.numerics,
    )
    h = x
    if self.expansion != 1:
      h = activate(self, self.activation, conv(hidden, 1, name="expand")(h, train)).act
    depthwise = conv(hidden, self.kernel_size, self.strides, depthwise=True, name="depthwise")
    h = activate(self, self.activation, depthwise(h, train)).act
    if self.squeeze_excite:
      h = h * self._gate(h, max(1, channels // 4))
    out = conv(self.features, 1, name="project")(h, train)
    if self.strides == 1 and channels == self.features:
      out = out + x[..., :channels]
    return carrying(LayerOut(out, out, out), x, self.label_maps)

  def _gate(self, h: Array, reduced: int) -> Array:
    """Squeeze-excite: one factor in (0, 1) for each example and channel, `[B, 1, 1, C]`."""
    hidden = h.shape[-1]

    def dense(features: int, fan_in: int, name: str) -> nn.Dense:
      return nn.Dense(
        features,
        kernel_init=self.initializer.kernel,
        bias_init=functools.partial(self.initializer.bias, fan_in=fan_in),
        dot_general_cls=dense_product(self.numerics),
        name=name,
      )

    mean = jnp.mean(h, axis=(1, 2))
    squeezed = activate(self, self.activation, dense(reduced, hidden, "squeeze")(mean)).act
    return nn.sigmoid(dense(hidden, reduced, "excite")(squeezed))[:, None, None]


class _Row(NamedTuple):
  """One line of the papers' tables: `repeats` blocks, the first with the stride."""

  expansion: int
  features: int
  repeats: int
  strides: int
  kernel_size: int = 3


_MOBILENET_V2 = (
  _Row(1, 16, 1, 1),
  _Row(6, 24, 2, 2),
  _Row(6, 32, 3, 2),
  _Row(6, 64, 4, 2),
  _Row(6, 96, 3, 1),
  _Row(6, 160, 3, 2),
  _Row(6, 320, 1, 1),
)
_EFFICIENTNET_B0 = (
  _Row(1, 16, 1, 1),
  _Row(6, 24, 2, 2),
  _Row(6, 40, 2, 2, 5),
  _Row(6, 80, 3, 2),
  _Row(6, 112, 3, 1, 5),
  _Row(6, 192, 4, 2, 5),
  _Row(6, 320, 1, 1),
)


def mobilenet_v2(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  stem: str = "cifar",
  width: float = 1.0,
  batch_norm: bool = True,
  norm_groups: int = 1,
  label_maps: int = 0,
  granularity: str = "block",
) -> Network:
  """MobileNet-V2: a stem, 17 blocks, a 1x1 top, `[B, H, W, C]` to `[B, H', W', 1280 * width]`.

  2,223,872 parameters for three input channels.

  Args:
    numerics: how it multiplies.
    activation: of stem, top and inside the blocks; the paper's is "relu6".
    initializer: of every layer.
    stem: "cifar" (strides of 1 in the stem and in block 2, for 32x32 images) or "imagenet" (2).
    width: multiplies the channels (rounded, at least 1).
    batch_norm: False puts biases in the place of batch norms.
    norm_groups: parts of the batch with statistics of their own; 2, where a method shows positive
      and negative views, gives each its own.
    label_maps: K with label style "channels" and K classes: every block's input ends with the label
      maps that the stem was shown, behind what the method hands on; skips do not see them.
    granularity: what a layer is: "block", or "stage" (all blocks of one width).

  Raises:
    ValueError: if an option is unknown or impossible.
  """
  check_stem(stem)
  check_norm_groups(norm_groups, batch_norm)
  check_label_maps(label_maps)
  table = list(_MOBILENET_V2)
  if stem == "cifar":
    table[1] = table[1]._replace(strides=1)
  shared: dict[str, Any] = {
    "batch_norm": batch_norm,
    "norm_groups": norm_groups,
    "label_maps": label_maps,
    "initializer": initializer,
    "numerics": numerics,
  }
  return _inverted("mobilenet_v2", table, activation, stem, width, granularity, False, shared)


def efficientnet_b0(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  stem: str = "cifar",
  width: float = 1.0,
  batch_norm: bool = True,
  norm_groups: int = 1,
  label_maps: int = 0,
  granularity: str = "block",
) -> Network:
  """EfficientNet-B0: a stem, 16 blocks, a 1x1 top, `[B, H, W, C]` to `[B, H', W', 1280 * width]`.

  4,007,548 parameters for three input channels.

  Args:
    numerics: how it multiplies.
    activation: of stem, top and inside the blocks; the paper's is "silu".
    initializer: of every layer.
    stem: "cifar" (stride 1, for 32x32 images) or "imagenet" (stride 2).
    width: multiplies the channels (rounded, at least 1).
    batch_norm: False puts biases in the place of batch norms.
    norm_groups: parts of the batch with statistics of their own; 2, where a method shows positive
      and negative views, gives each its own.
    label_maps: K with label style "channels" and K classes: every block's input ends with the label
      maps that the stem was shown, behind what the method hands on; skips do not see them.
    granularity: what a layer is: "block", or "stage" (all blocks of one width).

  Raises:
    ValueError: if an option is unknown or impossible.

  Deviations:
    No dropout and no stochastic depth.
  """
  check_stem(stem)
  check_norm_groups(norm_groups, batch_norm)
  check_label_maps(label_maps)
  shared: dict[str, Any] = {
    "batch_norm": batch_norm,
    "norm_groups": norm_groups,
    "label_maps": label_maps,
    "initializer": initializer,
    "numerics": numerics,
  }
  return _inverted(
    "efficientnet_b0", _EFFICIENTNET_B0, activation, stem, width, granularity, True, shared
  )


def _inverted(
  name: str,
  table: Sequence[_Row],
  activation: Activation,
  stem: str,
  width: float,
  granularity: str,
  squeeze_excite: bool,
  shared: dict[str, Any],
) -> Network:
  block: Callable[..., nn.Module] = functools.partial(
    InvertedResidual, squeeze_excite=squeeze_excite, **shared
  )
  stages = [
    [
      block(
        scaled(width, row.features),
        activation,
        row.expansion,
        row.kernel_size,
        row.strides if number == 0 else 1,
      )
      for number in range(row.repeats)
    ]
    for row in table
  ]
  first = ConvNormLayer(
    scaled(width, 32), activation, strides=1 if stem == "cifar" else 2, **shared
  )
  top = ConvNormLayer(scaled(width, 1280), activation, kernel_size=1, **{**shared, "label_maps": 0})
  return network_of_blocks(name, first, stages, top, granularity)
