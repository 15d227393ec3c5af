"""ResNet-18 as a sequence of layers: the residual block is the unit of locality.

Paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", 2016, arXiv 1512.03385.
"""

import functools
from typing import Any

import flax.linen as nn

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
from fflax.networks.units import activate
from fflax.types import Array, LayerOut, Network


class BasicBlock(nn.Module):
  """`act(bn2(conv2(act(bn1(conv1(x))))) + shortcut(x))`: `[B, H, W, C]` to `[B, H', W', features]`.

  The shortcut is the identity, or a 1x1 convolution with batch norm where the shape changes.

  Attributes:
    features: number of output channels.
    activation: elementwise.
    strides: of the first convolution and of the shortcut.
    label_maps: last channels of the input that the shortcut does not see, and that are handed on as
      they are, see `carrying`.
    batch_norm, norm_groups: see `ConvNorm`.
    initializer: of kernels and biases.
    numerics: how it multiplies.
  """

  features: int
  activation: Activation = nn.relu
  strides: int = 1
  label_maps: int = 0
  batch_norm: bool = True
  norm_groups: int = 1
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, C]` to `LayerOut`; `pre` is the sum of both branches.

    Raises:
      ValueError: if `x` is not `[B, H, W, C]`.
    """
    require_image(x)
    conv = functools.partial(
      ConvNorm,
      self.features,
      batch_norm=self.batch_norm,
      norm_groups=self.norm_groups,
      initializer=self.initializer,
      numerics=self.numerics,
    )
    inner = conv(strides=self.strides, name="first")(x, train)
    pre = conv(name="second")(activate(self, self.activation, inner).act, train)
    skip = x[..., : x.shape[-1] - self.label_maps]
    if self.strides != 1 or skip.shape[-1] != self.features:
      skip = conv(kernel_size=1, strides=self.strides, name="shortcut")(skip, train)
    pre = pre + skip
    # Without what would have to speak of all that the layer drew.
    out = activate(self, self.activation, pre)._replace(log_prob=None, counts=None)
    return carrying(out, x, self.label_maps)


def resnet18(
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
  """ResNet-18: a stem and eight basic blocks, `[B, H, W, C]` to `[B, H', W', 512 * width]`.

  11,168,832 parameters for three input channels with the stem "cifar", 11,176,512 with "imagenet".

  Args:
    numerics: how it multiplies.
    activation: of every layer; the paper's is "relu".
    initializer: of every layer.
    stem: "cifar" (3x3, stride 1) or "imagenet" (7x7, stride 2, then 3x3 max-pooling, stride 2).
    width: multiplies the channels (rounded, at least 1).
    batch_norm: False puts biases in the place of batch norms.
    norm_groups: parts of the batch with statistics of their own; 2, where a method shows positive
      and negative views, gives each its own.
    label_maps: K with label style "channels" and K classes: every block's input ends with the label
      maps that the stem was shown, behind what the method hands on; the shortcut does not see them.
    granularity: what a layer is: "block", or "stage" (the two blocks of one width).

  Raises:
    ValueError: if an option is unknown or impossible.
  """
  check_stem(stem)
  check_norm_groups(norm_groups, batch_norm)
  check_label_maps(label_maps)
  shared: dict[str, Any] = {
    "batch_norm": batch_norm,
    "norm_groups": norm_groups,
    "initializer": initializer,
    "numerics": numerics,
  }
  first = ConvNormLayer(
    scaled(width, 64),
    activation,
    kernel_size=3 if stem == "cifar" else 7,
    strides=1 if stem == "cifar" else 2,
    pool=stem == "imagenet",
    label_maps=label_maps,
    **shared,
  )
  stages = [
    [
      BasicBlock(scaled(width, channels), activation, strides, label_maps, **shared)
      for strides in (1 if channels == 64 else 2, 1)
    ]
    for channels in (64, 128, 256, 512)
  ]
  return network_of_blocks("resnet18", first, stages, None, granularity)
