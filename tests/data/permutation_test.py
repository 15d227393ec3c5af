"""The sort-free permutation: were it biased, some examples would be seen less and nothing fail."""

import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.data import permutation


def draw(seed, number, size):
  """`[number, size]` independent permutations."""
  bits = jax.random.bits(jax.random.key(seed), (number, 1, permutation.ROUNDS), jnp.uint32)
  keys = jnp.broadcast_to(bits, (number, size, permutation.ROUNDS))
  index = jnp.broadcast_to(jnp.arange(size)[None, :], (number, size))
  return np.asarray(jax.jit(permutation.permute, static_argnums=2)(index, keys, size))


def z_score(counts, cells):
  """How many standard deviations chi-squared lies above that of `cells` equally likely cells."""
  expected = counts.sum() / cells
  chi2 = ((counts - expected) ** 2 / expected).sum() + (cells - counts.size) * expected
  return (chi2 - (cells - 1)) / math.sqrt(2 * (cells - 1))


@hypothesis.settings(max_examples=8)
@hypothesis.given(size=st.integers(1, 5000), seed=st.integers(0, 2**32 - 1))
def test_is_a_bijection(size, seed):
  """A collision would show one example twice and another never."""
  np.testing.assert_array_equal(np.sort(draw(seed, 2, size), axis=1), [np.arange(size)] * 2)


@pytest.mark.parametrize("size", [2**16 - 1, 2**16, 2**16 + 1])
def test_is_a_bijection_around_a_power_of_two(size):
  np.testing.assert_array_equal(np.sort(draw(0, 1, size)[0]), np.arange(size))


@pytest.mark.parametrize("size", [2, 3, 4, 5, 6])
def test_all_permutations_of_few_are_equally_likely(size):
  """The strongest statement there is; narrow Feistel halves (3 bits for 5) fail it at 130 sigma."""
  drawn = draw(1, 100 * math.factorial(size) + 5000, size)
  counts = np.unique(drawn @ size ** np.arange(size), return_counts=True)[1]
  assert abs(z_score(counts, math.factorial(size))) < 4


@pytest.mark.parametrize("size", [7, 10, 33, 100])
def test_positions_and_neighbours_are_uniform(size):
  """Where an element lands, and what follows it, must not depend on which element it is."""
  drawn = draw(2, 20_000, size)
  landing = np.zeros((size, size))
  np.add.at(landing, (np.broadcast_to(np.arange(size), drawn.shape), drawn), 1)
  expected = len(drawn) / size
  chi2, freedom = ((landing - expected) ** 2 / expected).sum(), (size - 1) ** 2
  assert abs(chi2 - freedom) < 4 * math.sqrt(2 * freedom)
  following = np.zeros((size, size))
  np.add.at(following, (drawn[:, :-1], drawn[:, 1:]), 1)
  # Neighbouring pairs of one permutation are weakly dependent: a little more room.
  assert abs(z_score(following[~np.eye(size, dtype=bool)], size * (size - 1))) < 5
