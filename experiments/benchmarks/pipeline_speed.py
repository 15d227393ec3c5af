"""A pipeline over several cores against one core, and against what the simulator says.

  python -m experiments.benchmarks.pipeline_speed [--stages=2] [--sizes=1000,...] [--rounds=7]
    [--processes=2] [--spmd]

Forward-Forward on a perceptron, random images of MNIST's size, in float32 (time does not depend on
the images). Two processes take turns: one has one core and trains as ever; the other has as many
cores as stages, a device of one thread each, and trains the pipeline, whose parameters are the
same in every bit. The first one also times each stage alone; from these times, and from counted
multiply-accumulates, the simulator predicts the gain. Needs as many free cores as stages.

Rows: times as fast (`speedup`), the two predictions, and the bound; backprop's pipeline (GPipe, of
as many micro-batches as stages times four) is predicted from the same times, a third of them on
the way up.

With `--processes=2` the pipeline is shared by two processes, each on cores of its own, that send
each other messages over the loopback; with `--spmd` another worker trains the pipeline as one
program (`mesh.pipeline='spmd'`), to be compared with both, for which layers should be equal:
`--spmd --sizes=794,794,794,794,794,794,794,794` (pixels and label are 794). The predictions stay
those of the stages that a host dispatches. Results of these go into files of their own.
"""

import dataclasses
import functools
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, config, results
from experiments.assembly import Experiment, build
from experiments.console import console
from experiments.distributed import DistributedConfig, joined
from experiments.staging import choose_stages, layer_costs
from fflax.analysis import pipeline_schedule
from fflax.data.dataset import Dataset, Split
from fflax.training.chunk import make_chunk
from fflax.training.pipeline import MakePipeline, make_pipeline
from fflax.training.sharding import MeshConfig
from fflax.training.spmd_pipeline import make_spmd_pipeline, share_out
from fflax.types import Batch

_COMMAND = "python -m experiments.benchmarks.pipeline_speed"
_FLAGS = "--xla_force_host_platform_device_count={} --xla_cpu_multi_thread_eigen=false"


def make_experiment(
  sizes: Sequence[int], batch: int, image_shape: Sequence[int], stages: int = 1
) -> Experiment:
  """Forward-Forward on random images of four batches; of several stages in several processes."""
  rng = np.random.default_rng(0)
  image = rng.integers(0, 256, (4 * batch, *image_shape), np.uint8)
  split = Split(image, rng.integers(0, 10, 4 * batch).astype(np.int32))
  base = config.load_preset("ff_digits")
  chosen = dataclasses.replace(
    base,
    networks={"mlp": {"sizes": tuple(sizes)}},
    readouts=("score_sum",),
    data=config.DataConfig("random", batch_size=batch),
    mesh=MeshConfig(layer=stages),
  )
  return build(chosen, Dataset("random", split, None, split, num_classes=10, max_value=255))


def alone(experiment: Experiment, steps: int) -> Callable[[], None]:
  """A function that takes so many steps on one device, warm."""
  chunk, held = make_chunk(experiment.trainer, experiment.feed, steps), [experiment.init()]

  def run() -> None:
    held[0], rows = chunk(held[0], experiment.images, experiment.labels, steps)
    jax.block_until_ready((held[0], rows))

  run()
  return run


def pipelined(experiment: Experiment, make: MakePipeline, steps: int) -> Callable[[], None]:
  """The same in a pipeline over the first devices, filled and drained every time."""
  pipeline = make(experiment.trainer, experiment.feed, steps)
  held = [pipeline.scatter(experiment.init())]

  def run() -> None:
    held[0], rows = pipeline.chunk(held[0], experiment.images, experiment.labels, steps)
    jax.block_until_ready((held[0], rows))

  run()
  return run


def stage_seconds(experiment: Experiment, sizes: Sequence[int], repeats: int) -> list[float]:
  """Median seconds of one batch in each stage, one stage after another on this device."""
  assert experiment.trainer.stages is not None
  stages = experiment.trainer.stages(sizes)
  parts = jax.tree.map(jnp.copy, stages.split(experiment.init()))
  size = experiment.config.data.batch_size
  batch = Batch(experiment.preprocess(None, experiment.images[:size]), experiment.labels[:size])
  message, medians = stages.enter(parts[0], batch), []
  for step, part in zip(stages.steps, parts, strict=True):
    run = jax.jit(step, donate_argnums=0)
    part, above, _ = jax.block_until_ready(run(part, message))
    seconds = []
    for _ in range(repeats):
      start = time.perf_counter()
      part, above, _ = jax.block_until_ready(run(part, message))
      seconds.append(time.perf_counter() - start)
    message = above
    medians.append(float(np.median(seconds)))
  return medians


def predictions(times: Sequence[float], macs: Sequence[float], steps: int) -> dict[str, float]:
  """Speed-ups over one device, by the simulator."""
  up, down = ([share * t for t in times] for share in (1 / 3, 2 / 3))
  micro = 4 * len(times)
  return {
    "of the stages' times": pipeline_schedule.pipelined(times, steps).speedup,
    "of multiply-accumulates": pipeline_schedule.pipelined(macs, steps).speedup,
    "bound, of the stages' times": sum(times) / max(times),
    "backprop, GPipe": pipeline_schedule.backprop_pipeline(up, down, micro).speedup,
  }


def rows(
  experiment: Experiment,
  sizes: Sequence[int],
  seconds: dict[str, list[float]],
  times: Sequence[float],
  steps: int,
  processes: int = 1,
  command: str = _COMMAND,
) -> list[dict[str, Any]]:
  """The measured gain beside the predicted ones."""
  widths = ",".join(map(str, experiment.config.networks["mlp"]["sizes"]))
  columns: dict[str, Any] = {
    "method": experiment.method.name,
    "network": f"mlp {widths.replace(',', '-')}",
    "numerics": experiment.config.numerics,
    "dataset": f"random images, batch {experiment.config.data.batch_size}",
    "stages": list(sizes),
    "steps": steps,
    "locality": experiment.trainer.locality,
    "command": command,
    "processes": processes,
  }
  macs = pipeline_schedule.stage_costs(layer_costs(experiment), sizes)
  measured = results.speedups(seconds, "pipeline", ("one core",), preset="measured", **columns)
  if "one program" in seconds:
    rivals = ("one core", "pipeline")
    measured += results.speedups(seconds, "one program", rivals, preset="one program", **columns)
  found = [{**r, "seconds": seconds} for r in measured]
  for name, value in predictions(times, macs, steps).items():
    predicted = results.row(
      "predicted_speedup", [value], preset=name, rival="one device", **columns
    )
    found.append(predicted)
  found.append(results.row("stage_ms", [1e3 * t for t in times], preset="a stage alone", **columns))
  return found


class Worker:
  """This benchmark in processes of its own, which share some of the cores."""

  def __init__(self, role: str, cores: int, processes: int = 1):
    each = cores // processes
    environment = {
      **os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": _FLAGS.format(each)
    }  # fmt: skip
    command = [sys.executable, "-m", "experiments.benchmarks.pipeline_speed", f"--role={role}"]
    command += [a for a in sys.argv[1:] if not a.startswith("--role")]
    own = sorted(_cores(cores))
    with socket.socket() as free:
      free.bind(("127.0.0.1", 0))
      address = f"127.0.0.1:{free.getsockname()[1]}"
    self._processes = [
      subprocess.Popen(
        [*command, f"--process={i}", f"--address={address}"] if processes > 1 else command,
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=functools.partial(os.sched_setaffinity, 0, own[i * each : (i + 1) * each]),
      )
      for i in range(processes)
    ]
    self.greeting = self._read()[0]

  def _read(self) -> list[Any]:
    """What each process says."""
    found = []
    for process in self._processes:
      assert process.stdout is not None
      line = process.stdout.readline()
      while line.startswith("[Gloo]"):  # it talks to stdout
        line = process.stdout.readline()
      if not line:
        raise RuntimeError("a worker ended early; its error stands above")
      found.append(json.loads(line))
    return found

  def seconds(self) -> float:
    """Of one round, until the last process is done."""
    for process in self._processes:
      assert process.stdin is not None
      process.stdin.write("go\n")
      process.stdin.flush()
    return max(self._read())

  def close(self) -> None:
    """Ends it."""
    for process in self._processes:
      assert process.stdin is not None
      process.stdin.close()
    for process in self._processes:
      process.wait()


def _cores(number: int) -> set[int]:
  """The first of the cores that this process may use."""
  found = sorted(os.sched_getaffinity(0))
  if len(found) < number:
    raise ValueError(f"{number} stages need as many cores, but this process may use {len(found)}")
  return set(found[:number])


def serve(run: Callable[[], None], greeting: Any) -> None:
  """Takes a round for every line that is read, and tells its seconds."""
  print(json.dumps(greeting), flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    run()
    print(json.dumps(time.perf_counter() - start), flush=True)


def _chosen() -> tuple[Experiment, tuple[int, ...], MakePipeline]:
  """The experiment of the flags, the layers of each stage, and the worker's pipeline."""
  values = flags.FLAGS
  with cli.checking():
    widths = [int(n) if n.strip().isdigit() else 0 for n in values.sizes]
    if not widths or min(widths) < 1:
      raise ValueError(f"--sizes takes widths of layers, not {','.join(values.sizes)}")
    if values.stages % values.processes:
      raise ValueError(
        f"--stages={values.stages} cannot be shared out equally by {values.processes} processes"
      )
    if not values.role:
      _cores(values.stages)
    several = values.role not in ("", "one core") and values.processes > 1
    shared = values.stages if several else 1
    experiment = make_experiment(widths, values.batch, (28, 28, 1), shared)
    sizes = choose_stages(experiment, values.stages)
    if not values.spmd or values.role == "pipeline":
      return experiment, sizes, functools.partial(make_pipeline, sizes=sizes)
    share = share_out(experiment.trainer.equal_layers, values.stages, experiment.network.name)
    make = functools.partial(make_spmd_pipeline, share=share, num_devices=values.stages)
    return experiment, sizes, make


def _work(role: str) -> int:
  """What a worker does."""
  steps = flags.FLAGS.steps
  experiment, sizes, make = _chosen()
  if role != "one core":
    serve(pipelined(experiment, make, steps), None)
  else:
    serve(alone(experiment, steps), stage_seconds(experiment, sizes, 2 * steps))
  return 0


def main(argv: list[str]) -> int:
  del argv
  values = flags.FLAGS
  if values.role:
    several = values.role != "one core" and values.processes > 1
    others = DistributedConfig(values.address, values.processes, values.process)
    with joined(others if several else DistributedConfig()):
      return _work(values.role)
  experiment, sizes, _ = _chosen()
  steps, processes = values.steps, values.processes
  workers = {
    "one core": Worker("one core", 1),
    "pipeline": Worker("pipeline", values.stages, processes),
  }
  if values.spmd:
    workers["one program"] = Worker("one program", values.stages, processes)
  seconds: dict[str, list[float]] = {name: [] for name in workers}
  for i in range(values.rounds):
    for name, worker in workers.items():
      seconds[name].append(worker.seconds())
    console.print(f"round {i + 1}: " + ", ".join(f"{n} {s[-1]:.3f} s" for n, s in seconds.items()))
  times = workers["one core"].greeting
  for worker in workers.values():
    worker.close()
  command = cli.command_line("experiments.benchmarks.pipeline_speed", sys.argv[1:])
  found = rows(experiment, sizes, seconds, times, steps, processes, command)
  for r in found:
    console.print(f"{r['metric']:18s} {r['preset']:28s} {r.get('median', r['mean']):8.3f}")
  study = "pipeline_speed" + "_spmd" * values.spmd + "_processes" * (processes > 1)
  console.print(f"results   {results.write_study(study, found)}")
  return 0


if __name__ == "__main__":
  # Here, so that a test may import this module beside another benchmark with the same flags.
  roles = ["", "one core", "pipeline", "one program"]
  flags.DEFINE_enum("role", "", roles, "of a worker; set by the benchmark")
  flags.DEFINE_bool("spmd", False, "whether the pipeline as one program is a rival, too")
  flags.DEFINE_integer("process", -1, "of a worker; set by the benchmark")
  flags.DEFINE_string("address", "", "of worker 0; set by the benchmark")
  flags.DEFINE_integer("processes", 1, "processes that share the stages", lower_bound=1)
  flags.DEFINE_integer("stages", 2, "stages, a core each", lower_bound=1)
  flags.DEFINE_list("sizes", ["1000"] * 8, "widths of the layers")
  flags.DEFINE_integer("batch", 100, "images at a time", lower_bound=1)
  flags.DEFINE_integer("steps", 100, "batches a round", lower_bound=1)
  flags.DEFINE_integer("rounds", 7, "rounds of both", lower_bound=2)
  cli.run(main)
