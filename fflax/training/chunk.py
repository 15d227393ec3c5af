"""Chunks: many training steps in one dispatch, batches included.

One jitted, state-donating function gathers each step's batch from the arrays on the device,
augments it and takes the step; the host only says how many steps. Every step is a pure function of
the state and the data, and the one compiled loop body serves chunks of any length, so where a chunk
begins or ends does not change a bit of the result.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from fflax.random import Role, role_key, step_key
from fflax.training.streaming import Stream
from fflax.training.trainer import Trainer
from fflax.types import Array, Batch, Key, Metrics, TrainState


class Feed(NamedTuple):
  """How the batches of a run are made; pure functions.

  Attributes:
    indices: `(key, first_step, num_steps) -> [num_steps, B]`, the examples of each step's batch;
      `first_step` may be traced. The key is the same for all steps of a run.
    preprocess: `(key, image [B, ...] as stored) -> [B, ...] float32`, augmentation included; the
      key is the step's own.
    stream: brings the examples of `indices` where the split is not on the device; None: it is.
  """

  indices: Callable[[Key, Array, int], Array]
  preprocess: Callable[[Key, Array], Array]
  stream: Stream | None = None


Chunk = Callable[
  [TrainState, Array, Array, Array | int], tuple[TrainState, tuple[Metrics, Metrics]]
]


def gather_batch(
  feed: Feed, state: TrainState, images: Array, labels: Array, index: Array
) -> Batch:
  """The batch of the state's step, of the examples `index` `[B]`."""
  key = role_key(step_key(state.key, state.step), Role.AUGMENT)
  return Batch(feed.preprocess(key, images[index]), labels[index])


def failures(metrics: Metrics) -> Metrics:
  """Which of the losses among the metrics are not finite."""
  losses = {n: x for n, x in metrics.items() if n == "loss" or n.startswith("readout_loss/")}
  return {name: ~jnp.isfinite(loss) for name, loss in losses.items()}


def chunk_function(trainer: Trainer, feed: Feed, capacity: int) -> Chunk:
  """The pure function that takes several training steps; see `make_chunk`, which jits it."""
  capacity = max(capacity, 2)  # with one row, a newer compiler would round otherwise than with many

  def one_step(
    state: TrainState, images: Array, labels: Array, index: Array
  ) -> tuple[TrainState, tuple[Metrics, Metrics]]:
    new, metrics = trainer.step(state, gather_batch(feed, state, images, labels, index))
    failed = failures(metrics)
    if trainer.schedule.active is not None:
      # Layers that do not learn in this step report NaN.
      failed["loss"] &= trainer.schedule.active(state.step, len(trainer.layer_names))
    return new, (metrics, failed)

  def chunk(
    state: TrainState, images: Array, labels: Array, num_steps: Array | int
  ) -> tuple[TrainState, tuple[Metrics, Metrics]]:
    indices = feed.indices(role_key(state.key, Role.BATCH), state.step, capacity)
    _, shapes = jax.eval_shape(one_step, state, images, labels, indices[0])
    rows = jax.tree.map(lambda s: jnp.zeros((capacity, *s.shape), s.dtype), shapes)

    def body(i: Array, carry: tuple) -> tuple:
      state, rows = carry
      state, row = one_step(state, images, labels, indices[i])
      return state, jax.tree.map(lambda all_rows, x: all_rows.at[i].set(x), rows, row)

    # Not `lax.scan`: its length is static, so each length would be a program of its own, with
    # roundings of its own, and a run would depend on where its chunks begin.
    return lax.fori_loop(0, num_steps, body, (state, rows))

  return chunk


def make_chunk(
  trainer: Trainer,
  feed: Feed,
  capacity: int,
  *,
  over_seeds: bool = False,
) -> Chunk:
  """Makes the jitted `chunk(state, images, labels, num_steps) -> (state, (metrics, failed))`.

  `state` is donated: the caller's copy is gone. `images` `[N, ...]` and `labels` `[N]` stay on the
  device. Of the `[capacity, ...]` metrics (two rows at least), the first `num_steps` are
  meaningful; `failed` has, for "loss" (`[capacity, L]`) and each "readout_loss/<name>", whether it
  was not finite.

  Args:
    trainer: takes the steps.
    feed: makes the batches.
    capacity: the most steps of one call, `num_steps <= capacity`; one compilation serves all.
    over_seeds: the state has a leading axis of seeds (of anything that differs between states, in
      fact) and so have all results; the data are shared, the batches are each seed's own.
  """
  chunk = chunk_function(trainer, feed, capacity)
  if over_seeds:
    chunk = jax.vmap(chunk, in_axes=(0, None, None, None))
  return jax.jit(chunk, donate_argnums=0)
