"""flax.linen layers as pure functions: dense, convolutional, locally connected.

A layer is the unit of locality. Its module takes activation, initialisers and products from outside
and returns a `LayerOut`; `from_linen` turns the module into a `fflax.types.Layer`.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.numerics import Numerics, float32
from fflax.networks.activations import Activation, identity, largest_count
from fflax.networks.batch_norm import batch_norm
from fflax.networks.initializers import INITIALIZERS, Initializer, get_initializer
from fflax.networks.products import ROUNDING, bind, conv_product, dense_product
from fflax.networks.units import POOLS, SAMPLING, Pool, activate
from fflax.types import Array, Between, Key, Layer, LayerOut, PyTree, Shown

DEFAULT_INITIALIZER = INITIALIZERS["lecun_normal"]
FLOAT32 = float32()


def from_linen(module: nn.Module, name: str) -> Layer:
  """Turns a module `(x, train) -> LayerOut` into a `Layer`.

  `stats` is the module's `batch_stats` collection, `{}` if it has none. `key` starts the module's
  streams "dropout", "sampling" and, in training, "rounding". Equal modules (but for their names)
  give an equal `spec`.

  Args:
    module: an unbound linen module, called as `module(x, train=...)`.
    name: unique within its network.

  Returns:
    The layer; its functions are pure.
  """
  module = module.clone(name=None)

  def init(key: Key, x: Shown) -> tuple[PyTree, PyTree]:
    variables = module.init({"params": key}, x, train=False)
    return variables["params"], variables.get("batch_stats", {})

  def apply(
    params: PyTree, stats: PyTree, x: Any, *, train: bool, key: Key | None = None
  ) -> tuple[LayerOut, PyTree]:
    variables = {"params": params}
    if stats:
      variables["batch_stats"] = stats
    rngs = None
    if key is not None:
      rngs = {"dropout": key, SAMPLING: jax.random.fold_in(key, 2)}
      if train:  # a sampled answer is rounded like any other: no example may set another's scale
        rngs[ROUNDING] = jax.random.fold_in(key, 1)
    mutable = ["batch_stats"] if train and stats else []
    out, changed = module.apply(variables, x, train=train, rngs=rngs, mutable=mutable)
    return out, changed.get("batch_stats", stats)

  counts, two_way = getattr(module, "emits", 0), getattr(module, "two_way", False)
  return Layer(name, init, apply, spec=module, counts=counts, two_way=two_way)


def counting(modules: Sequence[nn.Module]) -> list[nn.Module]:
  """A chain of modules, each told in its field `reads` what the one before it `emits`."""
  emitted = [0, *(getattr(module, "emits", 0) for module in modules[:-1])]
  return [
    module.clone(reads=reads) if hasattr(module, "reads") else module
    for module, reads in zip(modules, emitted, strict=True)
  ]


class DenseLayer(nn.Module):
  """Flattens `[B, ...]` to `[B, D]`, multiplies and applies the activation: `[B, features]`.

  Shown a `Between`, it adds a product with what is above, by a kernel of its own and without a
  second bias. Initialised without one, it has no such kernel.

  Attributes:
    features: number of units.
    activation: elementwise.
    use_bias: whether a bias is added.
    initializer: of kernel and bias.
    numerics: how it multiplies.
    reads: largest count of the input, where it comes from p-bits, see `Product`.
  """

  features: int
  activation: Activation = nn.relu
  use_bias: bool = True
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32
  reads: int = 0

  two_way = True

  @property
  def emits(self) -> int:
    """The largest count of `out`; 0 if it is real."""
    return largest_count(self.activation)

  @nn.compact
  def __call__(self, x: Shown, train: bool = False) -> LayerOut:
    """Maps `[B, ...]` to `LayerOut` of `[B, features]`."""
    del train
    below = x.below if isinstance(x, Between) else x
    pre = self._product("dense", below, self.reads, self.use_bias)
    if isinstance(x, Between):
      pre += self._product("top_down", x.above, 0, False)
    return activate(self, self.activation, pre)

  def _product(self, name: str, x: Array, reads: int, use_bias: bool) -> Array:
    size = math.prod(x.shape[1:])
    return nn.Dense(
      self.features,
      use_bias=use_bias,
      kernel_init=self.initializer.kernel,
      bias_init=functools.partial(self.initializer.bias, fan_in=size),
      dot_general_cls=dense_product(self.numerics, reads, self.emits),
      name=name,
    )(x.reshape(x.shape[0], size))


class ConvLayer(nn.Module):
  """Convolution, optional batch norm, activation, optional 2x2 pooling, on `[B, H, W, C]`.

  Attributes:
    features: number of output channels.
    activation: elementwise.
    kernel_size: height and width of the kernel.
    strides: of the convolution, equal in height and width.
    padding: "SAME" or "VALID".
    batch_norm: whether the pre-activation is normalised over batch and space, see
      `fflax.networks.batch_norm`.
    norm_groups: parts of the batch with statistics of their own.
    label_maps: last channels of the input that are handed on as they are, see `carrying`.
    pool: 2x2 pooling with stride 2 after the activation; an odd last row or column is dropped.
    use_bias: whether the convolution adds a bias.
    initializer: of kernel and bias.
    numerics: how it multiplies.
    reads: largest count of the input, where it comes from p-bits, see `Product`.

  Deviations:
    The running variance is the biased one, where PyTorch keeps the unbiased one.
  """

  features: int
  activation: Activation = nn.relu
  kernel_size: tuple[int, int] = (3, 3)
  strides: int = 1
  padding: str = "SAME"
  batch_norm: bool = False
  norm_groups: int = 1
  label_maps: int = 0
  pool: Pool | None = None
  use_bias: bool = True
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32
  reads: int = 0

  @property
  def emits(self) -> int:
    """The largest count of `out`; 0 if it is real, or an average of counts."""
    return 0 if self.pool == "avg" else largest_count(self.activation)

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, C]` to `LayerOut` of `[B, H', W', features]`.

    Raises:
      ValueError: if `x` is not `[B, H, W, C]`, or too small for the kernel or the pooling, or if
        `pool` is unknown.
    """
    require_image(x)
    if self.pool not in (None, *POOLS):
      raise ValueError(f"Unknown pool {self.pool!r}; allowed: {', '.join(POOLS)} or None.")
    pre = nn.Conv(
      self.features,
      self.kernel_size,
      strides=self.strides,
      padding=self.padding,
      use_bias=self.use_bias,
      kernel_init=self.initializer.kernel,
      bias_init=functools.partial(
        self.initializer.bias, fan_in=math.prod(self.kernel_size) * x.shape[-1]
      ),
      conv_general_dilated_cls=conv_product(self.numerics, self.reads, self.emits),
      name="conv",
    )(x)
    require_space(pre, 1, x, f"a {self.kernel_size} {self.padding} convolution")
    if self.batch_norm:
      pre = batch_norm(pre, train, self.norm_groups)
    if self.pool is not None:
      require_space(pre, 2, x, "2x2 pooling")
    return carrying(activate(self, self.activation, pre, self.pool), x, self.label_maps)


class LocalLayer(nn.Module):
  """Local receptive fields without weight sharing: `[B, H, W, C]` to `[B, H', W', features]`.

  Each point of the output grid sees its own field with its own kernel and bias. Parameters are
  `kernel` `[H' * W', field * field * C, features]` and `bias` `[H' * W', features]`.
  Paper: Hinton, "The Forward-Forward Algorithm", 2022, arXiv 2212.13345.

  Attributes:
    features: channels at each grid point.
    field: height and width of a receptive field.
    stride: distance of neighbouring fields. No padding.
    activation: elementwise.
    use_bias: whether a bias is added.
    initializer: of kernel and bias; fan_in is the size of one field.
    numerics: how it multiplies; its product is mapped over the grid (rounding noise, if any, is
      the same at all points).
  """

  features: int
  field: int
  stride: int = 1
  activation: Activation = nn.relu
  use_bias: bool = True
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, C]` to `LayerOut` of `[B, H', W', features]`.

    Raises:
      ValueError: if `x` is not `[B, H, W, C]`, or smaller than a field, or if the numerics carry
        a state of their gradients, which would have to be one for each point.
    """
    if self.numerics.gradient_state is not None:
      raise ValueError(f"locally connected layers cannot run in numerics {self.numerics.name!r}")
    # Not linen's ConvLocal: it multiplies without `dot_general`, and counts the grid as fan_in.
    del train
    require_image(x)
    require_space(x, self.field, x, f"a field of {self.field}x{self.field}")
    patches = _patches(x, self.field, self.stride)
    batch, height, width, size = patches.shape
    points = height * width

    def init_kernel(key: Key) -> Array:
      one = functools.partial(self.initializer.kernel, dtype=jnp.float32)
      return jax.vmap(lambda k: one(k, (size, self.features)))(jax.random.split(key, points))

    kernel = self.param("kernel", init_kernel)
    product = bind(self, self.numerics, "dot_general", (size, self.features))
    numbers = (((1,), (0,)), ((), ()))
    pre = jax.vmap(lambda x, w: product(x, w, numbers), in_axes=(1, 0), out_axes=1)(
      patches.reshape(batch, points, size), kernel
    )
    if self.use_bias:
      bias_init = functools.partial(self.initializer.bias, fan_in=size)
      pre += self.param("bias", bias_init, (points, self.features))[None]
    pre = pre.reshape(batch, height, width, self.features)
    return activate(self, self.activation, pre)


def aux_conv_layer(
  features: int = 256,
  *,
  kernel_size: int = 3,
  use_bias: bool = True,
  initializer: str | Initializer = "lecun_normal",
  numerics: Numerics | None = None,
  name: str = "aux_conv",
) -> Layer:
  """A convolution without nonlinearity, for auxiliary heads, `[B, H, W, C] -> [B, H, W, features]`.

  Args:
    features: number of output channels.
    kernel_size: height and width of the kernel.
    use_bias: whether the convolution adds a bias.
    initializer: of kernel and bias, see `fflax.networks.initializers`.
    numerics: how it multiplies; None is float32.
    name: of the layer.

  Returns:
    The layer; `pre`, `act` and `out` are the same array.

  Raises:
    ValueError: if `initializer` is unknown.
  """
  module = ConvLayer(
    features,
    activation=identity,
    kernel_size=(kernel_size, kernel_size),
    use_bias=use_bias,
    initializer=get_initializer(initializer),
    numerics=numerics or FLOAT32,
  )
  return from_linen(module, name)


def carrying(out: LayerOut, x: Array, label_maps: int) -> LayerOut:
  """`out`, beside which the last `label_maps` channels of the layer's input go to the next layer.

  They are constant maps (label style "channels"), so they fit maps of any size.

  Raises:
    ValueError: if `x` `[B, H, W, C]` has no other channels.
  """
  if not label_maps:
    return out
  if x.shape[-1] <= label_maps:
    raise ValueError(f"An input of shape {x.shape} cannot end with label_maps={label_maps} maps.")
  code = lax.stop_gradient(x[:, :1, :1, -label_maps:])
  return out._replace(carried=jnp.broadcast_to(code, (*out.out.shape[:-1], label_maps)))


def _patches(x: Array, field: int, stride: int) -> Array:
  """`[B, H', W', field * field * C]`: the receptive fields of `[B, H, W, C]`, without padding."""
  batch, channels = x.shape[0], x.shape[-1]
  rows, columns = (
    stride * jnp.arange((size - field) // stride + 1)[:, None] + jnp.arange(field)[None]
    for size in x.shape[1:3]
  )
  # [B, H', field, W', field, C]
  fields = x[:, rows][:, :, :, columns]
  shape = (batch, rows.shape[0], columns.shape[0], field * field * channels)
  return fields.transpose(0, 1, 3, 2, 4, 5).reshape(shape)


def require_image(x: Array) -> None:
  """Raises ValueError if `x` is not `[B, H, W, C]`."""
  if x.ndim != 4:
    raise ValueError(f"Got an input of shape {x.shape}, but this layer takes [B, H, W, C].")


def require_space(x: Array, smallest: int, layer_input: Array, what: str) -> None:
  """Raises ValueError if `x` `[B, H, W, C]` is smaller than `what` needs; names `layer_input`."""
  if min(x.shape[1:3]) < smallest:
    raise ValueError(
      f"An input of shape {layer_input.shape} is too small for {what}: "
      f"height and width there must be at least {smallest}."
    )
