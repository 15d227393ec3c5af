"""Pipelined training: each stage of layers on a device of its own, all of them busy.

Stage s takes batch n as soon as stage s - 1 has handed it on and stage s has taken batch n - 1. So
after the fill every device works all the time, without a backward message, a flush or a stale
weight, and the numbers are those of the ordinary step (`fflax.training.stages`; to the bit, as
tested on CPU devices). The host only
dispatches the stages' programs, batch by batch; what must wait for what, the runtime finds from the
arrays, so that stages overlap by themselves, across chunks too.

Paper: what devices gain is sum(t) / max(t) of the stages' times t at best; see
`fflax.analysis.pipeline_schedule`. Layers on nodes of their own: E. Aktemur et al., "Going
Forward-Forward in Distributed Deep Learning", arXiv 2404.08573.
Deviations: theirs trains a layer for whole chapters of epochs before the next one follows; here
layers follow by one batch, as if they had learned on one device.
"""

import collections
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fflax.random import Role, role_key
from fflax.training.chunk import Feed, failures, gather_batch
from fflax.training.stages import Message, Stages
from fflax.types import Array, Metrics, Trainer, TrainState

_DEPTH = 2
"""Batches under way for each stage; enough that no stage waits for the host."""

Parts = Any
"""The state of a run in a pipeline: a `TrainState` of each stage, on its device."""


class Pipeline(NamedTuple):
  """A run over several devices.

  Attributes:
    scatter: `(state) -> parts`; copies.
    chunk: `(parts, images, labels, num_steps) -> (parts, (metrics, failed))`: as a `Chunk` of
      `fflax.training.chunk`, on parts, which are donated; it does not wait for its end.
    gather: `(parts) -> state`, all of it on the first device.
  """

  scatter: Callable[[TrainState], Parts]
  chunk: Callable[[Parts, Array, Array, int], tuple[Parts, tuple[Metrics, Metrics]]]
  gather: Callable[[Parts], TrainState]


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
    devices: one for each stage, which may recur; None: the first ones there are.

  Raises:
    ValueError: the run cannot be pipelined, or there are too few devices; one sentence.
  """
  if trainer.stages is None:
    raise ValueError("a trainer that shares each batch over devices has no stages: use one of them")
  stages: Stages = trainer.stages(sizes)
  found = list(jax.devices()[: len(sizes)] if devices is None else devices)
  if len(found) != len(sizes):
    raise ValueError(f"a pipeline of {len(sizes)} stages needs as many devices, not {len(found)}")

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

  def fresh_rows(parts: Parts, data: tuple[Array, Array, Array]) -> list[Metrics]:
    """Room for the metrics of a chunk, on each stage's device."""

    def one_batch(parts: Parts, data: tuple[Array, Array, Array]) -> list[Metrics]:
      images, labels, indices = data
      message = stages.enter(parts[0], gather_batch(feed, parts[0], images, labels, indices[0]))
      each = []
      for step, part in zip(stages.steps, parts, strict=True):
        _, message, metrics = step(part, message)
        each.append(metrics)
      return each

    if not shapes:  # of the metrics; the same for all chunks
      shapes.extend(jax.eval_shape(one_batch, parts, data))
    return [
      {n: jnp.zeros((capacity, *s.shape), s.dtype, device=d) for n, s in own.items()}
      for own, d in zip(shapes, found, strict=True)
    ]

  shapes: list[dict[str, jax.ShapeDtypeStruct]] = []

  @jax.jit
  def whole_rows(parts: Sequence[Metrics]) -> tuple[Metrics, Metrics]:
    """`[capacity, L]` from the stages' `[capacity, layers]`; NaN where layers do not report."""
    whole = {}
    for name in sorted({n for rows in parts for n in rows}):
      nan = [jnp.full_like(rows["loss"], jnp.nan) for rows in parts]
      columns = [rows.get(name, none) for rows, none in zip(parts, nan, strict=True)]
      scalar = columns[-1].ndim == 1  # of a readout
      whole[name] = columns[-1] if scalar else jnp.concatenate(columns, axis=1)
    return whole, failures(whole)

  def scatter(state: TrainState) -> Parts:
    parts = zip(stages.split(state), found, strict=True)
    return tuple(jax.device_put(part, device, may_alias=False) for part, device in parts)

  def gather(parts: Parts) -> TrainState:
    return stages.join(jax.device_put(parts, found[0], may_alias=False))

  def chunk(
    parts: Parts, images: Array, labels: Array, num_steps: int
  ) -> tuple[Parts, tuple[Metrics, Metrics]]:
    data = (images, labels, indices_of(parts[0]))
    now, rows = list(parts), fresh_rows(parts, data)
    under_way: collections.deque[Array] = collections.deque()
    for i in range(num_steps):
      message: Message | tuple = data
      for s, device in enumerate(found):
        if s:
          message = jax.device_put(message, device)
        now[s], rows[s], message, done = programs[s](now[s], rows[s], message, i)
      # A fast first stage must not pile up what slower ones have not read.
      under_way.append(done)
      if len(under_way) > _DEPTH * len(sizes):
        under_way.popleft().block_until_ready()
    return tuple(now), whole_rows(jax.device_put(rows, found[0]))

  return Pipeline(scatter, chunk, gather)
