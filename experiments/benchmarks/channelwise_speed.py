"""Speed of channel-wise and binary stochastic FF: noise by counter, and against eager PyTorch.

  python -m experiments.benchmarks.channelwise_speed [--batches=8] [--rounds=5]

One process, turn by turn: so many training steps of the CFSE network 20-80-240-480 on 28x28 images,
batch 128, every layer learning, data included.

- channel-wise FF in float32, bfloat16 and int8, against the same recipe in eager PyTorch with its
  DataLoader (`torch_channelwise`), if PyTorch is there;
- binary stochastic FF with seven p-bits: noise from a counter (the library) against the same
  probabilities compared with `jax.random` numbers, and against real-valued channel-wise FF.

Rows go to experiments/results/channelwise_speed.json.
"""

import dataclasses
import importlib.util
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, results
from experiments.assembly import build, trainer_parts
from experiments.config import load_preset
from experiments.console import console
from fflax.core.numerics_registry import make_numerics
from fflax.core.pbit_units import probabilities, seeds_per_sample, to_windows
from fflax.core.pbits import emit
from fflax.core.quantize import seed_words
from fflax.data.dataset import Dataset, Split
from fflax.data.normalize import statistics
from fflax.networks.activations import Pbits
from fflax.networks.registry import make_network
from fflax.training.chunk import make_chunk
from fflax.training.step import make_trainer
from fflax.types import Array, Key

_BATCHES = flags.DEFINE_integer("batches", 8, "training steps a round", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "rounds of every rival", lower_bound=3)
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 128, "examples a step", lower_bound=2)
_COMMAND = "python -m experiments.benchmarks.channelwise_speed"
TORCH, REAL, COUNTER, PLAIN = (
  "eager PyTorch",
  "channelwise float32",
  "p-bits, counter noise",
  "p-bits, jax.random noise",
)
# Label -> (preset, numerics).
RUNS = {
  REAL: ("cwc_mnist", "float32"),
  "channelwise bfloat16": ("cwc_mnist", "bfloat16"),
  "channelwise int8": ("cwc_mnist", "int8"),
  COUNTER: ("bsff_mnist", "float32"),
  PLAIN: ("bsff_mnist", "float32"),
  "p-bits, counter noise, int8": ("bsff_mnist", "int8"),
}


@dataclasses.dataclass(frozen=True)
class PlainPbits(Pbits):
  """p-bits that compare their probabilities with uniform numbers of `jax.random`."""

  def emit(self, key: Key | None, x: Array, window: int = 1) -> tuple[Array, Array]:
    """As the library's."""
    if key is None:
      return super().emit(key, x, window)
    word = jnp.zeros(x.shape, jnp.uint16)
    seed_key, *keys = jax.random.split(key, self.config.units + 1)
    for unit, p in enumerate(probabilities(jax.lax.stop_gradient(x), self.config)):
      word |= (jax.random.uniform(keys[unit], x.shape) < p).astype(jnp.uint16) << unit
    number = seeds_per_sample(self.config)
    seeds = seed_words(seed_key, 2 * number).reshape(2, number, 2)
    return emit(self.config, window, to_windows(x, window), to_windows(word, window), seeds)


def images() -> Dataset:
  """Random images of MNIST's size, as many as a round has steps for."""
  rng, size = np.random.default_rng(0), _BATCHES.value * _BATCH_SIZE.value
  image = rng.integers(0, 256, (size, 28, 28, 1), np.uint8)
  split = Split(image, rng.integers(0, 10, size).astype(np.int32))
  return Dataset("mnist", split, None, split, num_classes=10, max_value=255.0)


def library_run(label: str, dataset: Dataset) -> Callable[[], None]:
  """A function that takes a round of steps, compiled and warm."""
  preset, numerics = RUNS[label]
  config = dataclasses.replace(load_preset(preset), numerics=numerics, schedule="simultaneous")
  data = dataclasses.replace(config.data, batch_size=_BATCH_SIZE.value, validation=0)
  config = dataclasses.replace(config, data=data)
  experiment = build(config, dataset)
  trainer = experiment.trainer
  if label == PLAIN:
    parts = trainer_parts(config, dataset.num_classes, _BATCHES.value)
    parts["network"] = make_network(
      config.network,
      numerics=make_numerics(numerics),
      activation=PlainPbits(config.pbits),
      kernel_init=config.kernel_init,
      **config.networks[config.network],
    )
    trainer = make_trainer(image_shape=dataset.train.image.shape[1:], **parts)
  chunk = make_chunk(trainer, experiment.feed, _BATCHES.value)
  held = [jax.jit(trainer.init)(jax.random.key(0), experiment.example())]
  images, labels = jnp.asarray(experiment.images), jnp.asarray(experiment.labels)

  def once() -> None:
    held[0], (metrics, _) = chunk(held[0], images, labels, _BATCHES.value)
    if not np.isfinite(np.asarray(metrics["loss"])).all():
      raise RuntimeError(f"the run {label!r} diverged")

  once()
  return once


def torch_run(dataset: Dataset) -> Callable[[], None]:
  """The rival's round, warm; its images are standardised once, before."""
  from experiments.benchmarks import torch_channelwise as rival

  mean, std = statistics(dataset, "standard")
  image = (dataset.train.image / np.float32(dataset.max_value) - mean) / std
  model = rival.Channelwise((1, 28, 28))
  loader = rival.make_loader(image.astype(np.float32), dataset.train.label, _BATCH_SIZE.value)

  def once() -> None:
    if not np.isfinite(model.train_epoch(loader)).all():
      raise RuntimeError("the PyTorch run diverged")

  once()
  return once


def main(argv: list[str]) -> int:
  del argv
  dataset = images()
  runs = {label: library_run(label, dataset) for label in RUNS}
  if importlib.util.find_spec("torch") is None:
    console.print("PyTorch is not there: pip install -r requirements-bench.txt for its rival")
  else:
    runs[TORCH] = torch_run(dataset)
  seconds: dict[str, list[float]] = {label: [] for label in runs}
  for _ in range(_ROUNDS.value):
    for label, once in runs.items():
      start = time.perf_counter()
      once()
      seconds[label].append(time.perf_counter() - start)
  rows = []
  for label, own in seconds.items():
    if label == TORCH:
      continue
    columns = {
      "method": load_preset(RUNS[label][0]).method,
      "preset": label,
      "network": "cfse",
      "numerics": RUNS[label][1],
      "locality": "strict",
      "dataset": f"random images 28x28x1, batch {_BATCH_SIZE.value}",
      "command": _COMMAND,
    }
    rows += results.speedups(seconds, label, (TORCH, REAL, PLAIN), **columns)
    steps = [1e3 * s / _BATCHES.value for s in own]
    rows.append(results.row("step_ms", steps, **columns))
  for label, own in seconds.items():
    beside = ", ".join(
      f"{np.median(np.asarray(seconds[r]) / np.asarray(own)):.2f} of {r}"
      for r in (TORCH, REAL, PLAIN)
      if r in seconds and r != label
    )
    console.print(f"{label:30s} {1e3 * np.median(own) / _BATCHES.value:8.1f} ms a step  {beside}")
  console.print(f"results   {results.write_study('channelwise_speed', rows)}")
  return 0


if __name__ == "__main__":
  cli.run(main)
