"""What can be relied on, in figures: fuzz, damaged inputs, kills. Prints one table, writes nothing.

    python tests/trust.py [--only fuzz,commands,damage,kills] [--cases 1000] [--kills 20] [--jobs 1]

fuzz      generated configurations and command lines, in process (tests/fuzz.py)
commands  real command lines: one sentence and exit code 2, and no folder is made
damage    the tests of damaged checkpoints, metrics, data and folders (pytest, the slow ones too)
kills     SIGKILL at random moments of a run on digits: it must end with the bits of the uncut run

Exit code 0: all held; 1: something did not.
"""

import argparse
import json
import os
import pathlib
import random
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]

COMMANDS = (
  ("train", "--config.epochs=nan"),
  ("train", "--config.epochs=-3"),
  ("train", "--config.epochs=1e30"),
  ("train", "--config.seed=-1"),
  ("train", "--config.optimizer.learning_rate=nan"),
  ("train", "--config.optimizer.learning_rate=-inf"),
  ("train", "--config.networks.mlp.sizes=(0,)"),
  ("train", "--config.networks.mlp.sizes=wide"),
  ("train", "--config.networks.mlp.width=3"),
  ("train", "--config.method=backprop", "--config.schedule=alternating"),
  ("train", "--config.method=recurrent", "--config.network=vit"),
  ("train", "--config.lookahead.mode=exact", "--config.schedule=greedy"),
  ("train", "--config.schedule=staggered"),
  ("train", "--config.readouts=()"),
  ("train", "--config.readouts=('vote','vote')"),
  ("train", "--config.eval_samples=3"),
  ("train", "--config.data.batch_size=100000"),
  ("train", "--config.data.validation=1437"),
  ("train", "--config.data.name=tfds:mnist", "--config.data.data_dir=/nowhere"),
  ("train", "--config=/nowhere.py"),
  ("train", "--config.data.augment.crop=-1"),
  ("train", "--no_such_flag"),
  ("evaluate", "--workdir=/nowhere"),
  ("evaluate", "--step=many"),
)

DAMAGE = (
  ("checkpoints", ("tests/training/checkpoint_test.py",)),
  ("metrics and cut runs", ("tests/training/metrics_test.py", "tests/training/loop_test.py")),
  ("data", ("tests/data/npz_source_test.py", "tests/data/dataset_test.py",
            "tests/data/sources_test.py", "tests/data/tfds_source_test.py",
            "tests/data/array_record_source_test.py")),
  ("folders and disks", ("tests/experiments/workdir_test.py", "tests/experiments/damage_test.py")),
  ("commands", ("tests/experiments/train_test.py",)),
)  # fmt: skip

RUN = (
  "--config.networks.mlp.sizes=(32,32)",
  "--config.epochs=60",
  "--config.eval_every=2",
  "--config.checkpoint_every=1",
)


class Figure(NamedTuple):
  """A line of the table: `held` of `total`, and a word about it."""

  what: str
  held: int
  total: int
  word: str = ""


def say(line: str) -> None:
  print(line, flush=True)


def environment() -> dict[str, str]:
  compiled = next((ROOT / ".cache").glob("jax-*"), None)  # what the tests compiled, see conftest.py
  cache = {} if compiled is None else {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
  cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
  return {**cache, **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def start(module: str, *args: str) -> subprocess.Popen:
  return subprocess.Popen(
    [sys.executable, "-m", f"experiments.{module}", *args],
    cwd=ROOT,
    env=environment(),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
  )


def fuzz(options: argparse.Namespace) -> list[Figure]:
  """Shares the cases among processes."""
  share = -(-options.cases // options.jobs)
  running = []
  for first in range(0, options.cases, share):
    count = min(share, options.cases - first)
    command = [sys.executable, "tests/fuzz.py", f"--count={count}", f"--first={first}"]
    running.append(
      subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True)
    )
  failures = finished = 0
  for process in running:
    lines = process.communicate()[0].splitlines()
    bad = [line for line in lines if line.startswith("FAILS")]
    failures += len(bad)
    finished += process.returncode in (0, 1)
    for line in [*bad, lines[-1] if lines else "no output"]:
      say(f"  {line}")
  held = options.cases - failures if finished == len(running) else 0
  return [Figure("generated configurations and flags", held, options.cases)]


def commands(options: argparse.Namespace, folder: pathlib.Path) -> list[Figure]:
  """Bad command lines, each in a process of its own."""
  del options
  held = 0
  for number, (module, *args) in enumerate(COMMANDS):
    target = folder / f"run{number}"
    own = [] if any(a.startswith("--workdir") for a in args) else [f"--workdir={target}"]
    process = start(module, *own, *args)
    _, errors = process.communicate(timeout=300)
    good = process.returncode == 2 and errors.count("\n") == 1 and not target.exists()
    held += good
    if not good:
      say(f"  {module} {' '.join(args)}: exit {process.returncode}, {errors.splitlines()[-1:]}")
  return [Figure("real command lines", held, len(COMMANDS))]


def damage(options: argparse.Namespace, folder: pathlib.Path) -> list[Figure]:
  """The tests of `DAMAGE`, counted."""
  figures = []
  for what, files in DAMAGE:
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-m", "", f"--junitxml={report}"]
    command += ["-n", str(options.jobs) if options.jobs > 1 else "0", *files]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    cases = xml.etree.ElementTree.parse(report).iter("testcase")
    kinds = [[child.tag for child in case] for case in cases]
    skipped = sum("skipped" in kind for kind in kinds)
    bad = sum("failure" in kind or "error" in kind for kind in kinds)
    if bad or done.returncode:
      say("".join(f"  {line}\n" for line in done.stdout.splitlines()[-15:]))
    word = f"{skipped} skipped" if skipped else ""
    figures.append(
      Figure(f"damage: {what}", len(kinds) - skipped - bad, len(kinds) - skipped, word)
    )
  return figures


def remains(folder: pathlib.Path) -> dict[str, object]:
  """What two equal runs have in common, to the bit: rows, accuracies, digests of the arrays."""
  import jax
  import numpy as np

  from experiments import config, running, workdir
  from experiments.assembly import build
  from fflax.training import checkpoint

  experiment = build(workdir.read_config(folder))
  state = running.restored(experiment, folder)
  leaves = [
    np.asarray(jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x)
    for x in jax.tree.leaves(state)
  ]
  return {
    "steps": checkpoint.steps(folder / "checkpoints"),
    "metrics": (folder / "metrics.jsonl").read_bytes(),
    "accuracy": json.loads((folder / "summary.json").read_text())["accuracy"],
    "arrays": [(x.shape, str(x.dtype), x.tobytes()) for x in leaves],
    "fingerprint": config.fingerprint(experiment.config),
  }


def kills(options: argparse.Namespace, folder: pathlib.Path) -> list[Figure]:
  """A run that is killed again and again, and once more from its start when it has ended."""
  uncut, cut = folder / "uncut", folder / "cut"
  begun = time.monotonic()
  process = start("train", f"--workdir={uncut}", *RUN)
  assert process.wait() == 0, process.stderr and process.stderr.read()
  whole = time.monotonic() - begun
  expected, rng = remains(uncut), random.Random(time.time_ns())  # other moments in every run
  equal = killed = number = 0
  moments = []
  while killed < options.kills:
    target = folder / f"{cut.name}{number}"
    number += 1
    while True:
      process = start("train", f"--workdir={target}", *RUN)
      try:
        moment = rng.uniform(0, 1.2 * whole)
        process.wait(timeout=moment if killed < options.kills else None)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        killed += 1
        steps = [p.name for p in (target / "checkpoints").glob("[0-9]*")]
        moments.append(f"{moment:.1f} s ({len(steps)} checkpoints)")
        continue
      break
    if process.returncode == 0 and remains(target) == expected:
      equal += 1
    else:
      say(f"  run {number} ends otherwise: exit {process.returncode}")
  say(f"  killed after {', '.join(moments)} of {whole:.1f} s")
  good = equal == number
  return [
    Figure(f"kills, in {number} runs that end bit-equal", killed if good else 0, options.kills)
  ]


PARTS: dict[str, Callable[[argparse.Namespace, pathlib.Path], list[Figure]]] = {
  "fuzz": lambda options, _: fuzz(options),
  "commands": commands,
  "damage": damage,
  "kills": kills,
}


def table(figures: Sequence[Figure]) -> str:
  width = max(len(f.what) for f in figures)
  return "\n".join(
    f"{'ok' if f.held == f.total else 'NOT OK':7}{f.what:{width}}  {f.held:5} of {f.total:5}"
    f"{'  ' + f.word if f.word else ''}"
    for f in figures
  )


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
  parser.add_argument("--cases", type=int, default=1000, help="of the fuzz")
  parser.add_argument("--kills", type=int, default=20)
  parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
  options = parser.parse_args(arguments)
  chosen = options.only.split(",")
  unknown = [name for name in chosen if name not in PARTS]
  if unknown or min(options.cases, options.kills, options.jobs) < 1:
    print(
      f"unknown part {unknown[0]!r}" if unknown else "numbers must be 1 or more", file=sys.stderr
    )
    return 2
  sys.path.insert(0, str(ROOT))
  figures: list[Figure] = []
  begun = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="fflax_trust_") as name:
    for part in chosen:
      say(part)
      own = pathlib.Path(name) / part
      own.mkdir()
      figures += PARTS[part](options, own)
  print(table(figures))
  print(f"in {time.monotonic() - begun:.0f} s")
  return 0 if all(f.held == f.total for f in figures) else 1


if __name__ == "__main__":
  sys.exit(main())
