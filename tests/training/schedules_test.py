"""Which layers learn when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.training import schedules


def test_simultaneous_and_interleaved_differ_in_what_is_handed_on():
  assert schedules.simultaneous().active is None and not schedules.simultaneous().reforward
  assert schedules.interleaved().active is None and schedules.interleaved().reforward


@pytest.mark.parametrize("steps_per_layer", [1, 3])
def test_greedy_trains_one_layer_at_a_time_and_stays_at_the_last(steps_per_layer):
  """One step too early or late, and a layer learns on features that still move."""
  layers = 4
  active = jax.jit(schedules.greedy(steps_per_layer).active, static_argnums=1)
  total = steps_per_layer * layers + 5
  got = np.stack([active(jnp.int32(t), layers) for t in range(total)])
  assert got.dtype == bool and np.all(got.sum(-1) == 1)
  want = [min(t // steps_per_layer, layers - 1) for t in range(total)]
  np.testing.assert_array_equal(got.argmax(-1), want)


@pytest.mark.parametrize("steps", [0, -2])
def test_greedy_needs_a_positive_number_of_steps(steps):
  with pytest.raises(ValueError, match=str(steps)):
    schedules.greedy(steps)


def test_registry():
  for name in schedules.SCHEDULES:
    assert schedules.make_schedule(name, 7).name == name
  active = schedules.make_schedule("greedy", 7).active
  assert np.asarray(active(6, 2)).tolist() == [True, False]
  assert np.asarray(active(7, 2)).tolist() == [False, True]
  with pytest.raises(ValueError, match="'layerwise'"):
    schedules.make_schedule("layerwise", 7)
