"""Exact convolutions of int8 arrays, and the two convolutions of their gradients.

Images are `[B, ..., C]` (channels last, any number of spatial axes), kernels `[..., C / G, O]`, all
int8 in [-127, 127], for G groups. How a convolution is computed depends on what is fast:

- depthwise (G = C = O, two spatial axes): shifted multiply-adds in int32;
- grouped, 1x1, of few channels, on a GPU (which has no int8 convolution), or emulated: shifted
  images side by side ("patches"), then one product of matrices for each group;
- all others: the int8 convolution of XLA, whose kernel must lie in memory as it is read.

The weight gradient is always patches and one product: as a convolution it would leave the fast
path. The input gradient is a convolution of the cotangent, spread out by the stride.
"""

import dataclasses
import functools
import itertools
import math
from typing import Self

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.batch_parts import sum_parts
from fflax.core.depthwise import depthwise_conv
from fflax.core.float_conv import channels_last
from fflax.core.int8_products import (
  MAX_CONTRACTION,
  Backend,
  check_contraction,
  int8_dot,
)
from fflax.core.numerics import float32, row_major
from fflax.core.padding import pad_space
from fflax.types import Array

_PATCH_BYTES = {"cpu": 1 << 24}  # of one chunk of the weight gradient
_PATCH_BYTES_ELSEWHERE = 1 << 28
_FEW_CHANNELS = 8  # below this a CPU's int8 convolution loses to patches
_EXACT_IN_FLOAT32 = 1024


@dataclasses.dataclass(frozen=True)
class Int8Conv:
  """One convolution: the shapes and settings that its three products share.

  Attributes:
    image: shape of the input, `(B, ..., C)`.
    kernel: shape of the kernel, `(..., C / groups, O)`.
    strides: one for each spatial axis.
    pads: zeros before and after each spatial axis; negative numbers crop.
    groups: that channels fall into.
    backend: see `fflax.core.int8_products`.
  """

  image: tuple[int, ...]
  kernel: tuple[int, ...]
  strides: tuple[int, ...]
  pads: tuple[tuple[int, int], ...]
  groups: int = 1
  backend: Backend | None = None

  @property
  def out(self) -> tuple[int, ...]:
    """Shape of the output, `(B, ..., O)`."""
    spatial = (
      max(0, (size + low + high - field) // stride + 1)
      for size, (low, high), field, stride in zip(
        self.image[1:-1], self.pads, self.kernel, self.strides, strict=False
      )
    )
    return (self.image[0], *spatial, self.kernel[-1])

  def part(self, parts: int) -> Self:
    """The convolution of one of so many equal parts of the batch."""
    batch, *rest = self.image
    return dataclasses.replace(self, image=(batch // parts, *rest))

  def forward(self, x: Array, w: Array) -> Array:
    """The convolution, int32 of shape `out`.

    Raises:
      ValueError: if a sum is longer than `MAX_CONTRACTION`.
    """
    check_contraction(math.prod(self.kernel[:-1]))
    if self._is_depthwise:
      return depthwise_conv(x.astype(jnp.int32), w.astype(jnp.int32), self.strides, self.pads)
    if self._uses_patches:
      return self._by_patches(x, w)
    if any(pad < 0 for pad in itertools.chain(*self.pads)):
      x, pads = pad_space(x, self.pads), ((0, 0),) * len(self.pads)
    else:
      pads = self.pads
    return lax.conv_general_dilated(
      x,
      w,
      self.strides,
      pads,
      dimension_numbers=channels_last(x.ndim),
      preferred_element_type=jnp.int32,
    )

  def input_gradient(self, g: Array, w: Array) -> Array:
    """The gradient with respect to the input, int32 of shape `image`, for `g` of shape `out`.

    Raises:
      ValueError: if a sum is longer than `MAX_CONTRACTION`.
    """
    sizes, pads, slots = [], [], []
    rows = zip(self.image[1:-1], self.kernel, self.out[1:-1], self.strides, self.pads, strict=False)
    for size, field, out_size, stride, (low, _) in rows:
      span = max(0, (out_size - 1) * stride + 1)  # of the cotangent, spread out
      before = field - 1 - low
      start = before - (field - 1) // 2
      if 0 <= start <= size - span:
        # Zeros around the cotangent, such that the convolution's own are the same on both sides:
        # another one leaves the fast path on a CPU.
        before, span = (field - 1) // 2, size
      else:
        start = 0
      sizes.append(span)
      pads.append((before, size + field - 1 - span - before))
      slots.append(slice(start, start + (out_size - 1) * stride + 1, stride))
    if g.shape[1:-1] != tuple(sizes):
      # Not the convolution's own dilation, nor `lax.pad`, which XLA turns into it: both are slow.
      zeros = jnp.zeros((g.shape[0], *sizes, g.shape[-1]), g.dtype)
      g = zeros.at[(slice(None), *slots)].set(g)
    # Flipped, in and out channels swapped within each group.
    *fields, inside, outside = self.kernel
    w = jnp.flip(w, tuple(range(len(fields)))).reshape(
      *fields, inside, self.groups, outside // self.groups
    )
    w = jnp.moveaxis(w, (-3, -1), (-1, -3)).reshape(
      *fields, outside // self.groups, self.groups * inside
    )
    back = Int8Conv(g.shape, w.shape, (1,) * len(fields), tuple(pads), self.groups, self.backend)
    return back.forward(g, row_major(w))

  def weight_gradient(self, x: Array, g: Array) -> Array:
    """The gradient with respect to the kernel, float32 of shape `kernel`.

    The exact sum, rounded once to float32, while it has at most `MAX_CONTRACTION` terms (B times
    the output positions). Beyond that, and exact no more, sums of parts are added in float32.

    Raises:
      ValueError: if the positions of one image are more than `MAX_CONTRACTION`.
    """
    positions = math.prod(self.out[1:-1])
    check_contraction(positions)
    batch = self.image[0]
    one = positions * math.prod(self.kernel[:-2]) * self.image[-1]  # bytes of patches
    memory = _PATCH_BYTES.get(jax.default_backend(), _PATCH_BYTES_ELSEWHERE)
    fits = min(MAX_CONTRACTION // max(positions, 1), memory // max(one, 1))
    chunk = _divisor(batch, max(1, fits))
    product = self._depthwise_gradient if self._is_depthwise else self._gradient_by_patches
    if chunk == batch:
      return product(x, g).astype(jnp.float32)
    total_dtype = jnp.int32 if batch * positions <= MAX_CONTRACTION else jnp.float32

    total = sum_parts(lambda x, g: product(x, g).astype(total_dtype), batch // chunk, x, g)
    return total.astype(jnp.float32)

  def float_input_gradient(self, g: Array, w: Array) -> Array:
    """`input_gradient` of float32 arrays, in float32."""
    forward = functools.partial(
      float32().conv_general_dilated,
      window_strides=self.strides,
      padding=self.pads,
      dimension_numbers=channels_last(len(self.image)),
      feature_group_count=self.groups,
    )
    _, back = jax.vjp(lambda x: forward(x, w), jnp.zeros(self.image, jnp.float32))
    return back(g)[0]

  @property
  def _is_depthwise(self) -> bool:
    return len(self.image) == 4 and 1 < self.groups == self.image[-1] == self.kernel[-1]

  @property
  def _uses_patches(self) -> bool:
    return (
      self.groups > 1
      or math.prod(self.kernel[:-2]) == 1
      or self.kernel[-2] < _FEW_CHANNELS
      or self.backend not in (None, "int8")
      or jax.default_backend() not in ("cpu", "tpu")
    )

  def _shifted(self, padded: Array, first: int) -> list[Array]:
    """What each entry of the kernel meets: slices whose spatial axes start at axis `first`."""
    fields, spatial = self.kernel[:-2], self.out[1:-1]
    slices = []
    for shift in itertools.product(*map(range, fields)):
      starts, limits, steps = [0] * padded.ndim, list(padded.shape), [1] * padded.ndim
      for a, (start, size, stride) in enumerate(zip(shift, spatial, self.strides, strict=True)):
        starts[first + a], steps[first + a] = start, stride
        limits[first + a] = start + max(0, (size - 1) * stride + 1)
      slices.append(lax.slice(padded, starts, limits, steps))
    return slices

  def _by_patches(self, x: Array, w: Array) -> Array:
    rows, groups = math.prod(self.out[:-1]), self.groups
    *fields, inside, outside = self.kernel
    length = math.prod(fields) * inside
    padded = pad_space(x, self.pads)
    if groups == 1:
      a = jnp.stack(self._shifted(padded, 1), axis=-2).reshape(rows, length)
      return int8_dot(a, w.reshape(length, outside), backend=self.backend).reshape(self.out)
    # Groups first before there are `taps` times as many bytes: `[G, B, ..., taps, C / G]`.
    padded = row_major(jnp.moveaxis(padded.reshape(*padded.shape[:-1], groups, inside), -2, 0))
    a = jnp.stack(self._shifted(padded, 2), axis=-2).reshape(groups, rows, length)
    b = w.reshape(length, groups, outside // groups).transpose(1, 0, 2)
    out = int8_dot(row_major(a), row_major(b), backend=self.backend)
    return out.transpose(1, 0, 2).reshape(self.out)

  def _gradient_by_patches(self, x: Array, g: Array) -> Array:
    """int32, for any number of images."""
    rows, groups = math.prod(g.shape[:-1]), self.groups
    *fields, inside, outside = self.kernel
    length = math.prod(fields) * inside
    # Transposed before it is copied, not after: `[G, taps, C / G, rows]`.
    channels_first = row_major(jnp.moveaxis(pad_space(x, self.pads), -1, 0))
    split = channels_first.reshape(groups, inside, *channels_first.shape[1:])
    a = jnp.stack(self._shifted(split, 3), axis=1).reshape(groups, length, rows)
    if groups == 1:
      a, b = a[0], g.reshape(rows, outside)
      return int8_dot(row_major(a), b, backend=self.backend).reshape(self.kernel)
    b = g.reshape(rows, groups, outside // groups).transpose(1, 0, 2)
    out = int8_dot(row_major(a), row_major(b), backend=self.backend)
    return out.transpose(1, 0, 2).reshape(self.kernel)

  def _depthwise_gradient(self, x: Array, g: Array) -> Array:
    """int32. Sums of float32 products are faster; short ones are exact."""
    channels, rows = g.shape[-1], math.prod(g.shape[:-1])
    length = _divisor(rows, _EXACT_IN_FLOAT32)
    g = g.astype(jnp.float32)
    sums = [
      jnp.sum((tap.astype(jnp.float32) * g).reshape(rows // length, length, channels), axis=1)
      for tap in self._shifted(pad_space(x, self.pads), 1)
    ]
    return jnp.sum(jnp.stack(sums).astype(jnp.int32), axis=1).reshape(self.kernel)


@functools.cache
def _divisor(number: int, limit: int) -> int:
  """The largest divisor of `number` up to `limit`; 1 for 0."""
  return max((d for d in range(1, min(number, limit) + 1) if number % d == 0), default=1)
