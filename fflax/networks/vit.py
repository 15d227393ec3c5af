"""A small vision transformer as a sequence of layers: the block is the unit of locality.

Paper: Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at
Scale", 2021, arXiv 2010.11929.
"""

import functools

import flax.linen as nn

from fflax.core.numerics import Numerics
from fflax.networks.activations import Activation
from fflax.networks.initializers import Initializer
from fflax.networks.layers import DEFAULT_INITIALIZER, FLOAT32, from_linen, require_image
from fflax.networks.products import dense_product
from fflax.networks.units import activate
from fflax.types import Array, LayerOut, Network


def _dense(features: int, fan_in: int, module: nn.Module, name: str) -> nn.Dense:
  """A product with bias over the last axis, in the module's numerics."""
  initializer: Initializer = module.initializer
  return nn.Dense(
    features,
    kernel_init=initializer.kernel,
    bias_init=functools.partial(initializer.bias, fan_in=fan_in),
    dot_general_cls=dense_product(module.numerics),
    name=name,
  )


class PatchEmbedding(nn.Module):
  """A linear map of each patch plus a learned vector for its place: `[B, H, W, C]` to tokens.

  Tokens are `[B, H / p, W / p, features]`. Parameter `position` `[H / p, W / p, features]` starts
  as N(0, 0.02^2), as in the paper.

  Attributes:
    features: size of a token.
    patch_size: p, height and width of a patch.
    initializer: of kernel and bias.
    numerics: how it multiplies.
  """

  features: int
  patch_size: int = 4
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, C]` to `LayerOut`; `pre`, `act` and `out` are the same array.

    Raises:
      ValueError: if `x` is not `[B, H, W, C]`, or patches do not fill it.
    """
    del train
    require_image(x)
    batch, height, width, channels = x.shape
    p = self.patch_size
    if height % p or width % p:
      raise ValueError(f"An input of shape {x.shape} cannot be cut into patches of {p}x{p}.")
    rows, columns = height // p, width // p
    patches = x.reshape(batch, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5)
    size = p * p * channels
    out = _dense(self.features, size, self, "embed")(patches.reshape(batch, rows, columns, size))
    place = (rows, columns, self.features)
    out = out + self.param("position", nn.initializers.normal(0.02), place)[None]
    return LayerOut(out, out, out)


class TransformerBlock(nn.Module):
  """Pre-norm self-attention and MLP, each added to its input: tokens `[B, H, W, D]` to the same.

  Attributes:
    heads: of the attention.
    activation: inside the MLP.
    mlp_ratio: hidden units of the MLP for each feature of a token.
    initializer: of kernels and biases.
    numerics: how the four projections multiply. The products of queries with keys and of weights
      with values are float32: neither operand is a parameter.
  """

  heads: int
  activation: Activation = nn.gelu
  mlp_ratio: int = 4
  initializer: Initializer = DEFAULT_INITIALIZER
  numerics: Numerics = FLOAT32

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> LayerOut:
    """Maps `[B, H, W, D]` to `LayerOut`; `pre`, `act` and `out` are the same array.

    Raises:
      ValueError: if `x` is not `[B, H, W, D]`, or `heads` does not divide D.
    """
    del train
    require_image(x)
    batch, rows, columns, size = x.shape
    if size % self.heads:
      raise ValueError(f"{self.heads} heads do not divide tokens of {size} features.")
    tokens = x.reshape(batch, rows * columns, size)

    normed = nn.LayerNorm(epsilon=1e-6, name="attention_norm")(tokens)
    projected = _dense(3 * size, size, self, "query_key_value")(normed)
    heads = projected.reshape(batch, rows * columns, 3, self.heads, size // self.heads)
    query, key, value = (heads[:, :, i] for i in range(3))
    mixed = nn.dot_product_attention(query, key, value).reshape(tokens.shape)
    tokens = tokens + _dense(size, size, self, "attention_out")(mixed)

    hidden = self.mlp_ratio * size
    normed = nn.LayerNorm(epsilon=1e-6, name="mlp_norm")(tokens)
    units = activate(self, self.activation, _dense(hidden, size, self, "mlp_in")(normed)).act
    tokens = tokens + _dense(size, hidden, self, "mlp_out")(units)
    out = tokens.reshape(x.shape)
    return LayerOut(out, out, out)


def vit(
  *,
  numerics: Numerics,
  activation: Activation,
  initializer: Initializer,
  patch_size: int = 4,
  features: int = 192,
  depth: int = 6,
  heads: int = 3,
  mlp_ratio: int = 4,
) -> Network:
  """A small vision transformer: `[B, H, W, C]` to tokens `[B, H / p, W / p, features]`.

  2,690,880 parameters for 32x32 images of three channels. The blocks are equal, so that the driver
  can run all of them under one scan.

  Args:
    numerics: how it multiplies.
    activation: inside the blocks; the paper's is "gelu".
    initializer: of every layer.
    patch_size: p, height and width of a patch.
    features: size of a token.
    depth: number of blocks, the patch embedding not counted.
    heads: of each block.
    mlp_ratio: hidden units of a block's MLP for each feature of a token.

  Raises:
    ValueError: if a size is not a positive integer, or `heads` does not divide `features`.

  Deviations:
    Tokens keep their places in the image, so that methods treat them as they treat any map: heads
    take their mean, and there is no class token. No layer norm stands before the head, no dropout.
    Queries, keys and values come from one product.
  """
  sizes = {
    "patch_size": patch_size,
    "features": features,
    "depth": depth,
    "heads": heads,
    "mlp_ratio": mlp_ratio,
  }
  for name, value in sizes.items():
    if type(value) is not int or value < 1:
      raise ValueError(f"Got {name}={value!r}, but {name} must be a positive integer.")
  if features % heads:
    raise ValueError(f"Got features={features}, heads={heads}, but heads must divide features.")
  embedding = PatchEmbedding(features, patch_size, initializer, numerics)
  block = TransformerBlock(heads, activation, mlp_ratio, initializer, numerics)
  layers = [from_linen(block, f"block_{number}") for number in range(1, depth + 1)]
  return Network("vit", (from_linen(embedding, "embedding"), *layers))
