"""A streamed run against the run whose data lie on the device: the same bits, cut or not."""

import contextlib
import functools
import os
import subprocess
import sys
import tempfile

import jax
import numpy as np
import pytest

from fflax.training import checkpoint, loop, streaming
from fflax.training.evaluate import make_evaluate, make_streamed_evaluate
from fflax.training.loop import Diverged, train
from fflax.training.streaming import Stream
from tests.training import toy
from tests.training.checkpoint_test import bits

BATCH_BYTES = toy.BATCH_SIZE * 4


OPENED: list[int] = []
CLOSED: list[int] = []


@functools.cache
def stream() -> Stream:
  """The toy's batches, taken on the host step by step."""
  images, labels = map(np.asarray, toy.make_data())

  def start(key, first_step):
    OPENED.append(first_step)
    rows = np.asarray(toy.make_feed().indices(key, first_step, toy.PLAN.num_steps - first_step))
    try:
      yield from ((images[i], labels[i]) for i in rows)
    finally:
      CLOSED.append(first_step)

  return Stream(start, toy.BATCH_SIZE, BATCH_BYTES)


def run(directory=None, faults=None, **options):
  trainer = toy.make_trainer()
  state, feed = toy.make_state(trainer, **(faults or {})), toy.make_feed()._replace(stream=stream())
  return train(trainer, feed, state, None, None, toy.PLAN, directory=directory, **options)


class Cut(Exception):
  """In the place of a kill."""


def compare_runs() -> None:
  """Windows as long as a chunk, then of three steps; and a run that is cut twice."""
  loop.make_chunk = functools.cache(loop.make_chunk)
  rows: list[dict] = []
  expected = toy.run(None, evaluate=None, on_row=rows.append)
  for steps in (100, 3):
    streaming.WINDOW, found = steps * BATCH_BYTES, []
    assert bits(run(on_row=found.append)) == bits(expected), steps
    assert found == rows
  OPENED.clear()
  with tempfile.TemporaryDirectory() as directory:
    for last in (14, 40, 100):

      def cut(row, last=last):
        if row["step"] == last:
          raise Cut

      with contextlib.suppress(Cut):
        run(directory, on_row=cut)
    # The position is the checkpoint's step: the stream begins there, and nowhere else.
    assert OPENED == [0, 12, 36], OPENED
    assert bits(checkpoint.restore(f"{directory}/checkpoints", expected)) == bits(expected)


def test_equals_the_run_in_memory(repo_root):
  """In a process whose programs are made as a user's are: the tests' quicker ones round anew."""
  code = "from tests.training import streaming_test; streaming_test.compare_runs()"
  environment = {**os.environ, "XLA_FLAGS": ""}
  subprocess.run([sys.executable, "-c", code], cwd=repo_root, env=environment, check=True)


def test_a_fault_is_of_its_own_step(monkeypatch, caplog):
  """Rows of the windows of a chunk stand in the steps' order, and the last one's padding is cut."""
  CLOSED.clear()
  monkeypatch.setattr(streaming, "WINDOW", 3 * BATCH_BYTES)
  with jax.log_compiles(), pytest.raises(Diverged, match="in step 12 ") as error:
    run(faults={"nan_loss_at": 12})
  assert CLOSED == [0], f"who keeps the {error.typename} would keep the readers"
  # Not the size of its cache, which was once found empty at the end of a long process.
  compiled = [m for m in caplog.messages if m.startswith("Compiling jit(chunk)")]
  assert len(compiled) == 1, "a program a window"


@pytest.mark.parametrize(
  ("window", "capacity", "steps"), [(1, 7, 1), (BATCH_BYTES * 5, 7, 5), (BATCH_BYTES * 9, 7, 7)]
)
def test_windows_are_bounded(monkeypatch, window, capacity, steps):
  """By bytes, which bound the device's memory, and by the longest chunk; one step at least."""
  monkeypatch.setattr(streaming, "WINDOW", window)
  assert stream().window(capacity) == steps


@pytest.mark.parametrize("batch_size", [7, 53])
def test_evaluation_equals_the_one_in_memory(batch_size):
  """Every example counts once, though the last batch is filled up."""
  trainer = toy.make_trainer()
  state, (images, labels) = toy.make_state(trainer), toy.make_data()
  whole = make_evaluate(trainer, toy.preprocess, len(labels), batch_size, toy.NUM_CLASSES)
  sizes = []

  def read(rows, num_batches):
    for i in range(num_batches):
      sizes.append(len(rows(i)))
      yield np.asarray(images)[rows(i)], None

  streamed = make_streamed_evaluate(
    trainer, toy.preprocess, read, np.asarray(labels), batch_size, toy.NUM_CLASSES
  )
  found, expected = streamed(state), whole(state, images, labels)
  assert jax.tree.map(float, found) == jax.tree.map(float, expected)
  assert sizes == [batch_size] * -(-53 // batch_size)


def test_an_evaluation_that_fails_closes_its_reader():
  trainer, ends = toy.make_trainer(), []
  images, labels = map(np.asarray, toy.make_data())

  def read(rows, num_batches):
    try:
      for i in range(num_batches):
        yield images[rows(i)][: 8 if i else None], None
    finally:
      ends.append(num_batches)

  evaluate = make_streamed_evaluate(trainer, toy.preprocess, read, labels, 9, toy.NUM_CLASSES)
  with pytest.raises(ValueError, match="scores have shape") as error:
    evaluate(toy.make_state(trainer))
  assert ends == [6], error
