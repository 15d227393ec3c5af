"""A pipeline as one program: equal layers, shared out over the devices of a mesh axis.

Every device owns an equal share of a run of equal layers and runs the same compiled program (SPMD).
In each tick, device d trains its layers on batch t - d, and a collective permute then moves the
messages up by one device. One loop drives a whole chunk; in the ticks that fill and drain the pipe,
a device without a batch skips its work and keeps its state. Keys are those of each batch's step and
each layer, so the numbers are those of the ordinary step (to the bit, as tested on CPU devices).

Layers before the run stand with the first device, which makes the batches; those after it, and
trained readouts, with the last. As all devices have the same arrays, each has room for them and
for the training set, but uses them only there.

Beside `fflax.training.pipeline`, where a host dispatches a program for each stage: what is compiled
is one share, however many devices there are, and the host has nothing to do within a chunk. But a
tick takes as long as its slowest device, the pipe is filled and drained in each chunk (of a
streamed set: in each window), and the layers must be equal.

Paper: Y. Xu et al., "GSPMD", arXiv 2105.04663, section 3.3: stages under `vmap` over a sharded axis
of layers, and a buffer that shifts along it.
Deviations: `shard_map` in the place of `vmap`, for a product with a batch axis more may sum in
another order; here each device compiles the layers of the ordinary step, on a CPU each by itself.
No backward pass, so no micro-batches, and no bubble but one fill a chunk.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from fflax.random import Role, role_key
from fflax.training.chunk import Feed, failures, gather_batch
from fflax.training.pipeline import Pipeline, cut, whole_rows
from fflax.training.sharding import make_mesh
from fflax.training.stages import Message
from fflax.training.trainer import Trainer
from fflax.types import Array, Key, LayerState, Metrics, PyTree, ReadoutState, TrainState

_AXIS, _WHOLE, _SPLIT = "layer", PartitionSpec(), PartitionSpec("layer")


class Share(NamedTuple):
  """How layers are shared out: with the first device, with every device, with the last one."""

  before: int
  each: int
  after: int


class _Parts(NamedTuple):
  """The state of a run: step and key whole on every device, the rest with a leading axis of them.

  What stands before is that of the first device, what stands after and the readouts that of the
  last; the others have copies from the start.
  """

  step: Array
  key: Key
  share: tuple[LayerState, ...]
  before: tuple[LayerState, ...]
  after: tuple[LayerState, ...]
  readouts: tuple[ReadoutState, ...]


class _Wire(NamedTuple):
  """What moves up with a batch, one shape for all devices.

  Attributes:
    message: without what is read.
    below: what trained readouts read of the layers before.
    shares: of the shares, `[devices, ...]` for each layer of one; zeros for those above.
  """

  message: Message
  below: tuple[Array, ...]
  shares: tuple[Array, ...]


class _Held(NamedTuple):
  """What a device carries from tick to tick: its part, the wire, and rows of metrics."""

  share: tuple[LayerState, ...]
  before: tuple[LayerState, ...]
  after: tuple[LayerState, ...]
  readouts: tuple[ReadoutState, ...]
  wire: _Wire
  rows: tuple[Metrics, Metrics, Metrics]


def share_out(runs: Sequence[int], num_devices: int, network: str) -> Share:
  """Shares out the longest run of equal layers; what does not divide stands with the first device.

  Args:
    runs: lengths of the runs of equal neighbours, which sum to L.
    num_devices: how many share them.
    network: its name.

  Raises:
    ValueError: it has fewer layers than there are devices; one sentence.
  """
  longest = max(runs)
  each, rest = divmod(longest, num_devices)
  if not each:
    raise ValueError(
      f"one program for a pipeline of {num_devices} devices needs as many equal layers in a row "
      f"with inputs of one shape, and network {network!r} has {longest}: use mesh.pipeline='mpmd'"
    )
  first = sum(runs[: list(runs).index(longest)])
  return Share(first + rest, each, sum(runs) - first - longest)


def _take(tree: PyTree, device: int) -> PyTree:
  return jax.tree.map(lambda a: a[device], tree)


def _zeros(shapes: PyTree, *lead: int) -> PyTree:
  return jax.tree.map(lambda s: jnp.zeros((*lead, *s.shape), s.dtype), shapes)


def _put_row(rows: Metrics, row: Metrics, i: Array) -> Metrics:
  return {n: rows[n].at[i].set(x) for n, x in row.items()}


def make_spmd_pipeline(
  trainer: Trainer, feed: Feed, capacity: int, share: Share, num_devices: int
) -> Pipeline:
  """Makes a pipeline of a strict run over the first devices, equally many of each process.

  Args:
    trainer: of the run.
    feed: makes the batches.
    capacity: the most steps of one chunk.
    share: of `share_out`, of the trainer's equal layers.
    num_devices: how many.

  Raises:
    ValueError: the run cannot be pipelined, or there are too few devices; one sentence.
  """
  before, each, after = share
  stages = cut(trainer, [n for n in (before, *(each,) * num_devices, after) if n])
  of_share, last = int(before > 0), num_devices - 1
  up = [(device, device + 1) for device in range(last)]
  mesh = make_mesh(layer=num_devices)
  kinds = _Parts._make((_WHOLE, _WHOLE, *(_SPLIT,) * 4))
  over_devices = functools.partial(jax.shard_map, mesh=mesh, check_vma=False)

  def program(
    parts: _Parts, images: Array, labels: Array, num_steps: Array
  ) -> tuple[_Parts, tuple[Metrics, Metrics]]:
    """A chunk, as each of the devices sees it."""
    here = lax.axis_index(_AXIS)
    indices = feed.indices(role_key(parts.key, Role.BATCH), parts.step, capacity)

    def at(i: Array | int, layers: PyTree, readouts: PyTree = ()) -> TrainState:
      """As batch i of the chunk finds it."""
      return TrainState(parts.step + i, parts.key, layers, readouts)

    def begin(i: Array | int, before_run: PyTree) -> tuple[PyTree, Message, Metrics]:
      state = at(i, before_run)
      batch = gather_batch(feed, state, images, labels, indices[i])
      message = stages.enter(state, batch)
      return stages.layers[0](state, message) if before else (before_run, message, {})

    def go_on(i: Array | int, own: PyTree, message: Message) -> tuple[PyTree, Message, Metrics]:
      return stages.layers[of_share](at(i, own), message, here * each)

    def end(
      i: Array | int, after_run: PyTree, readouts: PyTree, wire: _Wire
    ) -> tuple[PyTree, PyTree, Metrics]:
      read = (*wire.below, *(a[d] for d in range(num_devices) for a in wire.shares))
      message, metrics = wire.message._replace(read=read), Metrics()
      if after:
        after_run, message, metrics = stages.layers[-1](at(i, after_run), message)
      readouts, more = stages.readouts(at(i, (), readouts), message)
      return after_run, readouts, {**metrics, **more}

    def work(i: Array, held: _Held) -> _Held:
      own, before_run, after_run, readouts, wire, (low, middle, high) = held

      def first_device() -> tuple:
        new, message, row = begin(i, before_run)
        bare = message._replace(read=())
        return new, wire._replace(message=bare, below=message.read), _put_row(low, row, i)

      def last_device() -> tuple:
        *new, row = end(i, after_run, readouts, wire)
        return *new, _put_row(high, row, i)

      before_run, wire, low = lax.cond(here == 0, first_device, lambda: (before_run, wire, low))
      own, message, row = go_on(i, own, wire.message)
      shares = jax.tree.map(lambda all_, a: all_.at[here].set(a), wire.shares, message.read)
      wire = wire._replace(message=message._replace(read=()), shares=shares)
      if high:
        kept = (after_run, readouts, high)
        after_run, readouts, high = lax.cond(here == last, last_device, lambda: kept)
      rows = low, _put_row(middle, row, i), high
      return _Held(own, before_run, after_run, readouts, wire, rows)

    def tick(t: Array, held: _Held) -> _Held:
      i = t - here
      held = lax.cond((i >= 0) & (i < num_steps), work, lambda _, kept: kept, i, held)
      return held._replace(wire=jax.tree.map(lambda a: lax.ppermute(a, _AXIS, up), held.wire))

    own, before_run, after_run, readouts = _take(parts[2:], 0)
    _, entered, low = jax.eval_shape(begin, 0, before_run)
    message = entered._replace(read=())
    _, left, middle = jax.eval_shape(go_on, 0, own, message)
    wire = _Wire(_zeros(message), _zeros(entered.read), _zeros(left.read, num_devices))
    *_, high = jax.eval_shape(end, 0, after_run, readouts, wire)
    rows = _zeros((low, middle, high), capacity)
    held = _Held(own, before_run, after_run, readouts, wire, rows)
    # Not `lax.scan`, whose length is static; see `fflax.training.chunk`.
    *new, _, rows = lax.fori_loop(0, num_steps + last, tick, held)
    low, middle, high = jax.tree.map(lambda a: lax.all_gather(a, _AXIS), rows)
    columns = [_take(middle, device) for device in range(num_devices)]
    if before:
      columns.insert(0, _take(low, 0))
    if after:
      columns.append({})
    columns[-1] = {**columns[-1], **_take(high, last)}
    metrics = whole_rows(columns)
    new = jax.tree.map(lambda a: a[None], new)
    return _Parts(parts.step + num_steps, parts.key, *new), (metrics, failures(metrics))

  run = jax.jit(
    over_devices(program, in_specs=(kinds, _WHOLE, _WHOLE, _WHOLE), out_specs=(kinds, _WHOLE)),
    donate_argnums=0,
  )

  @jax.jit
  def split(state: TrainState) -> tuple[PyTree, ...]:
    layers = [part.layers for part in stages.split(state)]
    own = jax.tree.map(lambda *a: jnp.stack(a), *layers[of_share : of_share + num_devices])
    ends = layers[0] if before else (), layers[-1] if after else (), state.readouts
    return own, *jax.tree.map(lambda a: jnp.stack([a] * num_devices), ends)

  @jax.jit
  def join(
    step: Array, key: Key, own: PyTree, before_run: PyTree, after_run: PyTree, readouts: PyTree
  ) -> TrainState:
    layers = [_take(own, device) for device in range(num_devices)]
    layers = [_take(before_run, 0)] * bool(before) + layers + [_take(after_run, last)] * bool(after)
    found = [TrainState(step, key, own, ()) for own in layers]
    return stages.join(
      [*found[:-1], dataclasses.replace(found[-1], readouts=_take(readouts, last))]
    )

  @jax.jit
  @functools.partial(over_devices, in_specs=_SPLIT, out_specs=_WHOLE)
  def to_all(tree: PyTree) -> PyTree:
    return jax.tree.map(lambda a: lax.all_gather(a[0], _AXIS), tree)

  whole, parted = NamedSharding(mesh, _WHOLE), NamedSharding(mesh, _SPLIT)

  def scatter(state: TrainState) -> _Parts:
    # From the host: of several processes, each has the whole state.
    def placed(x: Array, sharding: NamedSharding) -> Array:
      return jax.make_array_from_callback(x.shape, sharding, np.asarray(x).__getitem__)

    step, key = placed(state.step, whole), placed(jax.random.key_data(state.key), whole)
    key = jax.random.wrap_key_data(key, impl=jax.random.key_impl(state.key))
    return _Parts(step, key, *jax.tree.map(lambda x: placed(x, parted), split(state)))

  def gather(parts: _Parts) -> TrainState:
    # All copies of what stands before and after come, one is used: a moment's memory.
    here = jax.tree.map(lambda a: a.addressable_data(0), (*parts[:2], *to_all(parts[2:])))
    here = jax.device_put(here, jax.local_devices()[0])
    return join(*jax.tree.map(jnp.copy, here[:2]), *here[2:])

  latest: list[tuple[Array, ...]] = []

  def on_all(images: Array, labels: Array) -> tuple[Array, ...]:
    """The data on every device; they are the same for all chunks, where they are not streamed."""
    if not latest or latest[0][0] is not images:
      placed = (
        jax.make_array_from_single_device_arrays(
          x.shape, whole, [jax.device_put(x, device) for device in mesh.local_devices]
        )
        for x in (images, labels)
      )
      latest[:] = [(images, *placed)]
    return latest[0][1:]

  def chunk(
    parts: _Parts, images: Array, labels: Array, num_steps: int
  ) -> tuple[_Parts, tuple[Metrics, Metrics]]:
    return run(parts, *on_all(images, labels), num_steps)

  return Pipeline(scatter, chunk, gather)
