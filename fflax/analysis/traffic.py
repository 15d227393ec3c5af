"""Numbers that move without a product: optimiser states, and the rates of products of counts."""

import jax
import jax.numpy as jnp
from jax import lax

from fflax.analysis.counts import Counts, Key
from fflax.types import Array, PyTree


def optimizer_bits(params: PyTree, opt_state: PyTree) -> Counts:
  """Bits of one optimiser step: reads parameters, gradients and state, writes all but gradients.

  Adam so moves 7 numbers a parameter. Scalars (step counters) are not counted.

  Args:
    params: arrays, or `jax.ShapeDtypeStruct`s in their place.
    opt_state: likewise.
  """

  def bits(tree: PyTree) -> int:
    return sum(a.size * a.dtype.itemsize * 8 for a in jax.tree.leaves(tree) if a.ndim)

  number = 3 * bits(params) + 2 * bits(opt_state)
  return Counts({Key("bits", "optimizer"): number} if number else {})


def code_ones(counts: Array) -> Array:
  """Ones in the binary code of each count, of the dtype of `counts` (integers, 0 or more)."""
  return lax.population_count(counts)


def dense_index_adds(counts: Array, features: int) -> Array:
  """Index additions of a dense layer: every one of the counts adds to every feature.

  Args:
    counts: `[..., K]` integers; their `code_ones` for the reading "code".
    features: of the layer.

  Returns:
    A float32 scalar; exact below 2^24.
  """
  return features * jnp.sum(counts.astype(jnp.float32))


def conv_index_adds(
  counts: Array,
  kernel_shape: tuple[int, int, int, int],
  strides: tuple[int, int],
  padding: str | tuple[tuple[int, int], tuple[int, int]],
  rhs_dilation: tuple[int, int] = (1, 1),
  groups: int = 1,
) -> Array:
  """Index additions of a convolution: every count, times the real outputs that it meets.

  Args:
    counts: `[B, H, W, C]` integers; their `code_ones` for the reading "code".
    kernel_shape: `[kh, kw, C / groups, features]`.
    strides: of the convolution, as the rest.
    padding: see `jax.lax.conv_general_dilated`.
    rhs_dilation: of the kernel.
    groups: of channels.

  Returns:
    A float32 scalar; exact below 2^24.
  """
  touched = conv_touches(counts, kernel_shape[:2], strides, padding, rhs_dilation)
  return kernel_shape[3] // groups * jnp.sum(touched.astype(jnp.float32))


def conv_touches(
  counts: Array,
  field: tuple[int, int],
  strides: tuple[int, int],
  padding: str | tuple[tuple[int, int], tuple[int, int]],
  rhs_dilation: tuple[int, int] = (1, 1),
) -> Array:
  """Every count, times the places of the output that it meets: additions for one output channel.

  Args:
    counts: `[B, H, W, C]` integers.
    field: height and width of the kernel.
    strides: of the convolution, as the rest.
    padding: see `jax.lax.conv_general_dilated`.
    rhs_dilation: of the kernel.

  Returns:
    `[B]` int32, exact if no receptive field holds more than 2^24.
  """
  # One input and one output channel: which channel a count is in does not matter.
  touched = lax.conv_general_dilated(
    jnp.sum(counts.astype(jnp.float32), axis=-1, keepdims=True),
    jnp.ones((*field, 1, 1)),
    strides,
    padding,
    rhs_dilation=rhs_dilation,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    precision=lax.Precision.HIGHEST,
  )
  return jnp.sum(jnp.round(touched).astype(jnp.int32), axis=(1, 2, 3))
