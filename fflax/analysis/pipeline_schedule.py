"""What pipelines gain: schedules of work on devices, simulated from the layers' costs.

Costs are times of one batch in any unit (the multiply-accumulates of `fflax.analysis.cost` will do,
if devices are alike). A schedule is, for each device, the order of its work; a piece of work starts
when its device is free and what it needs has arrived.

Local learning sends activations up and nothing down: N batches take `sum(t) + sum(transfers) +
(N - 1) * max(t)`, so that S devices gain `sum(t) / max(t)` at best. Backprop waits: in each step m
micro-batches go up and come down again before weights move, which leaves `m / (m + S - 1)` of that.
GPipe: Y. Huang et al., NeurIPS 2019, arXiv 1811.06965; 1F1B: D. Narayanan et al., SOSP 2019, arXiv
1806.03377, here with a flush: its bubble is the same, its memory less. Data-parallel training has
no bubble, but sums gradients in every step.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple


class Work(NamedTuple):
  """A piece of work: what a stage does with a batch (or micro-batch)."""

  stage: int
  batch: int
  backward: bool = False


class Timeline(NamedTuple):
  """A schedule as it runs.

  Attributes:
    starts: of each piece of work.
    makespan: from the first start to the last end.
    busy: of each device, the time in which it works.
    fill: until the last device begins its first piece.
    drain: from the end of the first device that has done all of its work to the last end.
    serial: what one device alone would take.
  """

  starts: Mapping[Work, float]
  makespan: float
  busy: tuple[float, ...]
  fill: float
  drain: float
  serial: float

  @property
  def speedup(self) -> float:
    """Over one device."""
    return self.serial / self.makespan

  @property
  def imbalance(self) -> float:
    """The busiest device's work over the mean, 1 at best."""
    return max(self.busy) * len(self.busy) / sum(self.busy)


def balance(costs: Sequence[float], num_stages: int) -> tuple[int, ...]:
  """The layers of each stage, contiguous, such that the largest stage is as small as possible.

  Exact, by dynamic programming; of equally good cuts, the one whose last stages are the longest.

  Raises:
    ValueError: there are fewer layers than stages.

  Example:
    >>> balance((4.0, 1.0, 1.0, 2.0), 2)
    (1, 3)
  """
  num_layers = len(costs)
  if not 1 <= num_stages <= num_layers:
    raise ValueError(f"{num_layers} layers cannot be shared out over {num_stages} stages")
  # best[n]: the least maximum for the first n layers, and the sizes of its stages.
  best: dict[int, tuple[float, tuple[int, ...]]] = {
    n: (sum(costs[:n]), (n,)) for n in range(1, num_layers + 1)
  }
  for stage in range(1, num_stages):
    best = {
      n: min(
        ((max(best[k][0], sum(costs[k:n])), (*best[k][1], n - k)) for k in range(stage, n)),
        key=lambda found: found[0],
      )
      for n in range(stage + 1, num_layers + 1)
    }
  return best[num_layers][1]


def stage_costs(costs: Sequence[float], sizes: Sequence[int]) -> tuple[float, ...]:
  """The sum of the costs of each stage of `sizes` layers."""
  first, sums = 0, []
  for n in sizes:
    sums.append(sum(costs[first : first + n]))
    first += n
  if first != len(costs):
    raise ValueError(f"stages of {list(sizes)} layers do not share out {len(costs)}")
  return tuple(sums)


def pipelined(stages: Sequence[float], batches: int, transfer: float = 0.0) -> Timeline:
  """Local learning: every stage takes batch after batch, as they arrive.

  Args:
    stages: time of a batch in each stage.
    batches: how many.
    transfer: time in which a batch gets from a device to the next, beside their work; a wire
      carries one batch at a time.
  """
  orders = [[Work(s, n) for n in range(batches)] for s in range(len(stages))]
  costs = {work: stages[work.stage] for order in orders for work in order}
  return _run(orders, costs, len(stages), transfer)


def speedup_in_ticks(stages: Sequence[float], batches: int) -> float:
  """Of a pipeline whose stages all wait for the slowest one in every tick, as one program's do.

  `N sum(t) / ((N + S - 1) max(t))` over one device.
  """
  ticks = batches + len(stages) - 1
  return batches * sum(stages) / (ticks * max(stages))


def backprop_pipeline(
  forward: Sequence[float],
  backward: Sequence[float],
  micro_batches: int,
  steps: int = 1,
  transfer: float = 0.0,
  one_f_one_b: bool = False,
) -> Timeline:
  """Backprop: micro-batches go up and come down, and all devices wait for the last one.

  Args:
    forward: time of a whole batch in each stage, on its way up.
    backward: the same, on its way down.
    micro_batches: into how many a batch is cut.
    steps: batches, one after another.
    transfer: of a micro-batch between devices, up or down.
    one_f_one_b: devices take what has come back before new micro-batches, and so keep at most as
      many as there are stages above and with them; otherwise (GPipe) all go up first.
  """
  num_stages = len(forward)
  orders: list[list[Work]] = [[] for _ in forward]
  for first in range(0, steps * micro_batches, micro_batches):
    for s in range(num_stages):
      ahead = min(micro_batches, num_stages - s) if one_f_one_b else micro_batches
      up = [Work(s, n) for n in range(first, first + micro_batches)]
      down = [Work(s, n, True) for n in range(first, first + micro_batches)]
      orders[s] += up[:ahead]
      for i in range(micro_batches):
        orders[s] += [down[i], *up[ahead + i : ahead + i + 1]]
  costs = {
    work: (backward if work.backward else forward)[work.stage] / micro_batches
    for order in orders
    for work in order
  }
  return _run(orders, costs, num_stages, transfer, micro_batches)


def data_parallel_speedup(total: float, devices: int, all_reduce: float = 0.0) -> float:
  """Of batches shared out over devices, if all of a step's work divides.

  Args:
    total: time of a step on one device.
    devices: how many.
    all_reduce: time in which gradients are summed, not hidden behind work.
  """
  return total / (total / devices + (all_reduce if devices > 1 else 0.0))


def _needs(work: Work, num_stages: int, flush: int) -> Iterable[Work]:
  """What must have been done, on this device or another."""
  stage, batch, backward = work
  if not backward:
    if stage:
      yield Work(stage - 1, batch)
    if flush and batch >= flush:  # weights move when all micro-batches of the last step are back
      yield Work(stage, batch - batch % flush - 1, True)
  elif stage < num_stages - 1:
    yield Work(stage + 1, batch, True)
  else:
    yield Work(stage, batch)


def _run(
  orders: Sequence[Sequence[Work]],
  costs: Mapping[Work, float],
  num_stages: int,
  transfer: float,
  flush: int = 0,
) -> Timeline:
  """Runs the devices' orders, each piece as early as it can."""
  starts: dict[Work, float] = {}
  arrived: dict[Work, float] = {}  # at the device that needs it from another one
  wires: dict[tuple[int, bool], float] = {}
  free = [0.0] * len(orders)
  at = [0] * len(orders)
  while any(i < len(order) for i, order in zip(at, orders, strict=True)):
    moved = False
    for device, order in enumerate(orders):
      while at[device] < len(order):
        work = order[at[device]]
        needs = list(_needs(work, num_stages, flush))
        if any(n not in starts for n in needs):
          break
        times = [starts[n] + costs[n] if n.stage == device else arrived[n] for n in needs]
        starts[work] = max([free[device], *times])
        free[device] = end = starts[work] + costs[work]
        wire = (device, work.backward)
        wires[wire] = arrived[work] = max(end, wires.get(wire, 0.0)) + transfer
        at[device] += 1
        moved = True
    if not moved:
      raise ValueError("the schedule waits for itself")
  firsts = [starts[order[0]] for order in orders]
  busy = tuple(sum(costs[work] for work in order) for order in orders)
  return Timeline(starts, max(free), busy, max(firsts), max(free) - min(free), sum(busy))
