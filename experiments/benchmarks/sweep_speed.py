"""Speed of a sweep: 32 runs of the digits MLP under one `vmap` against one after another.

  python -m experiments.benchmarks.sweep_speed [--rounds=3] [--epochs=10] [--sizes=64,64]
    [--nocommands]

8 seeds x 4 learning rates of `ff_digits`. The rival runs every configuration alone in the same
process; it compiles once for every learning rate, which is a constant of its program, and uses the
program again for the seeds. Both load nothing, evaluate on the test split at the end, and must
find the same mean accuracy. Two ratios: with compilation, every round afresh; and of programs that
are compiled already. `--commands`, as by default, adds a third, once, as a user waits: one
`experiments.sweep` against 32 `experiments.train`, each of which starts Python, compiles and
writes its folder.
"""

import dataclasses
import functools
import itertools
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cells, cli, config, results
from experiments.assembly import Experiment, build
from experiments.console import console
from experiments.sweep_axes import Point, grid
from experiments.sweep_points import Program, make_program, run_together
from fflax.data import sources
from fflax.data.dataset import Dataset
from fflax.training.chunk import Chunk, make_chunk

_ROUNDS = flags.DEFINE_integer("rounds", 3, "rounds of both", lower_bound=2)
_EPOCHS = flags.DEFINE_integer("epochs", 10, "of every run", lower_bound=1)
_SIZES = flags.DEFINE_list("sizes", ["64", "64"], "units of the layers")
_COMMANDS = flags.DEFINE_bool("commands", True, "also time the programs that users start")
_RATES = (1e-3, 3e-3, 1e-2, 3e-2)
_SEEDS = tuple(range(8))
_RATE = "optimizer.learning_rate"
VMAPS = ("one vmap", "one vmap, compiled")


class Alone:
  """Runs points one after another; keeps the programs that it has compiled."""

  def __init__(self, dataset: Dataset):
    self._dataset = dataset
    self._compiled: dict[float, tuple[Experiment, Any, Chunk, Any]] = {}

  def accuracy(self, point: Point) -> float:
    rate = point.settings[_RATE]
    if rate not in self._compiled:
      own = build(point.config, self._dataset)
      example, steps = own.example(), own.plan.num_steps
      self._compiled[rate] = (
        own,
        jax.jit(lambda key: own.trainer.init(key, example)),
        make_chunk(own.trainer, own.feed, min(500, steps)),
        own.evaluator("test", self._dataset.test),
      )
    own, init, chunk, evaluate = self._compiled[rate]
    state, done = init(jax.random.key(point.config.seed)), 0
    images, labels = jnp.asarray(own.images), jnp.asarray(own.labels)
    while done < own.plan.num_steps:
      length = min(500, own.plan.num_steps - done)
      state, _ = chunk(state, images, labels, length)
      done += length
    return float(evaluate(state)[f"test/accuracy/{own.config.readouts[0]}"])


def command(program: str, *arguments: str) -> None:
  """Runs `python -m experiments.<program>` of the small net.

  Raises:
    subprocess.CalledProcessError: it failed; its own words come first.
  """
  small = (
    "--config=experiments/configs/ff_digits.py",
    f"--config.epochs={_EPOCHS.value}",
    f"--config.eval_every={_EPOCHS.value}",
    f"--config.networks.mlp.sizes=({','.join(_SIZES.value)},)",
  )
  line = (sys.executable, "-m", f"experiments.{program}", *small, *arguments)
  done = subprocess.run(line, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
  if done.returncode:
    console.print(done.stdout[-2000:], markup=False)
  done.check_returncode()


def sweep_command() -> None:
  """All points by one command."""
  with tempfile.TemporaryDirectory() as folder:
    seeds, rates = (",".join(map(str, values)) for values in (_SEEDS, _RATES))
    command("sweep", f"--axis=seed={seeds}", f"--axis={_RATE}={rates}", f"--workdir={folder}/all")


def train_commands() -> None:
  """A command for each point, one after another."""
  with tempfile.TemporaryDirectory() as folder:
    for seed, rate in itertools.product(_SEEDS, _RATES):
      own = (
        f"--config.seed={seed}",
        f"--config.{_RATE}={rate}",
        f"--workdir={folder}/{seed}_{rate}",
      )
      command("train", *own)


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    sizes = tuple(int(n) for n in _SIZES.value)
    base = dataclasses.replace(
      config.load_preset("ff_digits"),
      epochs=_EPOCHS.value,
      eval_every=_EPOCHS.value,
      networks={"mlp": {"sizes": sizes}},
    )
    points, _ = grid(base, {"seed": _SEEDS, _RATE: _RATES})
    dataset = sources.load(base.data.name)
    locality = build(points[0].config, dataset).trainer.locality
  datasets = dict.fromkeys(_SEEDS, dataset)
  key = f"accuracy/{base.readouts[0]}"
  seconds: dict[str, list[float]] = {}

  def timed(name: str, run: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    found = run()
    seconds.setdefault(name, []).append(time.perf_counter() - start)
    return found

  def one_by_one(alone: Alone) -> list[float]:
    return [alone.accuracy(point) for point in points]

  def together(program: Program) -> list[float]:
    found = run_together(points, [_RATE], datasets, program=program)
    return [one["accuracy"]["test"][key] for one in found]

  for i in range(_ROUNDS.value):
    jax.clear_caches()
    alone = Alone(dataset)
    for name in ("one after another", "one after another, compiled"):
      other = timed(name, functools.partial(one_by_one, alone))
    jax.clear_caches()
    program = make_program(points, [_RATE], dataset)
    for name in VMAPS:
      found = timed(name, functools.partial(together, program))
    # Single runs may part where sums run in another order; their mean may not.
    apart = 100 * abs(float(np.mean(other) - np.mean(found)))
    if apart > 1:
      raise RuntimeError(f"mean accuracies differ by {apart:.2f} points: these are other runs")
    last = ", ".join(f"{n} {s[-1]:.2f} s" for n, s in seconds.items())
    console.print(f"round {i + 1}: {last}; mean accuracies differ by {apart:.2f} points")
  pairs = [(label, label.replace("one vmap", "one after another")) for label in VMAPS]
  if _COMMANDS.value:
    timed("one sweep command", sweep_command)
    timed("train commands", train_commands)
    pairs.append(("one sweep command", "train commands"))
  columns = {
    **results.choices(base),
    "preset": "ff_digits",
    "locality": locality,
    "points": len(points),
    "command": cli.command_line("experiments.benchmarks.sweep_speed", sys.argv[1:]),
  }
  rows = []
  for label, rival in pairs:
    own = {n: [round(s, 3) for s in seconds[n]] for n in (label, rival)}
    told = {**columns, "preset": f"{len(points)} points of ff_digits, {label}", "seconds": own}
    rows += results.speedups(seconds, label, [rival], **told)
  written = results.write_study("sweep_speed", rows)
  for r in rows:
    console.print(f"{r['preset']}: {cells.mean_of(r)} times as fast as {r['rival']}")
  console.print(f"results   {written}")
  return 0


if __name__ == "__main__":
  cli.run(main)
