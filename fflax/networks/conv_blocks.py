"""What the networks of convolutional blocks share: convolution with batch norm, stages."""

import functools
from collections.abc import Sequence
from typing import Any

import flax.linen as nn

from fflax.core.labels import with_carried
from fflax.core.numerics import Numerics
from fflax.networks.activations import Activation
from fflax.networks.batch_norm import batch_norm
from fflax.networks.initializers import Initializer
from fflax.networks.layers import (
  DEFAULT_INITIALIZER,
  FLOAT32,
  carrying,
  from_linen,
  require_image,
)
from fflax.networks.products import conv_product, dense_product
from fflax.networks.units import activate
from fflax.types import Array, LayerOut, Network

GRANULARITIES = ("block", "stage")
STEMS = ("cifar", "imagenet")


class ConvNorm(nn.Module):
  """A convolution and its batch norm, without a nonlinearity: `[B, H, W, C]` to `[B, H', W', F]`.

  Batch norm is over batch and space, see `fflax.networks.batch_norm`. A 1x1 convolution is a dense
  product over the channels, the same sum.

  Attributes:
    features: number of output channels; of the input, if `depthwise`.
    kernel_size: height and width of the kernel.
    strides: equal in height and width.
    depthwise: whether every channel has a kernel of its own.
    batch_norm: False puts a bias in the place of the batch norm.
    norm_groups: parts of the batch with statistics of their own.
    initializer: of kernel and bias.
    numerics: how it multiplies.

  Deviations:
    Padding is "SAME": on maps of even size a stride of 2 pads at the end only, where PyTorch pads
    both sides.
  """

  features: int
  kernel_size: int = 3
  strides: int = 1
  depthwise: bool = False
  batch_norm: bool = True
  norm_groups: int = 1
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """Convolves and normalises `x`."""
    fan_in = self.kernel_size**2 * (1 if self.depthwise else x.shape[-1])
    shared: dict[str, Any] = {
      "use_bias": not self.batch_norm,
      "kernel_init": self.initializer.kernel,
      "bias_init": functools.partial(self.initializer.bias, fan_in=fan_in),
      "name": "conv",
    }
    if self.kernel_size == 1 and not self.depthwise:
      x = x[:, :: self.strides, :: self.strides]
      x = nn.Dense(self.features, dot_general_cls=dense_product(self.numerics), **shared)(x)
    else:
      x = nn.Conv(
        self.features,
        (self.kernel_size, self.kernel_size),
        strides=self.strides,
        feature_group_count=x.shape[-1] if self.depthwise else 1,
        conv_general_dilated_cls=conv_product(self.numerics),
        **shared,
      )(x)
    if self.batch_norm:
      x = batch_norm(x, train, self.norm_groups)
    return x


class ConvNormLayer(nn.Module):
  """`ConvNorm`, activation and optional 3x3 max-pooling with stride 2, as a layer: stems and tops.

  Attributes:
    features, kernel_size, strides, batch_norm, norm_groups, initializer, numerics: see `ConvNorm`.
    activation: elementwise.
    pool: whether `out` is `act`, pooled.
    label_maps: last channels of the input that are handed on as they are, see `carrying`.
  """

  features: int
  activation: Activation = nn.relu
  kernel_size: int = 3
  strides: int = 1
  pool: bool = False
  label_maps: int = 0
  batch_norm: bool = True
  norm_groups: int = 1
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, C]` to `LayerOut` of `[B, H', W', features]`.

    Raises:
      ValueError: if `x` is not `[B, H, W, C]`.
    """
    require_image(x)
    pre = ConvNorm(
      self.features,
      self.kernel_size,
      self.strides,
      batch_norm=self.batch_norm,
      norm_groups=self.norm_groups,
      initializer=self.initializer,
      numerics=self.numerics,
      name="conv_norm",
    )(x, train)
    units = activate(self, self.activation, pre)
    if self.pool:
      if units.square is not None:
        raise ValueError("The pooled stem has no p-bits: their 3x3 maximum is not implemented.")
      out = nn.max_pool(units.act, (3, 3), strides=(2, 2), padding="SAME")
      units = LayerOut(pre, units.act, out)
    return carrying(units, x, self.label_maps)


class Stage(nn.Module):
  """Blocks in a row as one layer: gradients flow between them; the last one answers for all.

  Maps that blocks carry go from one to the next as between layers.

  Attributes:
    blocks: modules `(x, train) -> LayerOut`.
  """

  blocks: tuple[nn.Module, ...]

  @property
  def activation(self) -> Activation:
    """Of the blocks."""
    return self.blocks[0].activation

  @property
  def numerics(self) -> Numerics:
    """Of the blocks."""
    return self.blocks[0].numerics

  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, ...]` to the `LayerOut` of the last block."""
    for block in self.blocks[:-1]:
      below = block(x, train)
      x = with_carried(below.out, below.carried)
    return self.blocks[-1](x, train)


def scaled(width: float, channels: int) -> int:
  """`width * channels`, rounded, at least 1.

  Raises:
    ValueError: if `width` is not a positive number.
  """
  if isinstance(width, bool) or not isinstance(width, int | float) or not 0 < width < float("inf"):
    raise ValueError(f"Got width={width!r}, but width must be a positive number.")
  return max(1, round(width * channels))


def network_of_blocks(
  name: str,
  stem: nn.Module,
  stages: Sequence[Sequence[nn.Module]],
  top: nn.Module | None,
  granularity: str,
) -> Network:
  """A network of a stem, blocks and an optional top; each is a layer, or each stage is.

  Args:
    name: of the network.
    stem: the first layer.
    stages: blocks of one width each.
    top: the last layer, if there is one.
    granularity: "block" or "stage".

  Raises:
    ValueError: if `granularity` is unknown.
  """
  if granularity not in GRANULARITIES:
    raise ValueError(f"Got granularity={granularity!r}; allowed: {', '.join(GRANULARITIES)}.")
  if granularity == "stage":
    units: list[nn.Module] = [Stage(tuple(blocks)) for blocks in stages]
  else:
    units = [block for blocks in stages for block in blocks]
  named = [("stem", stem), *((f"{granularity}_{n}", unit) for n, unit in enumerate(units, start=1))]
  if top is not None:
    named.append(("top", top))
  return Network(name, tuple(from_linen(module, layer_name) for layer_name, module in named))


def check_label_maps(label_maps: int) -> None:
  """Raises ValueError unless `label_maps` is a number of maps."""
  if type(label_maps) is not int or label_maps < 0:
    raise ValueError(f"Got label_maps={label_maps!r}, but it must be 0 or the number of classes.")


def check_stem(stem: str) -> None:
  """Raises ValueError if there is no such stem."""
  if stem not in STEMS:
    raise ValueError(f"Got stem={stem!r}; allowed: {', '.join(STEMS)}.")
