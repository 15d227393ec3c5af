"""Counts as planes of bits, 32 units or 32 rows to a word.

Plane p holds bit p of every count, so a product of counts is a sum of products of bits, each times
2^p. Packing saves memory between layers (M = 1 an eighth of int8, M = 7 three eighths), not
arithmetic.
"""

import dataclasses
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from fflax.types import Array

Axis = Literal["k", "rows"]

WORD = 32


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Packed:
  """Packed counts, a pytree of one array.

  Attributes:
    words: uint32 `[..., planes, R, ceil(K / 32)]` if `axis` is "k": bit i of word j is unit
      32 j + i; `[..., planes, ceil(R / 32), K]` if it is "rows". The low plane is first, padding 0.
    size: K or R, the length of the packed axis.
    axis: which is packed: "k", or "rows", which suits machines whose vectors lie along K.
  """

  words: Array
  size: int = dataclasses.field(metadata={"static": True})
  axis: Axis = dataclasses.field(default="k", metadata={"static": True})

  @property
  def rows(self) -> int:
    """R."""
    return self.size if self.axis == "rows" else self.words.shape[-2]

  @property
  def length(self) -> int:
    """K."""
    return self.size if self.axis == "k" else self.words.shape[-1]


def planes_of(units: int) -> int:
  """How many planes hold counts of 0 to `units`."""
  return units.bit_length()


def pack(counts: Array, planes: int, axis: Axis = "k") -> Packed:
  """Packs int8 counts `[..., R, K]` from 0 to `2^planes - 1`; higher bits are lost.

  Raises:
    ValueError: if the counts are not an int8 matrix, or `planes` or `axis` is impossible.
  """
  if counts.dtype != jnp.int8 or counts.ndim < 2:
    raise ValueError(f"int8 [..., R, K] is packed, not {counts.dtype} {counts.shape}")
  if not 1 <= planes <= 7:
    raise ValueError(f"an int8 count has 1 to 7 planes, not {planes}")
  if axis not in get_args(Axis):
    raise ValueError(f"unknown axis {axis!r} of packing; there are {', '.join(get_args(Axis))}")
  at = -1 if axis == "k" else -2
  size = counts.shape[at]
  pads = [(0, 0)] * counts.ndim
  pads[at] = (0, -size % WORD)
  split = jnp.moveaxis(jnp.pad(counts, pads).astype(jnp.uint32), at, -1)
  split = split.reshape(*split.shape[:-1], split.shape[-1] // WORD, WORD)
  place = jnp.arange(WORD, dtype=jnp.uint32).reshape((1,) * (split.ndim - 1) + (WORD,))
  planes_of_words = [
    jnp.moveaxis(jnp.sum(((split >> plane) & 1) << place, axis=-1, dtype=jnp.uint32), -1, at)
    for plane in range(planes)
  ]
  return Packed(jnp.stack(planes_of_words, axis=-3), size, axis)


def unpack(packed: Packed) -> Array:
  """The int8 counts `[..., R, K]`: the inverse of `pack`."""
  at = -1 if packed.axis == "k" else -2
  words = jnp.moveaxis(packed.words, at, -1)[..., None]
  place = jnp.arange(WORD, dtype=jnp.uint32).reshape((1,) * (words.ndim - 1) + (WORD,))
  bits = ((words >> place) & 1).astype(jnp.int8)
  bits = bits.reshape(*bits.shape[:-2], bits.shape[-2] * WORD)[..., : packed.size]
  counts = sum(bits[..., plane, :, :] << plane for plane in range(bits.shape[-3]))
  return jnp.moveaxis(counts, -1, at)
