"""Splits of a run, in memory or streamed: their arrays, their batches and their evaluation."""

import functools
from collections.abc import Callable

import jax.numpy as jnp
from jax.sharding import Mesh

from fflax.data import record_stream
from fflax.data.array_record_source import is_streamed
from fflax.data.dataset import Split
from fflax.training.evaluate import make_evaluate, make_streamed_evaluate
from fflax.training.sharding import replicate
from fflax.training.streaming import Batches, Stream
from fflax.training.trainer import Trainer
from fflax.types import Array, Key, TrainState


def placed(split: Split, mesh: Mesh | None) -> tuple[Array, Array]:
  """Images and labels on the device, or devices; a streamed split stays where it is."""
  if is_streamed(split):
    return split  # type: ignore[return-value]
  return replicate((jnp.asarray(split.image), jnp.asarray(split.label)), mesh)


def training_stream(split: Split, batch_size: int, shuffle: bool, num_steps: int) -> Stream | None:
  """The batches of a streamed split, to the end of the run; None: it is not streamed."""
  if not is_streamed(split):
    return None

  def start(key: Key, first_step: int) -> Batches:
    rows = record_stream.step_rows(key, len(split.label), batch_size, shuffle)
    return record_stream.batches(split, rows, num_steps, first_step)

  return Stream(start, batch_size, batch_size * (split.image.size // len(split.image)))


def evaluation(
  trainer: Trainer,
  preprocess: Callable[[Array], Array],
  split: Split,
  batch_size: int,
  num_classes: int,
  multiple_of: int,
  mesh: Mesh | None,
) -> Callable[[TrainState], dict[str, Array]]:
  """`make_evaluate` bound to its split, or its streamed form."""
  if is_streamed(split):
    read = functools.partial(record_stream.batches, split)
    return make_streamed_evaluate(
      trainer, preprocess, read, split.label, batch_size, num_classes, multiple_of=multiple_of
    )
  images, labels = placed(split, mesh)
  evaluate = make_evaluate(
    trainer, preprocess, len(labels), batch_size, num_classes, multiple_of=multiple_of
  )
  return lambda state: evaluate(state, images, labels)
