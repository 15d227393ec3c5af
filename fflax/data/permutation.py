"""A random permutation that is computed index by index, without a sort.

Sorting 60,000 random keys costs 15 to 50 ms on a CPU, as much as many training steps; here an index
costs some arithmetic, so that any batch of any epoch can be had on its own.
"""

import jax
import jax.numpy as jnp

from fflax.types import Array

ROUNDS = 8
"""Luby and Rackoff need 4; the round function here is a hash, and small sets need more mixing."""


def _mix(x: Array) -> Array:
  """The finaliser of MurmurHash3 (A. Appleby): every input bit moves every output bit."""
  x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
  x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
  return x ^ (x >> 16)


def permute(index: Array, round_keys: Array, size: int) -> Array:
  """Where a pseudo-random permutation of `range(size)` sends `index`.

  A Feistel network over a power of two that holds `size` (M. Luby, C. Rackoff, How to
  Construct Pseudorandom Permutations from Pseudorandom Functions, SIAM J. Computing 17(2), 1988),
  applied again wherever it leaves the range ("cycle walking", J. Black, P. Rogaway, Ciphers with
  Arbitrary Finite Domains, CT-RSA 2002). Bijective for every key by construction.

  Args:
    index: any shape, integers in `[0, size)`.
    round_keys: `index.shape + (ROUNDS,)` uint32 random bits; equal bits are one permutation.
    size: number of elements, at least 1 and at most 2**31.

  Returns:
    int32, of the shape of `index`, in `[0, size)`.
  """
  # Halves of one or two bits mix badly: with fewer than 6 bits some permutations of 5 are rare.
  bits = max((size - 1).bit_length(), 6)
  low_bits = bits // 2
  low_mask = jnp.uint32((1 << low_bits) - 1)
  high_mask = jnp.uint32((1 << (bits - low_bits)) - 1)

  def network(x: Array) -> Array:
    high, low = x >> low_bits, x & low_mask
    for r in range(0, ROUNDS, 2):
      high = high ^ (_mix(low ^ round_keys[..., r]) & high_mask)
      low = low ^ (_mix(high ^ round_keys[..., r + 1]) & low_mask)
    return (high << low_bits) | low

  def walk(state: tuple[Array, Array]) -> tuple[Array, Array]:
    x, outside = state
    x = jnp.where(outside, network(x), x)
    return x, x >= size

  # A walk starts inside the range and its cycle returns there, so it ends.
  start = (index.astype(jnp.uint32), jnp.ones(index.shape, bool))
  x, _ = jax.lax.while_loop(lambda state: jnp.any(state[1]), walk, start)
  return x.astype(jnp.int32)
