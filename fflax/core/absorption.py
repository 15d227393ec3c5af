"""An affine map of a convolution's input, absorbed into the convolution.

`conv(w, A z + B) = conv(w A, z) + bias_map`: the convolution takes the integer counts z themselves.
The padding stands around `A z + B`, so that the bias depends on the place: taps outside the image
see 0, not B.

Paper: Jaiswal, Datta, Makin, 2025, arXiv 2507.06461 (batch norm absorbed into the next filters).
"""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import lax

from fflax.types import Array


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
  bias_map = lax.conv_general_dilated(
    image,
    w,
    (1, 1),
    "SAME",
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=groups,
  )
  return w * a.reshape(1, 1, inputs, outputs), bias_map[0]
