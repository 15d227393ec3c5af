"""Batches as a function of key and step: what resuming and vmapped seeds rest on."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.data import stream

KEY = jax.random.key(7)
batch_indices = jax.jit(stream.batch_indices, static_argnums=(2, 3, 4, 5))


def test_every_epoch_is_a_permutation_without_its_remainder():
  """A batch that leaks over the epoch's end would repeat examples before others were seen."""
  n, b = 23, 5
  per_epoch = stream.steps_per_epoch(n, b)
  assert per_epoch == 4
  epochs = np.asarray(batch_indices(KEY, 0, 6 * per_epoch, n, b)).reshape(6, -1)
  for epoch in epochs:
    assert len(set(epoch)) == 20 and epoch.min() >= 0 and epoch.max() < n
  assert len({tuple(e) for e in epochs}) == 6
  # The dropped remainder changes, so that in time every example is seen.
  assert set(epochs.ravel()) == set(range(n))


def test_a_batch_does_not_depend_on_the_chunk_it_is_computed_in():
  """If it did, a run resumed at another step would train on other data."""
  whole = np.asarray(batch_indices(KEY, 0, 40, 23, 5))
  for first, number in ((0, 1), (3, 2), (7, 13), (39, 1)):
    part = batch_indices(KEY, first, number, 23, 5)
    np.testing.assert_array_equal(part, whole[first : first + number])


def test_first_step_may_be_traced():
  whole = np.asarray(batch_indices(KEY, 0, 40, 23, 5))
  traced = jax.jit(lambda t: stream.batch_indices(KEY, t, 4, 23, 5))
  for t in (0, 3, 30):
    np.testing.assert_array_equal(traced(jnp.int32(t)), whole[t : t + 4])


def test_late_steps_do_not_overflow():
  """`step * batch_size` would wrap in int32 here, and negative indices be silently legal."""
  last = 2**31 - 2
  got = np.asarray(batch_indices(KEY, last, 1, 60_000, 100))
  assert got.min() >= 0 and got.max() < 60_000 and len(set(got.ravel())) == 100
  ordered = batch_indices(KEY, last, 1, 60_000, 100, False)
  np.testing.assert_array_equal(ordered[0], last % 600 * 100 + np.arange(100))


def test_vmapped_seeds_equal_single_seeds():
  keys = jax.random.split(jax.random.key(0), 3)
  many = jax.jit(jax.vmap(lambda k: stream.batch_indices(k, 2, 9, 17, 4)))(keys)
  for i in range(3):
    np.testing.assert_array_equal(many[i], batch_indices(keys[i], 2, 9, 17, 4))
  assert not np.array_equal(many[0], many[1])


def test_unshuffled_is_the_stored_order():
  got = batch_indices(KEY, 1, 3, 7, 3, False)
  np.testing.assert_array_equal(got, [[3, 4, 5], [0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("batch_size", [0, -1, 11])
def test_an_impossible_batch_size_is_refused(batch_size):
  with pytest.raises(ValueError, match=f"batch_size {batch_size} must be in \\[1, 10\\]"):
    batch_indices(KEY, 0, 1, 10, batch_size)
