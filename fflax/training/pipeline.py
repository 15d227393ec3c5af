"""Pipelined training: each stage of layers on a device of its own, all of them busy.

Stage s takes batch n as soon as stage s - 1 has handed it on and stage s has taken batch n - 1. So
after the fill every device works all the time, without a backward message, a flush or a stale
weight, and the numbers are those of the ordinary step (`fflax.training.stages`; to the bit, as
tested on CPU devices). The host only dispatches the stages' programs, batch by batch; what must
wait for what, the runtime finds from the arrays, so that stages overlap by themselves, across
chunks too.

The devices may be those of several processes: each runs the stages that are on its own devices, and
messages go from one to the other (`fflax.training.links`).

Paper: what devices gain is sum(t) / max(t) of the stages' times t at best; see
`fflax.analysis.pipeline_schedule`. Layers on nodes of their own: E. Aktemur et al., "Going
Forward-Forward in Distributed Deep Learning", arXiv 2404.08573.
Deviations: theirs trains a layer for whole chapters of epochs before the next one follows; here
layers follow by one batch, as if they had learned on one device.
"""

import collections
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fflax.random import Role, role_key
from fflax.training.chunk import Feed, failures, gather_batch
from fflax.training.links import Link, make_link
from fflax.training.sharding import equal_share
from fflax.training.stages import Message, Stages
from fflax.training.trainer import Trainer
from fflax.types import Array, Metrics, PyTree, TrainState

_DEPTH = 2
"""Batches under way for each stage; enough that no stage waits for the host."""

Parts = Any
"""The state of a run in a pipeline: a `TrainState` of each stage, on its device; None for those of
other processes."""


class Pipeline(NamedTuple):
  """A run over several devices.

  Attributes:
    scatter: `(state) -> parts`, which only `chunk` and `gather` look into; copies.
    chunk: `(parts, images, labels, num_steps) -> (parts, (metrics, failed))`: as a `Chunk` of
      `fflax.training.chunk`, on parts, which are donated; it does not wait for its end.
    gather: `(parts) -> state`, all of it on this process's first device.
  """

  scatter: Callable[[TrainState], Parts]
  chunk: Callable[[Parts, Array, Array, int], tuple[Parts, tuple[Metrics, Metrics]]]
  gather: Callable[[Parts], TrainState]


MakePipeline = Callable[[Trainer, Feed, int], Pipeline]
"""Of a trainer, a feed and the most steps of one chunk."""


def cut(trainer: Trainer, sizes: Sequence[int]) -> Stages:
  """The trainer's step in stages of so many layers.

  Raises:
    ValueError: it cannot be cut so; one sentence.
  """
  if trainer.stages is None:
    raise ValueError("a trainer that shares each batch over devices has no stages: use one of them")
  return trainer.stages(sizes)


def whole_rows(parts: Sequence[Metrics]) -> Metrics:
  """`[steps, L]` from the stages' `[steps, layers]`; NaN where layers do not report."""
  whole = {}
  for name in sorted({n for rows in parts for n in rows}):
    nan = [jnp.full_like(rows["loss"], jnp.nan) for rows in parts]
    columns = [rows.get(name, none) for rows, none in zip(parts, nan, strict=True)]
    scalar = columns[-1].ndim == 1  # of a readout
    whole[name] = columns[-1] if scalar else jnp.concatenate(columns, axis=1)
  return whole


def make_pipeline(
  trainer: Trainer,
  feed: Feed,
  capacity: int,
  sizes: Sequence[int],
  devices: Sequence[jax.Device] | None = None,
) -> Pipeline:
  """Makes a pipeline of a strict run.

  Args:
    trainer: of the run.
    feed: makes the batches, on the first device.
    capacity: the most steps of one chunk.
    sizes: how many layers each stage has, from the input up.
    devices: one for each stage, which may recur; None: the first ones of each process, equally
      many.

  Raises:
    ValueError: the run cannot be pipelined, or there are too few devices; one sentence.
  """
  stages = cut(trainer, sizes)
  if devices is None:
    devices = equal_share(jax.devices(), len(sizes), f"a pipeline of {len(sizes)} stages")
  found = list(devices)
  if len(found) != len(sizes):
    raise ValueError(f"a pipeline of {len(sizes)} stages needs as many devices, not {len(found)}")
  homes: dict[int, jax.Device] = {}
  for device in found:
    homes.setdefault(device.process_index, device)
  here = jax.process_index()

  def work(
    stage: int, part: TrainState, rows: Metrics, message: Message, i: Array
  ) -> tuple[TrainState, Metrics, Message, Array]:
    """One batch in one stage; its loss comes apart, as a sign that it is done."""
    part, above, metrics = stages.steps[stage](part, message)
    rows = {n: rows[n].at[i].set(x) for n, x in metrics.items()}
    return part, rows, above, metrics["loss"]

  def start(
    part: TrainState, rows: Metrics, data: tuple[Array, Array, Array], i: Array
  ) -> tuple[TrainState, Metrics, Message, Array]:
    """The first stage, which makes the batch."""
    images, labels, indices = data
    batch = gather_batch(feed, part, images, labels, indices[i])
    return work(0, part, rows, stages.enter(part, batch), i)

  bodies: list[Callable] = [start, *(functools.partial(work, s) for s in range(1, len(sizes)))]
  programs = [jax.jit(body, donate_argnums=(0, 1)) for body in bodies]

  @jax.jit
  def indices_of(part: TrainState) -> Array:
    return feed.indices(role_key(part.key, Role.BATCH), part.step, capacity)

  def one_batch(parts: Parts, data: tuple[Array, Array, Array]) -> tuple[list, list]:
    """What comes out of each stage, for its shapes: messages, and rows for a chunk."""
    images, labels, indices = data
    message = stages.enter(parts[0], gather_batch(feed, parts[0], images, labels, indices[0]))
    messages, rows = [], []
    for step, part in zip(stages.steps, parts, strict=True):
      _, message, metrics = step(part, message)
      messages.append(message)
      rows.append({n: jnp.zeros((capacity, *x.shape), x.dtype) for n, x in metrics.items()})
    return messages, rows

  @functools.cache
  def links_of(what: str) -> list[dict[int, Link]]:
    """Of each stage: process -> link to its first device, for "parts" or "rows"."""
    return [
      {process: make_link(device, home, own) for process, home in homes.items()}
      for device, own in zip(found, shapes[what], strict=True)
    ]

  def to_all(trees: Sequence[PyTree], what: str) -> list[PyTree]:
    """All stages' trees on the first device of every process."""
    arrived = []
    for tree, links in zip(trees, links_of(what), strict=True):
      deliveries = {process: link(tree) for process, link in links.items()}
      arrived.append(deliveries[here].tree)
    return arrived

  @functools.cache
  def links_up() -> list[Link]:
    """From each stage to the next one."""
    return [
      make_link(*ends, message, may_alias=True)
      for ends, message in zip(itertools.pairwise(found), shapes["messages"], strict=False)
    ]

  shapes: dict[str, list] = {}

  @jax.jit
  def results(parts: Sequence[Metrics]) -> tuple[Metrics, Metrics]:
    whole = whole_rows(parts)
    return whole, failures(whole)

  def scatter(state: TrainState) -> Parts:
    shapes["parts"] = list(jax.eval_shape(stages.split, state))
    parts = zip(stages.split(state), found, strict=True)
    return tuple(
      jax.device_put(part, device, may_alias=False) if device.process_index == here else None
      for part, device in parts
    )

  def gather(parts: Parts) -> TrainState:
    return stages.join(to_all(parts, "parts"))

  def chunk(
    parts: Parts, images: Array, labels: Array, num_steps: int
  ) -> tuple[Parts, tuple[Metrics, Metrics]]:
    now = list(parts)
    data = (images, labels, indices_of(next(part for part in now if part is not None)))
    if "rows" not in shapes:  # the same for all chunks
      shapes["messages"], shapes["rows"] = jax.eval_shape(one_batch, shapes["parts"], data)
    rows = [
      {n: jnp.zeros(s.shape, s.dtype, device=d) for n, s in own.items()}
      if part is not None
      else None
      for own, part, d in zip(shapes["rows"], now, found, strict=True)
    ]
    under_way: collections.deque[Array] = collections.deque()
    for i in range(num_steps):
      message: Any = data
      done = None
      for s in range(len(found)):
        if s:
          message, sent = links_up()[s - 1](message)
          done = sent if sent is not None else done
        if now[s] is not None:
          now[s], rows[s], message, done = programs[s](now[s], rows[s], message, i)
      # A fast first stage must not pile up what slower ones have not read.
      assert done is not None
      under_way.append(done)
      if len(under_way) > _DEPTH * len(sizes):
        under_way.popleft().block_until_ready()
    return tuple(now), results(to_all(rows, "rows"))

  return Pipeline(scatter, chunk, gather)
