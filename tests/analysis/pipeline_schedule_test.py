"""Simulated schedules against schedules drawn by hand, and against closed forms."""

import itertools

import hypothesis
import pytest
from hypothesis import strategies as st

from fflax.analysis import pipeline_schedule as ps
from fflax.analysis.pipeline_schedule import Work

MLP_784_4X2000 = tuple(2000 * n for n in (784, 2000, 2000, 2000))
COSTS = st.lists(st.integers(1, 50), min_size=1, max_size=9)


def vgg8_macs() -> tuple[int, ...]:
  """Multiply-accumulates of each layer's product, at 32x32."""
  channels, sides = (3, 128, 256, 256, 512, 512, 512, 512), (32, 32, 16, 16, 8, 4, 2)
  return tuple(9 * a * b * s * s for a, b, s in zip(channels, channels[1:], sides, strict=False))


def test_a_pipeline_drawn_by_hand():
  """Stages of 2, 3 and 1, three batches, a transfer of 1; the second stage sets the pace.

  stage 0: 0-2  2-4  4-6
  stage 1:      3-6  6-9  9-12
  stage 2:           7-8  10-11  13-14
  """
  found = ps.pipelined([2, 3, 1], 3, transfer=1)
  starts = [[found.starts[Work(s, n)] for n in range(3)] for s in range(3)]
  assert starts == [[0, 2, 4], [3, 6, 9], [7, 10, 13]]
  assert found.makespan == 14 and found.fill == 7 and found.drain == 8
  assert found.busy == (6, 9, 3) and found.serial == 18
  assert found.speedup == pytest.approx(18 / 14)
  assert found.imbalance == pytest.approx(9 / 6)


def test_a_slow_wire_sets_the_pace():
  """It carries one batch at a time: 1-5, 5-9, 9-13 for three batches of 1 + 1."""
  found = ps.pipelined([1, 1], 3, transfer=4)
  assert [found.starts[Work(1, n)] for n in range(3)] == [5, 9, 13]


@hypothesis.given(COSTS, st.integers(1, 30), st.integers(0, 5))
def test_closed_form_of_a_pipeline(costs, batches, transfer):
  hypothesis.assume(transfer <= max(costs))
  found = ps.pipelined(costs, batches, transfer)
  slowest = max(costs)
  assert found.makespan == sum(costs) + (len(costs) - 1) * transfer + (batches - 1) * slowest
  assert found.speedup <= sum(costs) / slowest
  assert found.speedup >= ps.speedup_in_ticks(costs, batches) or transfer


@pytest.mark.parametrize("one_f_one_b", [False, True])
def test_backprop_drawn_by_hand(one_f_one_b):
  """Two stages, three micro-batches, up 1 and down 2 each; digits are micro-batches.

  GPipe   up    012.........        1F1B    up    01....2.....
          down  ......001122                down  ....00.11.22
          up    .012........                up    .0..1..2....
          down  ....001122..                down  ..00.11.22..
  """
  found = ps.backprop_pipeline([3, 3], [6, 6], 3, steps=1, one_f_one_b=one_f_one_b)
  first = [found.starts[Work(0, n)] for n in range(3)]
  back = [found.starts[Work(s, n, True)] for s in (0, 1) for n in range(3)]
  if one_f_one_b:
    assert first == [0, 1, 6]
    assert back == [4, 7, 10, 2, 5, 8]
  else:
    assert first == [0, 1, 2]
    assert back == [6, 8, 10, 4, 6, 8]
  assert found.makespan == 12


@hypothesis.given(st.integers(1, 6), st.integers(1, 12), st.booleans(), st.integers(1, 3))
def test_bubble_of_backprop(num_stages, micro, one_f_one_b, steps):
  """Equal stages: m / (m + S - 1) of S, for either order, and weights wait for every step's end."""
  up, down = [1.0 * micro] * num_stages, [2.0 * micro] * num_stages
  found = ps.backprop_pipeline(up, down, micro, steps, one_f_one_b=one_f_one_b)
  assert found.speedup == pytest.approx(num_stages * micro / (micro + num_stages - 1))


@hypothesis.given(COSTS, st.integers(1, 5))
def test_balance_is_the_best_of_all_cuts(costs, num_stages):
  hypothesis.assume(num_stages <= len(costs))
  sizes = ps.balance(costs, num_stages)
  assert len(sizes) == num_stages and min(sizes) >= 1
  bounds = itertools.combinations(range(1, len(costs)), num_stages - 1)
  cuts = ([0, *inner, len(costs)] for inner in bounds)
  best = min(max(sum(costs[a:b]) for a, b in itertools.pairwise(cut)) for cut in cuts)
  assert max(ps.stage_costs(costs, sizes)) == best


def test_published_and_derived_bounds():
  """Of whole layers, sum / max: DTG-FF's VGG8 at 32x32, and perceptrons."""

  def bound(costs, num_stages):
    stages = ps.stage_costs(costs, ps.balance(costs, num_stages))
    return sum(stages) / max(stages)

  vgg8 = vgg8_macs()
  assert [round(bound(vgg8, n), 2) for n in (1, 2, 3, 4, 5, 7)] == [1, 1.91, 2.11, 3.13, 3.17, 3.17]
  assert ps.balance(vgg8, 4) == (2, 1, 1, 3)
  assert bound(MLP_784_4X2000, 4) == pytest.approx(3.392)
  # Equal layers: the pipeline costs its fill alone, 3 of N + 3 ticks.
  epoch = ps.pipelined([2000.0] * 4, 600)
  assert epoch.speedup == pytest.approx(4 * 600 / 603) and epoch.speedup > 3.75
  one_epoch = ps.pipelined(ps.stage_costs(vgg8, (2, 1, 1, 3)), 390)
  assert one_epoch.speedup == pytest.approx(bound(vgg8, 4), rel=0.01)


def test_edges():
  assert ps.speedup_in_ticks([7.0], 5) == 1
  assert ps.speedup_in_ticks([2.0] * 4, 10**9) == pytest.approx(4)
  assert ps.data_parallel_speedup(12.0, 4) == 4
  assert ps.data_parallel_speedup(12.0, 4, all_reduce=1.0) == 3
  assert ps.data_parallel_speedup(12.0, 1, all_reduce=1.0) == 1
  for stages in (0, 4):
    with pytest.raises(ValueError, match="3 layers cannot be shared out"):
      ps.balance([1.0, 2.0, 3.0], stages)
  with pytest.raises(ValueError, match="do not share out 3"):
    ps.stage_costs([1.0, 2.0, 3.0], (1, 1))
