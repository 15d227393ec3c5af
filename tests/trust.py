"""What can be relied on, in figures: fuzz, damaged inputs, kills, planted faults. Prints one table.

    python tests/trust.py [--only fuzz,commands,damage,kills,mutation] [--cases 1000] [--kills 20]
      [--jobs 2]

fuzz      generated configurations and command lines, in process (tests/fuzz.py)
commands  real command lines: one sentence and exit code 2, and no folder is made
damage    the tests of damaged checkpoints, metrics, data and folders (pytest, the slow ones too)
kills     SIGKILL at random moments of a run on digits: it must end with the bits of the uncut run
mutation  one-line faults planted in the library; the tests must catch each (tests/mutation.py)

All parts with 1,000 cases and 20 kills or more also write experiments/results/trust.json.
Exit code 0: all held; 1: something did not.
"""

import argparse
import collections
import json
import os
import pathlib
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree
from collections.abc import Callable, Sequence
from typing import NamedTuple

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.mutation import selection  # noqa: E402
from tests.trust_cases import COMMANDS, DAMAGE  # noqa: E402

CASES, KILLS = 1000, 20
_LONGEST = 3600  # seconds of the tests of damage, which take some minutes

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

  @property
  def good(self) -> bool:
    """Of nothing, nothing holds: a test may have been renamed."""
    return self.held == self.total > 0


def say(line: str) -> None:
  print(line, flush=True)


def environment() -> dict[str, str]:
  compiled = next((ROOT / ".cache").glob("jax-*"), None)  # what the tests compiled, see conftest.py
  cache = {} if compiled is None else {"JAX_COMPILATION_CACHE_DIR": str(compiled)}
  cache["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
  return {**cache, **os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


def start(module: str, *args: str) -> subprocess.Popen:
  """A command whose errors are read when it has ended: it prints few."""
  return subprocess.Popen(
    [sys.executable, "-m", f"experiments.{module}", *args],
    cwd=ROOT,
    env=environment(),
    stdin=subprocess.DEVNULL,
    stdout=subprocess.DEVNULL,
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
  verdicts: collections.Counter[str] = collections.Counter()
  for process in running:
    lines = process.communicate()[0].splitlines()
    for line in lines:
      if line.startswith("FAILS"):
        say(f"  {line}")
    for number, verdict in re.findall(r"(\d+) (builds|refused|fails)", lines[-1] if lines else ""):
      verdicts[verdict] += int(number)
  # What a process did not live to report is missing here, and so has not held.
  word = (
    f"{verdicts['builds']} build, {verdicts['refused']} refused in one sentence, "
    f"{verdicts['fails']} tracebacks or worse"
  )
  held = verdicts["builds"] + verdicts["refused"]
  return [Figure("generated configurations and command lines", held, options.cases, word)]


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
  word = "one sentence, exit code 2, no folder"
  return [Figure("real command lines", held, len(COMMANDS), word)]


def damage(options: argparse.Namespace, folder: pathlib.Path) -> list[Figure]:
  """The tests of `DAMAGE` in one run of pytest, counted by kind."""
  words: dict[str, list[str]] = {}
  for files in DAMAGE.values():
    for file, some in files.items():
      words.setdefault(file, []).extend(some)
  chosen = selection([(file, "-k", " or ".join(some)) for file, some in words.items()])
  report = folder / "report.xml"
  command = [sys.executable, "-m", "pytest", "-q", "-m", "", f"--junitxml={report}", *chosen]
  command += ["-n", str(options.jobs) if options.jobs > 1 else "0"]
  done = subprocess.run(
    command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=_LONGEST
  )
  if done.returncode:
    say("".join(f"  {line}\n" for line in (done.stdout + done.stderr).splitlines()[-40:]))
  cases = list(xml.etree.ElementTree.parse(report).iter("testcase")) if report.exists() else []

  def outcomes(files: dict[str, tuple[str, ...]]) -> list[set[str]]:
    """Of each test of a kind, what pytest says beyond that it passed."""
    modules = {file.removesuffix(".py").replace("/", "."): some for file, some in files.items()}
    return [
      {child.tag for child in case}
      for case in cases
      if any(word in case.attrib["name"] for word in modules.get(case.attrib["classname"], ()))
    ]

  figures = []
  for kind, files in DAMAGE.items():
    found = outcomes(files)
    # A test that was renamed, or is gone, has not held.
    gone = [w for file, some in files.items() for w in some if not outcomes({file: (w,)})]
    ran = [one for one in found if "skipped" not in one]
    bad = sum(bool(one & {"failure", "error"}) for one in ran)
    notes = [f"{len(found) - len(ran)} skipped"] * (len(found) > len(ran))
    notes += [f"no test for {', '.join(gone)}"] * bool(gone)
    total = len(ran) + len(gone)
    figures.append(Figure(f"damage: {kind}", len(ran) - bad, total, "; ".join(notes)))
  if done.returncode and all(figure.good for figure in figures):
    figures.append(Figure("damage: pytest itself", 0, 1, f"exit code {done.returncode}"))
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
        process.wait(timeout=moment if killed < options.kills else 20 * whole)
      except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        if killed == options.kills:
          break  # it hangs, and so it is not equal
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
  word = f"{equal} of {number} runs end bit-equal to the uncut one"
  return [Figure("kills at random moments", killed if equal == number else 0, options.kills, word)]


def mutation(options: argparse.Namespace) -> list[Figure]:
  """Faults planted one at a time."""
  command = [sys.executable, "tests/mutation.py", f"--jobs={options.jobs}"]
  done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
  lines = done.stdout.splitlines()
  for line in [*lines[1:-1], *done.stderr.splitlines()]:
    if not line.startswith("caught"):
      say(f"  {line}")
  counted = re.match(r"(\d+) of (\d+) faults caught", lines[-1] if lines else "")
  caught, planted = map(int, counted.groups()) if counted else (0, 0)
  return [Figure("planted faults caught", caught, planted)]


PARTS: dict[str, Callable[[argparse.Namespace, pathlib.Path], list[Figure]]] = {
  "fuzz": lambda options, _: fuzz(options),
  "commands": commands,
  "damage": damage,
  "kills": kills,
  "mutation": lambda options, _: mutation(options),
}


def table(figures: Sequence[Figure]) -> str:
  width = max(len(f.what) for f in figures)
  return "\n".join(
    f"{'ok' if f.good else 'NOT OK':7}{f.what:{width}}  {f.held:5} of {f.total:5}"
    f"{'  ' + f.word if f.word else ''}"
    for f in figures
  )


def cpu_seconds() -> float:
  """Of all processes that were started and have ended."""
  use = resource.getrusage(resource.RUSAGE_CHILDREN)
  return use.ru_utime + use.ru_stime


def write(figures: dict[str, list[Figure]], seconds: dict[str, float]) -> pathlib.Path:
  """The result file: a row a line of the table."""
  os.environ.setdefault("JAX_PLATFORMS", "cpu")
  from experiments import results

  rows = [
    results.row(
      "held",
      [figure.held],
      locality="-",
      part=part,
      what=figure.what,
      total=figure.total,
      note=figure.word,
      cpu_seconds_of_part=round(seconds[part]),
      command="python tests/trust.py",
    )
    for part, some in figures.items()
    for figure in some
  ]
  return results.write_study("trust", rows)


def main(arguments: list[str] | None = None) -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between them")
  parser.add_argument("--cases", type=int, default=CASES, help="of the fuzz")
  parser.add_argument("--kills", type=int, default=KILLS)
  parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
  options = parser.parse_args(arguments)
  chosen = options.only.split(",")
  unknown = [name for name in chosen if name not in PARTS]
  if unknown or min(options.cases, options.kills, options.jobs) < 1:
    print(
      f"unknown part {unknown[0]!r}" if unknown else "numbers must be 1 or more", file=sys.stderr
    )
    return 2
  figures: dict[str, list[Figure]] = {}
  seconds: dict[str, float] = {}
  begun = time.monotonic()
  with tempfile.TemporaryDirectory(prefix="fflax_trust_") as name:
    for part in chosen:
      say(part)
      own, before = pathlib.Path(name) / part, cpu_seconds()
      own.mkdir()
      figures[part] = PARTS[part](options, own)
      seconds[part] = cpu_seconds() - before
  lines = [figure for some in figures.values() for figure in some]
  say(table(lines))
  told = ", ".join(f"{part} {spent:.0f}" for part, spent in seconds.items())
  say(f"in {time.monotonic() - begun:.0f} s; of the processor's time: {told} s")
  if set(chosen) == set(PARTS) and options.cases >= CASES and options.kills >= KILLS:
    say(f"results {write(figures, seconds)}")
  return 0 if all(figure.good for figure in lines) else 1


if __name__ == "__main__":
  sys.exit(main())
