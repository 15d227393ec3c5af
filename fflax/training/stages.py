"""A strict step cut into stages: contiguous layers that need only what the stage below hands on.

No gradient crosses a layer, so stage s may work on batch n while stage s - 1 works on batch n + 1:
it needs the stage below's output for its batch, from before that stage's update, and nothing back.
All keys are functions of step and layer, so the numbers are those of the ordinary step (to the
bit, as tested on CPU devices). What one
batch needs of all layers at once rides along with it: features, for readouts above the last stage.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from jax import lax

from fflax.core import tags
from fflax.random import Role, role_key, step_key
from fflax.training.blocks import stack_states, unstack_states
from fflax.training.layer_step import Run, load_params, read_views
from fflax.training.lookahead import Lookahead
from fflax.training.readout_step import train_readouts
from fflax.training.sweeps import eval_layer, per_layer, sweep_blocks
from fflax.types import Array, Batch, Method, Metrics, Network, PyTree, Schedule, TrainState


class Message(NamedTuple):
  """What goes up with a batch.

  Attributes:
    x: the training views, as the stage below hands them on, `[V, B, ...]`; () above the last one.
    label: `[B]` int32.
    plain: the plain view `[1, B, ...]` in evaluation mode, where trained readouts have a pass of
      their own; else ().
    read: what trained readouts read of every layer below; () if there are none.
  """

  x: PyTree
  label: Array
  plain: PyTree = ()
  read: tuple[Array, ...] = ()


class Stages(NamedTuple):
  """A step in stages; pure functions.

  Attributes:
    enter: `(state, batch) -> Message` for the first stage, whose state tells the key and the step.
    steps: one a stage, `(state, message) -> (state, message, metrics)`: the state of its layers
      alone; metrics `[layers of the stage]`, and those of the readouts from the last.
    split: the state of a run -> one `TrainState` a stage; the last one has the readouts.
    join: its inverse.
  """

  enter: Callable[[TrainState, Batch], Message]
  steps: tuple[Callable[[TrainState, Message], tuple[TrainState, Message, Metrics]], ...]
  split: Callable[[TrainState], tuple[TrainState, ...]]
  join: Callable[[Sequence[TrainState]], TrainState]


def check_stages(
  network: Network,
  method: Method,
  schedule: Schedule,
  lookahead: Lookahead | None,
  sizes: Sequence[int],
) -> None:
  """Refuses runs that need more than what the layer below hands on, and sizes that do not fit.

  Raises:
    ValueError: one sentence that says why.
  """
  num_layers = len(network.layers)
  if method.recurrence is not None or method.locality != "strict" or lookahead is not None:
    hears = "hear the layer above" if method.recurrence is not None else f"are {method.locality}"
    hears = hears if lookahead is None else "look ahead"
    raise ValueError(
      "a pipeline needs layers that need only what the layer below hands on; those of method "
      f"{method.name!r} {hears} in this run"
    )
  if schedule.active is not None:
    raise ValueError(
      f"under schedule {schedule.name!r} layers take turns, which leaves a pipeline nothing to "
      "overlap: use schedule 'simultaneous'"
    )
  if method.negatives_from is not None:
    raise ValueError(
      f"method {method.name!r} draws hard negatives from what all layers answer to a batch, which "
      "a pipeline does not know when the batch enters: use negatives that do not ask the network"
    )
  if not sizes or min(sizes) < 1 or sum(sizes) != num_layers:
    raise ValueError(
      f"the stages of a pipeline must share out the {num_layers} layers of network "
      f"{network.name!r}, at least one each, not {list(sizes)}"
    )


def make_stages(run: Run, own_pass: bool, sizes: Sequence[int]) -> Stages:
  """Cuts the step of a run into stages of `sizes` layers.

  Args:
    run: of a strict method.
    own_pass: whether trained readouts read a pass of the plain view of their own.
    sizes: contiguous layers of each stage, from the input up.

  Raises:
    ValueError: see `check_stages`.
  """
  check_stages(run.network, run.method, run.schedule, run.lookahead, sizes)
  firsts = [sum(sizes[:i]) for i in range(len(sizes))]
  blocks = [_cut(run.blocks, f, f + n) for f, n in zip(firsts, sizes, strict=True)]
  counted = min(layer.counts for layer in run.network.layers)

  def enter(state: TrainState, batch: Batch) -> Message:
    key = role_key(step_key(state.key, state.step), Role.VIEWS)
    x = lax.stop_gradient(run.method.views(key, batch, None))
    plain = run.method.plain_view(batch.image)[None] if own_pass else ()
    return Message(x, batch.label, plain)

  def make_step(stage: int) -> Callable:
    first, own_blocks, is_last = firsts[stage], blocks[stage], stage == len(sizes) - 1

    def step(state: TrainState, message: Message) -> tuple[TrainState, Message, Metrics]:
      key, read, plain = step_key(state.key, state.step), list(message.read), message.plain
      if own_pass:
        for i, own in enumerate(unstack_states(state.layers, own_blocks), first):
          out, plain = eval_layer(run, i, load_params(run, own), own.stats, plain)
          read.append(read_views(run.method, out, plain)[0])
      layers, x, rows, heard = sweep_blocks(
        run, first, own_blocks, state.layers, message.x, message.label, key
      )
      if run.readouts_listen:
        read += [r[0] for r in heard]
      metrics, readouts = per_layer(rows), state.readouts
      above = Message(x, message.label, plain, tuple(read))
      if is_last:
        above = Message((), message.label)
        if read:
          # As the ordinary step marks it: a pass in evaluation mode reads no counts.
          with tags.counts(0 if own_pass else counted):
            readouts, more = train_readouts(run, state, tuple(read), message.label, key)
          metrics |= more
      return TrainState(state.step + 1, state.key, layers, readouts), above, metrics

    return step

  def split(state: TrainState) -> tuple[TrainState, ...]:
    layers, parts = unstack_states(state.layers, run.blocks), []
    for stage, (first, n) in enumerate(zip(firsts, sizes, strict=True)):
      readouts = state.readouts if stage == len(sizes) - 1 else ()
      own = stack_states(layers[first : first + n], blocks[stage])
      parts.append(TrainState(state.step, state.key, own, readouts))
    return tuple(parts)

  def join(parts: Sequence[TrainState]) -> TrainState:
    pairs = zip(parts, blocks, strict=True)
    layers = [s for part, own in pairs for s in unstack_states(part.layers, own)]
    last = parts[-1]
    return TrainState(last.step, last.key, stack_states(layers, run.blocks), last.readouts)

  return Stages(enter, tuple(make_step(i) for i in range(len(sizes))), split, join)


def _cut(blocks: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
  """The parts of the blocks that lie in layers `[start, stop)`."""
  found, first = [], 0
  for n in blocks:
    part = min(stop, first + n) - max(start, first)
    if part > 0:
      found.append(part)
    first += n
  return tuple(found)
