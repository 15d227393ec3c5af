"""Symmetric uniform int8 quantisation, with rounding to nearest or stochastic rounding.

`q = clip(R(v / s), -127, 127)` with the scale `s = max(max|v|, 1e-30) / 127`; the value is `q * s`.
-128 is never used, so that `|q|` and products keep their bounds. Stochastic rounding `R` goes up
with the probability of the fraction: unbiased, and integers stay. Its noise is an argument, an
array (or a pytree of arrays, for a tree of tensors), so that quantisation is a pure function.

Paper: Ma, Panda, Reda, "FF-INT8: Efficient Forward-Forward DNN Training on Edge Devices with INT8
Precision", DAC 2025, arXiv 2506.22771, which fixes symmetric uniform quantisation and stochastic
rounding; the dynamic scale from the largest value is ours.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from fflax.types import Array, Key, PyTree

Rounding = Literal["nearest", "stochastic"]
Generator = Literal["hash", "threefry"]

MAX = 127
"""The largest quantised magnitude."""

_TINY = 1e-30  # a tensor of zeros has a scale, too


class Quantized(NamedTuple):
  """A quantised tensor of value `values * scale`.

  Attributes:
    values: int8 in [-127, 127].
    scale: float32, `[]` or with as many axes as `values`, of size 1 where it does not vary. NaN
      where a value was NaN or infinite, so that whatever is computed from it is NaN.
  """

  values: Array
  scale: Array


def absmax_scale(x: Array, axis: int | Sequence[int] | None = None) -> Array:
  """The scale that maps the largest magnitude to 127.

  Args:
    x: float32 of any shape.
    axis: the axes along which the scale varies; None for one scale for the whole tensor.

  Returns:
    float32 `[]`, or of the rank of `x` with size 1 along all other axes; NaN where `x` has a NaN or
    an infinity.
  """
  magnitude = jnp.abs(x)
  if axis is None:
    # All axes but the last first: as fast as one reduction on a CPU, faster on a busy one.
    magnitude = jnp.max(magnitude, axis=tuple(range(x.ndim - 1)), initial=0.0)
    largest = jnp.max(magnitude, initial=0.0)
  else:
    kept = {a % x.ndim for a in ([axis] if isinstance(axis, int) else axis)}
    others = tuple(a for a in range(x.ndim) if a not in kept)
    largest = jnp.max(magnitude, axis=others, keepdims=True, initial=0.0)
  return scale_of(largest)


def scale_of(largest: Array) -> Array:
  """The scale that maps `largest` (non-negative) to 127; NaN if it is not finite."""
  # Not `/ MAX`: compiled code would multiply by the reciprocal where eager code divides.
  return jnp.where(jnp.isfinite(largest), jnp.maximum(largest, _TINY) * (1 / MAX), jnp.nan)


def quantize(
  x: Array,
  *,
  axis: int | Sequence[int] | None = None,
  rounding: Rounding = "nearest",
  noise: Array | None = None,
  scale: Array | None = None,
) -> Quantized:
  """Quantises to int8.

  Args:
    x: float32 of any shape.
    axis: the axes along which the scale varies; None for one scale for the whole tensor.
    rounding: "nearest" (half to even) or "stochastic".
    noise: uniform in [0, 1), of the shape of `x`; for stochastic rounding only.
    scale: used instead of `absmax_scale(x, axis)`; larger values are clipped.

  Returns:
    The quantised tensor: error at most half a scale if nearest, below one scale if stochastic.

  Raises:
    ValueError: if `rounding` is unknown, or needs noise and has none or of another shape.

  Example:
    >>> q = quantize(jnp.array([-1.0, 0.25, 0.5]))
    >>> q.values.tolist(), round(float(q.scale), 4)
    ([-127, 32, 64], 0.0079)
    >>> [round(v, 3) for v in dequantize(q).tolist()]
    [-1.0, 0.252, 0.504]
  """
  if rounding not in ("nearest", "stochastic"):
    raise ValueError(f"unknown rounding {rounding!r}; there are nearest, stochastic")
  if scale is None:
    scale = absmax_scale(x, axis)
  v = x / scale
  if rounding == "nearest":
    v = jnp.round(v)
  elif noise is None or noise.shape != x.shape:
    found = "no noise" if noise is None else f"noise of shape {noise.shape}"
    raise ValueError(f"stochastic rounding needs noise of shape {x.shape}, found {found}")
  else:
    # Not floor(v + noise): that sum is rounded itself, which moves an integer now and then.
    low = jnp.floor(v)
    v = low + (noise < v - low).astype(v.dtype)
  # Clipped before the cast, whose overflow is not defined; a NaN value, too, must not reach it.
  v = jnp.where(jnp.isnan(v), 0, jnp.clip(v, -MAX, MAX))
  return Quantized(v.astype(jnp.int8), scale)


def dequantize(q: Quantized) -> Array:
  """The float32 value of a quantised tensor."""
  return q.values.astype(jnp.float32) * q.scale


def seed_words(key: Key, number: int) -> Array:
  """`[number, 2]` uint32: independent seeds for `rounding_noise`, drawn from a typed key.

  Seeds must be drawn, never computed from one another: the hash of neighbouring seeds may be the
  same noise, shifted.
  """
  return jax.random.bits(key, (number, 2), jnp.uint32)


def rounding_noise(
  key_or_seed: Array, shape: Sequence[int], generator: Generator = "hash"
) -> Array:
  """Uniform noise in [0, 1) for stochastic rounding.

  Args:
    key_or_seed: a typed key, or two uint32 words `[2]` from `seed_words`.
    shape: of the noise.
    generator: "hash" mixes the flat index of an element with the seed in 32-bit integers, many
      times cheaper on a CPU than "threefry", JAX's default generator.

  Returns:
    float32 multiples of 2^-24 (hash) or 2^-23 (threefry) in [0, 1).

  Raises:
    ValueError: if `generator` is unknown.
  """
  shape = tuple(shape)
  if jnp.issubdtype(key_or_seed.dtype, jax.dtypes.prng_key):
    key_or_seed = seed_words(key_or_seed, 1)[0]
  if generator == "threefry":
    key = jax.random.wrap_key_data(key_or_seed, impl="threefry2x32")
    return jax.random.uniform(key, shape, jnp.float32)
  if generator != "hash":
    raise ValueError(f"unknown generator {generator!r}; there are hash, threefry")
  words = hash_words(key_or_seed, flat_index(shape))
  return (words >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def flat_index(shape: Sequence[int]) -> Array:
  """The number of each element of an array, row-major, uint32."""
  return jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(tuple(shape))


def hash_words(seed: Array | tuple[Array, Array], index: Array) -> Array:
  """Random words from a counter: the number of each element, mixed with two seed words.

  Args:
    seed: two uint32, see `seed_words`.
    index: uint32 of any shape, see `flat_index`.

  Returns:
    uint32 of the shape of `index`.
  """
  # The second word enters between the rounds: seeds whose first words differ by a multiple of the
  # first constant would else give each other's noise, shifted.
  h = index * jnp.uint32(0x9E3779B9) + seed[0]
  h = (h ^ (h >> jnp.uint32(16))) * jnp.uint32(0x7FEB352D) ^ seed[1]
  h = (h ^ (h >> jnp.uint32(15))) * jnp.uint32(0x846CA68B)
  return h ^ (h >> jnp.uint32(16))


def noise_like(key: Key, tree: PyTree, generator: Generator = "hash") -> PyTree:
  """Independent rounding noise for every leaf of a tree of arrays."""
  leaves, structure = jax.tree.flatten(tree)
  seeds = seed_words(key, len(leaves))
  noise = [
    rounding_noise(seed, leaf.shape, generator) for seed, leaf in zip(seeds, leaves, strict=True)
  ]
  return jax.tree.unflatten(structure, noise)
