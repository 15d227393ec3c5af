"""An affine map of a convolution's input, absorbed into the convolution.

`conv(w, A z + B) = conv(w A, z) + bias_map`: the convolution takes the integer counts z themselves.
The padding stands around `A z + B`, so that the bias depends on the place: taps outside the image
see 0, not B.

Paper: Jaiswal, Datta, Makin, 2025, arXiv 2507.06461 (batch norm absorbed into the next filters).
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fflax.core.numerics import float32
from fflax.types import Array, LayerOut


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AffineCounts:
  """`scale * counts + shift`, handed on in parts, so that the next product reads the counts alone.

  Attributes:
    counts: `[..., C]` float32, integers: what p-bits drew.
    scale: `[B, C]` float32, the same for every example, with the leading axes of `counts`.
    shift: likewise.
  """

  counts: Array
  scale: Array
  shift: Array


def absorb(
  w: Array, scale: Array, shift: Array, size: Sequence[int], groups: int = 1
) -> tuple[Array, Array]:
  """The kernel and the bias of a convolution, stride 1 and padding "SAME", that takes z itself.

  Args:
    w: kernel `[kh, kw, Cin / groups, C]`.
    scale: A of each input channel, `[Cin]`.
    shift: B of each input channel, `[Cin]`.
    size: height and width of the image.
    groups: of channels, contiguous.

  Returns:
    The kernel, of the shape of `w`, and the bias map `[H, W, C]`, to be added to the product.
  """
  inputs, outputs = w.shape[2:]
  # Group by group: the input channels of each output channel.
  a = jnp.repeat(scale.reshape(groups, inputs).T, outputs // groups, axis=1)
  image = jnp.broadcast_to(shift, (1, *size, groups * inputs)).astype(w.dtype)
  # Not JAX's own: this one has a fast gradient on a CPU, grouped or not.
  bias_map = float32().conv_general_dilated(
    image,
    w,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )
  return w * a.reshape(1, 1, inputs, outputs), bias_map[0]


def handed_on(out: LayerOut) -> Array | AffineCounts:
  """What a layer emits: in parts, where its reader is to multiply the counts alone."""
  if out.affine is None:
    return out.out
  assert out.counts is not None
  return AffineCounts(out.counts, *out.affine)


def dense(x: Array | AffineCounts) -> Array:
  """What was handed on, as one array `[..., C]`."""
  if not isinstance(x, AffineCounts):
    return x
  spread = x.scale.shape[:-1] + (1,) * (x.counts.ndim - x.scale.ndim) + x.scale.shape[-1:]
  return x.counts * x.scale.reshape(spread) + x.shift.reshape(spread)
