"""Does the input path keep up? Examples a second of reading, of the step, and of both together.

  python -m experiments.benchmarks.input_speed --preset=dtg_images:imagenet100 --data_dir=DIR \\
    [--batch_size=64] [--steps=20] [--rounds=5]

DIR holds the preset's set as records (`prepare_data --array_record`). Turn by turn in one run:
reading (Grain to the host), sending (reading, and on to the device), the step (the batches of one
window that stays on the device, augmentation included) and training (all of it, overlapped).

Rows: examples a second of each; how many times as fast reading and sending are as the step
(`speedup`, to be above 1); and training's over the step's, which is 1 where the input is hidden.
The operating system keeps files that were read in memory: a set that is larger than it is read
from the disk, a small one is not.
"""

import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, config, results, streams
from experiments.assembly import Experiment, build
from experiments.console import console
from fflax.random import Role, role_key
from fflax.training.chunk import make_chunk
from fflax.training.streaming import feed_chunk
from fflax.types import TrainState

_PRESET = flags.DEFINE_string("preset", "dtg_images:imagenet100", "whose step and data it is")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where the set lies, as records")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 0, "0: the preset's own", lower_bound=0)
_STEPS = flags.DEFINE_integer("steps", 20, "batches a round", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds of each", lower_bound=2)


class Paths:
  """What is timed, each a function of no arguments that sees `steps` batches; warm."""

  def __init__(self, experiment: Experiment, steps: int):
    """Raises ValueError if the set is not streamed."""
    data, split = experiment.config.data, experiment.dataset.train
    # It ends where a round does: what is read ahead of the next one would cost this one time.
    stream = streams.training_stream(split, data.batch_size, data.shuffle, steps)
    if stream is None:
      raise ValueError(
        f"{experiment.dataset.name} is in memory, nothing is read: make records of it "
        "(python -m experiments.prepare_data --array_record=DIR/NAME.array_record)"
      )
    self._stream, self._steps, self._window = stream, steps, stream.window(steps)
    feed = experiment.feed._replace(indices=stream.indices)
    self._chunk = make_chunk(experiment.trainer, feed, self._window)
    self._fresh = experiment.init()  # every round begins in the order of a new run
    self._held: TrainState = jax.tree.map(jnp.copy, self._fresh)  # is trained, and donated
    self._key = role_key(self._fresh.key, Role.BATCH)
    with contextlib.closing(stream.open(self._key, 0)) as batches:
      window = zip(*itertools.islice(batches, self._window), strict=True)
      images, labels = (jnp.asarray(np.concatenate(part)) for part in window)
    self._data = images, labels
    for run in self.all().values():
      run()

  def all(self) -> dict[str, Callable[[], None]]:
    """By name."""
    return {
      "reading": self.reading,
      "sending": self.sending,
      "step": self.step,
      "training": self.training,
    }

  def reading(self) -> None:
    for _ in self._stream.open(self._key, 0):
      pass

  def sending(self) -> None:
    def chunk(held: Any, images: Any, labels: Any, num_steps: int) -> tuple[Any, Any]:
      del num_steps
      return held, (images[0, 0, 0], labels[:1])  # waits for the window, no more

    self._finish(chunk)

  def step(self) -> None:
    for first in range(0, self._steps, self._window):
      steps = min(self._window, self._steps - first)
      self._held, _ = self._chunk(self._held, *self._data, steps)
    jax.block_until_ready(self._held)

  def training(self) -> None:
    self._finish(self._chunk)

  def _finish(self, chunk: Any) -> None:
    with contextlib.closing(self._stream.batches(self._fresh)) as batches:
      fed = feed_chunk(chunk, batches, self._fresh, self._window)
      self._held, found = fed(self._held, None, None, self._steps)
    jax.block_until_ready((self._held, found))


def rows(
  experiment: Experiment, seconds: dict[str, list[float]], steps: int, command: str
) -> list[dict[str, Any]]:
  """Examples a second, and ratios to the step, round by round."""
  size, shape = experiment.config.data.batch_size, experiment.dataset.train.image.shape[1:]
  columns = results.choices(experiment.config) | {
    "dataset": f"{experiment.dataset.name}, {'x'.join(map(str, shape))}, batch {size}",
    "locality": experiment.trainer.locality,
    "command": command,
  }
  found = [
    results.row("examples_per_second", [steps * size / t for t in times], preset=name, **columns)
    for name, times in seconds.items()
  ]
  for name in ("reading", "sending", "training"):
    found += results.speedups(seconds, name, ("step",), preset=name, **columns)
  return found


def main(argv: list[str]) -> None:
  del argv
  with cli.checking():
    chosen = config.load_preset(_PRESET.value)
    data: dict[str, Any] = {
      "data_dir": _DATA_DIR.value,
      "batch_size": _BATCH_SIZE.value or chosen.data.batch_size,
    }
    chosen = dataclasses.replace(chosen, data=dataclasses.replace(chosen.data, **data))
    experiment = build(chosen)
    paths = Paths(experiment, _STEPS.value)
  seconds: dict[str, list[float]] = {name: [] for name in paths.all()}
  examples = _STEPS.value * chosen.data.batch_size
  for i in range(_ROUNDS.value):
    for name, run in paths.all().items():
      start = time.perf_counter()
      run()
      seconds[name].append(time.perf_counter() - start)
    console.print(
      f"round {i + 1}, examples/s: "
      + ", ".join(f"{n} {examples / t[-1]:.1f}" for n, t in seconds.items())
    )
  command = cli.command_line("experiments.benchmarks.input_speed", sys.argv[1:])
  found = rows(experiment, seconds, _STEPS.value, command)
  for row in found:
    if row["metric"] == "speedup":
      console.print(f"{row['preset']} over the step: {row['median']:.3g}")
  console.print(f"written {results.write_study('input_speed', found)}")


if __name__ == "__main__":
  cli.run(main)
