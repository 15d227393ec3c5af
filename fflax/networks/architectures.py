"""Networks as tuples of layers, without heads: heads belong to the methods.

Every factory takes `numerics`, `activation` and `initializer` from outside; the rest are its own
options. Layers are numbered from 1.
"""

from collections.abc import Callable, Sequence
from typing import Any

from fflax.core.numerics import Numerics
from fflax.networks.activations import Activation
from fflax.networks.batch_norm import check_norm_groups
from fflax.networks.conv_blocks import check_label_maps, scaled
from fflax.networks.initializers import Initializer
from fflax.networks.layers import ConvLayer, DenseLayer, LocalLayer, counting, from_linen
from fflax.networks.units import Pool
from fflax.types import Layer, Network

NetworkFactory = Callable[..., Network]


def mlp(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  sizes: Sequence[int] = (1000, 1000, 1000),
  use_bias: bool = True,
) -> Network:
  """A multi-layer perceptron: `[B, ...]` to `[B, sizes[-1]]`.

  Args:
    numerics: how it multiplies.
    activation: of every layer.
    initializer: of every layer.
    sizes: units of each layer.
    use_bias: whether layers have biases.

  Raises:
    ValueError: if `sizes` is empty or holds anything but positive integers.
  """
  layers = [
    DenseLayer(size, activation, use_bias, initializer, numerics)
    for size in positive_integers("sizes", sizes)
  ]
  return _network("mlp", "dense", layers)


def small_cnn(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  channels: Sequence[int] = (32, 64, 64),
  pool_after: Sequence[int] = (1, 2),
  pool: Pool = "max",
  batch_norm: bool = False,
  norm_groups: int = 1,
  label_maps: int = 0,
) -> Network:
  """A few 3x3 convolutions, for images from 8x8 on: `[B, H, W, C]` to `[B, H', W', channels[-1]]`.

  Args:
    numerics: how it multiplies.
    activation: of every layer.
    initializer: of every layer.
    channels: output channels of each layer.
    pool_after: layers, counted from 1, that end with 2x2 pooling.
    pool: "max" or "avg".
    batch_norm: whether pre-activations are batch-normalised; then convolutions have no biases.
    norm_groups: parts of the batch with statistics of their own; 2, where a method shows positive
      and negative views, gives each its own.
    label_maps: K with label style "channels" and K classes: every layer's input ends with the label
      maps that the first one was shown, behind what the method hands on.

  Raises:
    ValueError: if `channels` is empty or holds anything but positive integers, if `pool_after`
      names a layer that is not there, if `pool` is unknown, or an option impossible.
  """
  check_norm_groups(norm_groups, batch_norm)
  check_label_maps(label_maps)
  return _conv_network(
    "small_cnn",
    numerics,
    activation,
    initializer,
    channels,
    pool_after,
    pool,
    batch_norm,
    norm_groups=norm_groups,
    label_maps=label_maps,
  )


def hff_cnn(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  width: float = 1.0,
  batch_norm: bool = True,
) -> Network:
  """The convolutional net of the hyperspherical method: 3x3, 128-256-256-512-512-512 channels.

  Batch norm before the activation, 2x2 max-pooling after layers 2, 4 and 6: `[B, H, W, C]` to
  `[B, H // 8, W // 8, 512 * width]`.

  Args:
    numerics: how it multiplies.
    activation: of every layer.
    initializer: of every layer.
    width: multiplies the channels (rounded, at least 1).
    batch_norm: whether pre-activations are batch-normalised; then convolutions have no biases.

  Raises:
    ValueError: if `width` is not a positive number.

  Deviations:
    The sizes are ours; the paper does not state its own. No bias stands before a batch norm, where
    it would have no effect.
  """
  channels = [scaled(width, c) for c in (128, 256, 256, 512, 512, 512)]
  return _conv_network(
    "hff_cnn", numerics, activation, initializer, channels, (2, 4, 6), "max", batch_norm
  )


def vgg8(
  *, numerics: Numerics, activation: Activation, initializer: Initializer, batch_norm: bool = False
) -> Network:
  """The VGG8 of DTG-FF: seven 3x3 convolutions, 128-256-256-512-512-512-512 channels, biases.

  2x2 average pooling after layers 2, 4, 5 and 6, for images from 16x16 on: `[B, H, W, C]` to
  `[B, H // 16, W // 16, 512]`. 9,148,416 parameters for three input channels.

  Args:
    numerics: how it multiplies.
    activation: of every layer.
    initializer: of every layer.
    batch_norm: whether pre-activations are batch-normalised; then convolutions have no biases.

  Deviations:
    The paper states 5.5 M parameters, which its own list of channels does not give.
  """
  channels = (128, 256, 256, 512, 512, 512, 512)
  return _conv_network(
    "vgg8", numerics, activation, initializer, channels, (2, 4, 5, 6), "avg", batch_norm
  )


def vgg11(
  *, numerics: Numerics, activation: Activation, initializer: Initializer, batch_norm: bool = False
) -> Network:
  """The VGG11 of DTG-FF: eight 3x3 convolutions, 64-128-256-256-512-512-512-512 channels, biases.

  2x2 average pooling after layers 1, 2, 4 and 6, for images from 16x16 on: `[B, H, W, C]` to
  `[B, H // 16, W // 16, 512]`. 9,220,480 parameters for three input channels.
  K. Simonyan, A. Zisserman, 2014, arXiv 1409.1556, configuration A, without its dense layers.

  Args:
    numerics: how it multiplies.
    activation: of every layer.
    initializer: of every layer.
    batch_norm: whether pre-activations are batch-normalised; then convolutions have no biases.

  Deviations:
    The original pools after the last layer, too; here no layer would see the result.
  """
  channels = (64, 128, 256, 256, 512, 512, 512, 512)
  return _conv_network(
    "vgg11", numerics, activation, initializer, channels, (1, 2, 4, 6), "avg", batch_norm
  )


def local_mlp(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  features: Sequence[int] = (128, 220, 512),
  fields: Sequence[int] = (10, 2, 2),
  strides: Sequence[int] = (6, 1, 1),
) -> Network:
  """Hinton's local receptive fields without weight sharing: `[B, H, W, C]` to `[B, H', W', C']`.

  With the default options and 28x28 images the grids are 4x4, 3x3 and 2x2.
  Paper: Hinton, "The Forward-Forward Algorithm", 2022, arXiv 2212.13345.

  Args:
    numerics: how it multiplies.
    activation: of every layer.
    initializer: of every layer.
    features: channels at each grid point, for each layer.
    fields: height and width of the receptive fields, in points of the grid below.
    strides: distance of neighbouring fields.

  Raises:
    ValueError: if the lists differ in length, are empty or hold anything but positive integers.
  """
  lists = [
    positive_integers(name, values)
    for name, values in (("features", features), ("fields", fields), ("strides", strides))
  ]
  if len({len(values) for values in lists}) > 1:
    raise ValueError(
      f"Got features={features!r}, fields={fields!r}, strides={strides!r}, but all three must "
      "have one entry for each layer."
    )
  layers = [
    LocalLayer(size, field, stride, activation, True, initializer, numerics)
    for size, field, stride in zip(*lists, strict=True)
  ]
  return _network("local_mlp", "local", layers)


def _conv_network(
  name: str,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  channels: Sequence[int],
  pool_after: Sequence[int],
  pool: Pool,
  batch_norm: bool,
  **options: Any,
) -> Network:
  channels = positive_integers("channels", channels)
  pool_after = pooling_layers(pool_after, len(channels))
  if pool not in ("max", "avg"):
    raise ValueError(f"Got pool={pool!r}; allowed: max, avg.")
  layers = [
    ConvLayer(
      features,
      activation,
      batch_norm=batch_norm,
      pool=pool if number in pool_after else None,
      use_bias=not batch_norm,
      initializer=initializer,
      numerics=numerics,
      **options,
    )
    for number, features in enumerate(channels, start=1)
  ]
  return _network(name, "conv", layers)


def _network(name: str, layer_name: str, modules: Sequence) -> Network:
  layers: list[Layer] = [
    from_linen(module, f"{layer_name}_{number}")
    for number, module in enumerate(counting(modules), start=1)
  ]
  return Network(name, tuple(layers))


def positive_integers(name: str, values: Any) -> tuple[int, ...]:
  """The values as a tuple, which configurations may hold as a list.

  Raises:
    ValueError: if they are anything but a list or tuple of positive integers, or empty.
  """
  valid = isinstance(values, tuple | list) and len(values) > 0
  if not valid or any(type(v) is not int or v < 1 for v in values):
    raise ValueError(f"Got {name}={values!r}, but it must be a list of positive integers.")
  return tuple(values)


def pooling_layers(pool_after: Any, depth: int) -> tuple[int, ...]:
  """The numbers of the layers that end with pooling, as a tuple; none are allowed.

  Raises:
    ValueError: if they are not numbers from 1 to `depth`.
  """
  pool_after = () if pool_after in ((), []) else positive_integers("pool_after", pool_after)
  if set(pool_after) - set(range(1, depth + 1)):
    raise ValueError(f"Got pool_after={pool_after!r}, but layers are numbered from 1 to {depth}.")
  return pool_after
