"""Speed of training: the library against eager PyTorch, and seeds under `vmap` against one by one.

  python -m experiments.benchmarks.training_speed --data_dir=DIR [--examples=50000] [--rounds=3]

1. An epoch of the `loewex` recipe (784-3x1000, batch 100; positive, negative and neutral views,
   peer normalisation, readout trained along, data included) in float32 and bfloat16 against the
   same recipe in eager PyTorch with its DataLoader (`torch_rivals`), turn by turn in this process.
2. Digits, a 256-256 Forward-Forward net: 16 seeds under one `vmap` against 16 runs in a row.

Results are ratios of one run: `speedup` rows in experiments/results/training_speed.json.
"""

import dataclasses
import importlib.util
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, config, results
from experiments.assembly import Experiment, build
from experiments.console import console
from fflax.data import sources
from fflax.data.dataset import Dataset, Split
from fflax.training.chunk import make_chunk

_DATA_DIR = flags.DEFINE_string("data_dir", "", "where mnist lies; empty: random images")
_EXAMPLES = flags.DEFINE_integer("examples", 50000, "examples an epoch", lower_bound=1000)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "rounds of each rival", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 16, "seeds under vmap", lower_bound=2)
_COMMAND = "python -m experiments.benchmarks.training_speed --data_dir=DIR"


def seconds(run: Callable[[], None]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def training_images(count: int) -> Dataset:
  """MNIST cut to its first `count` training images, or random images of its size."""
  if _DATA_DIR.value:
    mnist = sources.load("mnist", data_dir=_DATA_DIR.value)
    return mnist._replace(train=Split(mnist.train.image[:count], mnist.train.label[:count]))
  rng = np.random.default_rng(0)
  split = Split(
    rng.integers(0, 256, (count, 28, 28, 1), np.uint8), rng.integers(0, 10, count).astype(np.int32)
  )
  return Dataset("random", split, None, split, num_classes=10, max_value=255)


def library_epoch(experiment: Experiment) -> Callable[[], None]:
  """A function that trains one more epoch, compiled and warm."""
  steps = experiment.plan.num_steps // experiment.config.epochs
  chunk = make_chunk(experiment.trainer, experiment.feed, steps)
  held = [experiment.init()]
  images, labels = jnp.asarray(experiment.images), jnp.asarray(experiment.labels)

  def epoch() -> None:
    held[0], (metrics, _) = chunk(held[0], images, labels, steps)
    if not np.isfinite(np.asarray(metrics["loss"])).all():
      raise RuntimeError(f"the {experiment.config.numerics} run diverged")

  epoch()
  return epoch


def torch_epoch(dataset: Dataset) -> tuple[Callable[[], None], int]:
  """The rival's epoch, warm, and the `num_workers` that is fastest for it here."""
  from experiments.benchmarks import torch_rivals

  image, label = dataset.train
  workers, _ = torch_rivals.fastest_num_workers(image, label)
  loader = torch_rivals.make_loader(image, label, num_workers=workers)
  model = torch_rivals.make_loewex()

  def epoch() -> None:
    if not np.isfinite(torch_rivals.train_epoch(model, loader)).all():
      raise RuntimeError("the PyTorch run diverged")

  epoch()
  return epoch, workers


def against_torch() -> list[dict]:
  """Speed-ups of an epoch over eager PyTorch, one row a numerics."""
  dataset = training_images(_EXAMPLES.value)
  preset = config.load_preset("ff_mnist_loewex")
  experiments = {
    n: build(dataclasses.replace(preset, numerics=n), dataset) for n in ("float32", "bfloat16")
  }
  runs = {n: library_epoch(e) for n, e in experiments.items()}
  runs["torch"], workers = torch_epoch(dataset)
  times: dict[str, list[float]] = {name: [] for name in runs}
  for i in range(_ROUNDS.value):
    for name, run in runs.items():
      times[name].append(seconds(run))
    console.print(f"round {i + 1}: " + ", ".join(f"{n} {t[-1]:.2f} s" for n, t in times.items()))
  return [
    results.row(
      "speedup",
      np.asarray(times["torch"]) / np.asarray(times[name]),
      method="forward_forward",
      preset="ff_mnist_loewex",
      locality=experiments[name].trainer.locality,
      numerics=name,
      dataset=f"{dataset.name}, {len(dataset.train.label)} examples",
      rival=f"eager PyTorch float32, DataLoader with {workers} workers",
      seconds={n: [round(s, 3) for s in times[n]] for n in (name, "torch")},
      command=_COMMAND,
    )
    for name in experiments
  ]


def seeds_under_vmap() -> dict:
  """The speed-up of training seeds on the digits as one program over one after another."""
  count = _SEEDS.value
  chosen = dataclasses.replace(
    config.load_preset("ff_digits"), epochs=10, networks={"mlp": {"sizes": (256, 256)}}
  )
  experiment = build(chosen)
  steps, key_data = experiment.plan.num_steps, jnp.arange(count)
  keys = jax.vmap(jax.random.key)(key_data)
  init = jax.jit(lambda key: experiment.trainer.init(key, experiment.example()))
  init_all = jax.jit(jax.vmap(init))
  one = make_chunk(experiment.trainer, experiment.feed, steps)
  every = make_chunk(experiment.trainer, experiment.feed, steps, over_seeds=True)
  data = (jnp.asarray(experiment.images), jnp.asarray(experiment.labels), steps)

  def alone() -> None:
    for key in keys:
      jax.block_until_ready(one(init(key), *data))

  def together() -> None:
    jax.block_until_ready(every(init_all(keys), *data))

  alone()
  together()
  pairs = [(seconds(alone), seconds(together)) for _ in range(_ROUNDS.value)]
  return results.row(
    "speedup",
    [a / b for a, b in pairs],
    method="forward_forward",
    network="mlp 256-256",
    locality=experiment.trainer.locality,
    numerics=chosen.numerics,
    dataset="digits",
    preset=f"{count} seeds under vmap",
    rival=f"{count} runs one after another",
    seconds={"alone": [p[0] for p in pairs], "together": [p[1] for p in pairs]},
    command=_COMMAND,
  )


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    if importlib.util.find_spec("torch") is None:
      raise ValueError("PyTorch is the rival here: pip install -r requirements-bench.txt")
  rows = [seeds_under_vmap(), *against_torch()]
  for r in rows:
    console.print(
      f"{r['preset']} {r['numerics']}: {r['mean']:.2f} +- {r['std']:.2f} times as fast as "
      f"{r['rival']}"
    )
  console.print(f"results   {results.write_study('training_speed', rows)}")
  return 0


if __name__ == "__main__":
  cli.run(main)
