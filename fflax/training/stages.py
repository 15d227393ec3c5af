"""A strict step cut into stages: contiguous layers that need only what the stage below hands on.

No gradient crosses a layer, so stage s may work on batch n while stage s - 1 works on batch n + 1:
it needs the stage below's output for its batch, from before that stage's update, and nothing back.
All keys are functions of step and layer, so the numbers are those of the ordinary step; to the bit,
as tested on CPU devices, whose compiler sees each layer by itself (`fflax.core.branches`): fused
with what else its stage does, sums would round otherwise than in the ordinary step. What one batch
needs of all layers at once rides along with it: features, for readouts above the last stage.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax

from fflax.core import tags
from fflax.core.branches import computed_once, surely
from fflax.random import Role, role_key, step_key
from fflax.training.blocks import stack_states, unstack_states
from fflax.training.layer_step import Run, load_params, read_views
from fflax.training.lookahead import Lookahead
from fflax.training.readout_step import train_readouts
from fflax.training.sweeps import eval_layer, per_layer, sweep_blocks
from fflax.types import (
  Array,
  Batch,
  LayerState,
  Method,
  Metrics,
  Network,
  PyTree,
  ReadoutState,
  Schedule,
  TrainState,
)


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
    layers: the same without readouts, `(state, message, offset=0) -> (layers, message, metrics)`;
      one serves equal layers that stand `offset` further up, too.
    readouts: `(state, message) -> (readouts, metrics)`: trained on all that the message has read.
    split: the state of a run -> one `TrainState` a stage; the last one has the readouts.
    join: its inverse.
  """

  enter: Callable[[TrainState, Batch], Message]
  steps: tuple[Callable[[TrainState, Message], tuple[TrainState, Message, Metrics]], ...]
  layers: tuple[Callable[..., tuple[tuple[LayerState, ...], Message, Metrics]], ...]
  readouts: Callable[[TrainState, Message], tuple[tuple[ReadoutState, ...], Metrics]]
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

  def make_layers(stage: int) -> Callable:
    first, own_blocks = firsts[stage], blocks[stage]

    def learn(
      state: TrainState, message: Message, offset: Array | int = 0
    ) -> tuple[tuple[LayerState, ...], Message, Metrics]:
      key, read, plain = step_key(state.key, state.step), list(message.read), message.plain
      if own_pass:
        for i, own in enumerate(unstack_states(state.layers, own_blocks), first):
          look = functools.partial(_look, run, i, own, plain)
          seen, plain = computed_once(look, jnp.logical_not(surely(message.label)))
          read.append(seen)
      layers, x, rows, heard = sweep_blocks(
        run,
        first,
        own_blocks,
        state.layers,
        message.x,
        message.label,
        key,
        offset=offset,
        apart=True,
      )
      if run.readouts_listen:
        read += [r[0] for r in heard]
      return layers, Message(x, message.label, plain, tuple(read)), per_layer(rows)

    return learn

  def readouts(state: TrainState, message: Message) -> tuple[tuple[ReadoutState, ...], Metrics]:
    if not message.read:
      return state.readouts, {}
    # As the ordinary step marks it: a pass in evaluation mode reads no counts.
    with tags.counts(0 if own_pass else counted):
      key = step_key(state.key, state.step)
      return train_readouts(run, state, message.read, message.label, key)

  def make_step(stage: int) -> Callable:
    learn, is_last = layers[stage], stage == len(sizes) - 1

    def step(state: TrainState, message: Message) -> tuple[TrainState, Message, Metrics]:
      own, above, metrics = learn(state, message)
      heads = state.readouts
      if is_last:
        heads, more = readouts(state, above)
        above, metrics = Message((), message.label), {**metrics, **more}
      return TrainState(state.step + 1, state.key, own, heads), above, metrics

    return step

  layers = tuple(make_layers(i) for i in range(len(sizes)))

  def split(state: TrainState) -> tuple[TrainState, ...]:
    each, parts = unstack_states(state.layers, run.blocks), []
    for stage, (first, n) in enumerate(zip(firsts, sizes, strict=True)):
      heads = state.readouts if stage == len(sizes) - 1 else ()
      own = stack_states(each[first : first + n], blocks[stage])
      parts.append(TrainState(state.step, state.key, own, heads))
    return tuple(parts)

  def join(parts: Sequence[TrainState]) -> TrainState:
    pairs = zip(parts, blocks, strict=True)
    each = [s for part, own in pairs for s in unstack_states(part.layers, own)]
    last = parts[-1]
    return TrainState(last.step, last.key, stack_states(each, run.blocks), last.readouts)

  steps = tuple(make_step(i) for i in range(len(sizes)))
  return Stages(enter, steps, layers, readouts, split, join)


def _look(run: Run, index: int, state: LayerState, plain: PyTree) -> tuple[Array, PyTree]:
  """What trained readouts read of a layer in a pass of their own, and what it hands on."""
  out, plain = eval_layer(run, index, load_params(run, state), state.stats, plain)
  return read_views(run.method, out, plain)[0], plain


def _cut(blocks: Sequence[int], start: int, stop: int) -> tuple[int, ...]:
  """The parts of the blocks that lie in layers `[start, stop)`."""
  found, first = [], 0
  for n in blocks:
    part = min(stop, first + n) - max(start, first)
    if part > 0:
      found.append(part)
    first += n
  return tuple(found)
