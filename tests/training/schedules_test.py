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
    config = schedules.StaggerConfig(ends=(3,))
    assert schedules.make_schedule(name, config, num_layers=2).name == name
  options = {"num_layers": 2, "epochs_per_layer": 7}
  active = schedules.make_schedule("greedy", **options).active
  assert np.asarray(active(6, 2)).tolist() == [True, False]
  assert np.asarray(active(7, 2)).tolist() == [False, True]
  with pytest.raises(ValueError, match="'layerwise'"):
    schedules.make_schedule("layerwise", num_layers=2)


def test_staggered_layers_learn_in_half_open_intervals():
  config = schedules.StaggerConfig(starts=(0, 1, 2), ends=(2, 3, 9), readouts_from=2)
  made = schedules.make_schedule("staggered", config, num_layers=3, steps_per_epoch=4)
  got = np.stack([made.active(jnp.int32(t), 3) for t in range(40)])
  want = [[s * 4 <= t < e * 4 for s, e in ((0, 2), (1, 3), (2, 9))] for t in range(40)]
  np.testing.assert_array_equal(got, want)
  assert made.readouts_from == 8 and made.frozen_stats == "hold"
  one = schedules.StaggerConfig(ends=(5,), frozen_stats="update")
  assert one.intervals(3) == ((0, 0, 0), (5, 5, 5))
  made = schedules.make_schedule("staggered", one, num_layers=2, steps_per_epoch=1)
  assert made.frozen_stats == "update" and np.all(made.active(4, 2)) and not any(made.active(5, 2))


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"starts": (0, 3), "ends": (3, 3)}, "0 <= start < end"),
    ({"starts": (0, 1), "ends": (4,)}, "above"),
    ({"starts": (0, 1, 2), "ends": (4,)}, "3 entries, but the network has 2"),
    ({}, "needs stagger.ends"),
    ({"ends": (2,), "readouts_from": 1}, "last learner at epoch 1"),
  ],
)
def test_impossible_staggering_is_refused(options, message):
  """Without this, a run would end before its last layer began to learn."""
  config = schedules.StaggerConfig(**options)
  with pytest.raises(ValueError, match=message):
    schedules.layer_epochs("staggered", config, 1, 0, 2)


def test_wrong_kinds_of_staggering_are_refused():
  for options in ({"starts": 3}, {"ends": (1.5,)}, {"frozen_stats": "keep"}, {"readouts_from": -1}):
    with pytest.raises(ValueError, match="stagger"):
      schedules.StaggerConfig(**options)
  with pytest.raises(ValueError, match="2 layers, the network has 3"):
    schedules.staggered((0, 0), (1, 1)).active(jnp.int32(0), 3)


def test_the_learning_rate_spans_a_layers_longest_turn():
  config = schedules.StaggerConfig(starts=(0, 2), ends=(3, 9))
  assert schedules.layer_epochs("staggered", config, 20, 0, 2) == 7
  assert schedules.layer_epochs("staggered", config, 4, 0, 2) == 3
  assert schedules.layer_epochs("greedy", config, 20, 0, 2) == 10
  assert schedules.layer_epochs("simultaneous", config, 20, 0, 2) == 20
  assert schedules.layer_epochs("alternating", config, 21, 0, 2) == 11


def test_alternating_trains_one_layer_after_the_other_step_by_step():
  active = schedules.make_schedule("alternating", num_layers=3).active
  got = np.stack([active(jnp.int32(t), 3) for t in range(7)])
  np.testing.assert_array_equal(got, np.eye(3, dtype=bool)[np.arange(7) % 3])
