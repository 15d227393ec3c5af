"""Chunks of steps against the same steps one by one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.random import Role, role_key, step_key
from fflax.training.chunk import make_chunk
from fflax.training.schedules import greedy
from fflax.types import Batch
from tests.training import toy
from tests.training.checkpoint_test import bits

CAPACITY = 12


@pytest.fixture(scope="module")
def data():
  return toy.make_data()


@pytest.fixture(scope="module")
def traces() -> list:
  """One entry for each time that the chunk was compiled."""
  return []


@pytest.fixture(scope="module")
def chunk(traces):
  feed = toy.make_feed()
  counted = feed._replace(indices=lambda *args: (traces.append(args), feed.indices(*args))[1])
  return make_chunk(toy.make_trainer(), counted, CAPACITY)


def copy(state):
  return jax.tree.map(jnp.copy, state)


def take(chunk, state, data, *lengths):
  """The state after chunks of these lengths, and all rows of metrics."""
  rows = []
  for n in lengths:
    state, results = chunk(state, *data, n)
    rows.append(jax.tree.map(lambda x, n=n: np.asarray(x)[:n], results))
  return state, jax.tree.map(lambda *x: np.concatenate(x), *rows)


def test_equals_steps_one_by_one(data, chunk):
  """Oracle of the keys and of the gather: batches and augmentation noise made by hand."""
  trainer, feed = toy.make_trainer(), toy.make_feed()
  images, labels = data
  state = expected = toy.make_state(trainer)
  losses = []
  one_step = jax.jit(trainer.step)
  for t in range(CAPACITY):
    index = feed.indices(role_key(state.key, Role.BATCH), t, 1)[0]
    noise_key = role_key(step_key(state.key, t), Role.AUGMENT)
    batch = Batch(feed.preprocess(noise_key, images[index]), labels[index])
    expected, metrics = one_step(expected, batch)
    losses.append(metrics["loss"])
  found, (metrics, failed) = take(chunk, copy(state), data, CAPACITY)
  assert int(found.step) == CAPACITY
  np.testing.assert_allclose(metrics["loss"], np.stack(losses), rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
    found.layers,
    expected.layers,
  )
  assert set(failed) == {"loss", "readout_loss/sum"}
  assert not any(x.any() for x in failed.values())


def test_boundaries_do_not_matter_and_one_compilation_serves(data, chunk, traces):
  """Resumed and uncut runs have other chunks; each length compiled anew would round anew."""
  state = toy.make_state(toy.make_trainer())
  whole, rows = take(chunk, copy(state), data, 12, 12)
  cut, cut_rows = take(chunk, copy(state), data, 1, 11, 5, 2, 1, 4)
  assert bits(cut) == bits(whole)
  assert bits(cut_rows) == bits(rows)
  assert len(traces) == 1


def test_state_is_donated(data, chunk):
  """Two copies of the parameters would halve the largest network that fits."""
  state = toy.make_state(toy.make_trainer())
  kernel = state.layers[0].params["layer"]["kernel"]
  chunk(state, *data, 1)
  assert kernel.is_deleted()


def test_seeds_under_vmap_equal_seeds_alone(data, chunk):
  """Shared batches or noise would make seeds dependent, and their spread too small."""
  trainer, feed = toy.make_trainer(), toy.make_feed()
  states = [toy.make_state(trainer, seed) for seed in range(3)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
  together = make_chunk(trainer, feed, CAPACITY, over_seeds=True)
  found, (metrics, _) = together(stacked, *data, CAPACITY)
  for i, state in enumerate(states):
    alone, (own_metrics, _) = chunk(copy(state), *data, CAPACITY)
    # To rounding: a batched product may be split up in another way than a single one.
    np.testing.assert_allclose(metrics["loss"][i], own_metrics["loss"], rtol=1e-5)
    jax.tree.map(
      lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6),
      found.layers,
      alone.layers,
    )
  assert np.ptp(np.asarray(metrics["loss"])[:, -1, 0]) > 1e-3, "the seeds do not differ"


def test_failures_are_marked_in_their_step_and_layer(data, chunk):
  state = toy.make_state(toy.make_trainer(), nan_loss_at=4)
  _, (_, failed) = chunk(state, *data, CAPACITY)
  assert np.argwhere(failed["loss"]).tolist() == [[4, 1]]


def test_silent_layers_are_no_failure(data):
  """Under a greedy schedule, layers that do not learn report NaN; one that learns must not."""
  schedule = greedy(steps_per_layer=5)
  trainer = toy.make_trainer(schedule)
  chunk = make_chunk(trainer, toy.make_feed(), CAPACITY)
  _, (metrics, failed) = chunk(toy.make_state(trainer, nan_loss_at=8), *data, CAPACITY)
  silent = np.isnan(metrics["loss"])
  assert silent[:5, 1].all() and silent[5:, 0].all() and silent.sum() == 13
  assert np.argwhere(failed["loss"]).tolist() == [[8, 1]]
