"""Configurations and command lines that no one would write: each builds, or is one sentence.

    python tests/fuzz.py [--count 1000] [--seed 0] [--first 0]

Half of them are mappings, as a `config.json` may hold; half are lists of flags. One to four fields
are changed: another registered name, a wrong type, an unknown name, NaN, infinity, a negative or a
huge number. All go through the entry of `experiments.train`: parse, `from_mapping`, `check`,
`build`; of what builds and is not deep, two steps and an answer are traced. Case n of a seed is
always the same.
Exit code 1 if anything else comes out than a run or one sentence.
"""

import argparse
import collections
import contextlib
import io
import math
import os
import pathlib
import random
import resource
import signal
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
from absl import flags  # noqa: E402
from ml_collections import config_flags  # noqa: E402

from experiments import cli, config, product, trial  # noqa: E402
from experiments.assembly import build  # noqa: E402
from fflax.networks.activations import ACTIVATIONS  # noqa: E402
from fflax.training.optimizers import OPTIMIZERS  # noqa: E402

SECONDS = 60
"""Of the processor's time; a case that takes more is a failure: nobody waits for a refusal."""
TRACED_LAYERS = 4
"""Deeper networks are assembled only: their steps are traced by experiments.combinations."""
GIBIBYTES = 16
"""Of address space: what asks for more gets a MemoryError, not the machine."""

_NUMBERS = (0, 1, 2, 3, 7, -1, -7, 10**9, 10**30, 0.5, -0.5, 1e-300, 1e300)
_ODD = (math.nan, math.inf, -math.inf, True, False, None, "", "nothing", "é \n", [], [1], [0, -1])
_ODDER = ([1e9, "a"], [math.nan], [[1]], {}, {"a": 1}, b"x".decode(), "1e3", "[1]", 2**32)
_NAMES = {
  "network": product.FACTORS["network"],
  "numerics": product.FACTORS["numerics"],
  "method": product.FACTORS["method"],
  "schedule": product.FACTORS["schedule"],
  "activation": tuple(ACTIVATIONS),
  "optimizer.name": tuple(OPTIMIZERS),
  "weight_store": ("float32", "int8"),
  "lookahead.mode": ("none", "exact", "scalar"),
  "data.name": ("digits", "synthetic", "nowhere", "/nowhere.npz", "tfds:mnist", "tfds:../x"),
  "data.normalization": ("none", "standard", "dataset", "half", "imagenet"),
}


class Case(NamedTuple):
  """`kind` is "mapping" or "flags"; `changes` are dotted fields and their values."""

  kind: str
  changes: tuple[tuple[str, Any], ...]


class Result(NamedTuple):
  """`verdict` is "builds", "refused" or "fails"; `detail` is one line."""

  verdict: str
  detail: str


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
  """Dotted names of all fields."""
  for name, value in values.items():
    yield f"{prefix}{name}"
    if isinstance(value, Mapping):
      yield from leaves(value, f"{prefix}{name}.")


def base() -> dict[str, Any]:
  """The default configuration with networks small enough to be traced in a second."""
  small = {name: dict(options) for name, options in product.SMALL.items()}
  return config.as_dict(config.from_mapping({"networks": small, "epochs": 40}))


def case(seed: int, number: int) -> Case:
  """Case `number` of a seed."""
  rng = random.Random(f"{seed} {number}")
  names = list(leaves(base()))
  # Most fields belong to methods and networks; those of the run itself are met as often.
  top = [name for name in names if not name.startswith(("methods.", "networks."))]
  changes = []
  for _ in range(rng.choice((1, 1, 2, 3, 4))):
    name = rng.choice(rng.choice((names, top, list(_NAMES))))
    if name == "readouts":
      value: Any = rng.sample(product.FACTORS["readout"], rng.choice((0, 1, 2, 3)))
    elif name in _NAMES and rng.random() < 0.9:
      value = rng.choice(_NAMES[name])
    else:
      value = rng.choice(rng.choice((_NUMBERS, _ODD, _ODDER)))
    if rng.random() < 0.03:
      name += rng.choice("xs_.")
    changes.append((name, value))
  return Case(rng.choice(("mapping", "flags")), tuple(changes))


def mapping_of(case: Case) -> dict[str, Any]:
  values = base()
  for name, value in case.changes:
    *path, last = name.split(".")
    inside: Any = values
    for part in path:
      inside = inside.get(part) if isinstance(inside, dict) else None
    if isinstance(inside, dict):
      inside[last] = value
  return values


def configuration_of(case: Case) -> config.ExperimentConfig:
  """Raises ValueError or SystemExit as the command does."""
  if case.kind == "mapping":
    return config.from_mapping(mapping_of(case))
  own = flags.FlagValues()
  preset = str(ROOT / "experiments" / "configs" / "ff_digits.py")
  found = config_flags.DEFINE_config_file("config", preset, flag_values=own)
  small = [
    f"--config.networks.{network}.{name}={value}"
    for network, options in product.SMALL.items()
    for name, value in options.items()
  ]
  given = [f"--config.{name}={value}" for name, value in case.changes]
  with mock.patch.object(flags, "FLAGS", own):
    cli._parse(["train", *small, "--config.epochs=40", *given])
  return config.from_mapping(found.value.to_dict())


def try_case(case: Case) -> Result:
  """Never raises; see the module."""
  errors = io.StringIO()
  try:
    with contextlib.redirect_stderr(errors):
      experiment = build(configuration_of(case))
      if len(experiment.network.layers) <= TRACED_LAYERS:
        jax.eval_shape(trial.two_steps(experiment), jax.random.key(0))
  except SystemExit as leaving:
    lines = errors.getvalue().splitlines()
    good = leaving.code == cli.EXIT_USAGE and len(lines) == 1
    return Result("refused" if good else "fails", " / ".join(lines) or f"exit {leaving.code}")
  except (ValueError, OSError) as error:
    fault = trial.refusal_fault(error) if isinstance(error, ValueError) else None
    if fault is None:
      return Result("refused", str(error))
    return Result("fails", f"{fault}: {_last(error)}")
  except Exception as error:
    return Result("fails", _last(error))
  return Result("builds", "")


def _last(error: Exception) -> str:
  frames = [f for f in traceback.extract_tb(error.__traceback__) if str(ROOT) in f.filename]
  place = f"{pathlib.Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else "?"
  return f"{place} {type(error).__name__}: {str(error).splitlines()[0][:150] if str(error) else ''}"


class _TooLong(Exception):
  """The case took too long."""


def _ring(*_: object) -> None:
  raise _TooLong(f"more than {SECONDS} s of work")


def run(count: int, seed: int = 0, first: int = 0, report=print) -> collections.Counter:
  """Tries cases and reports each failure; the number of each verdict."""
  signal.signal(signal.SIGPROF, _ring)
  verdicts: collections.Counter = collections.Counter()
  for number in range(first, first + count):
    one = case(seed, number)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
      result = try_case(one)
    finally:
      signal.setitimer(signal.ITIMER_PROF, 0)
    verdicts[result.verdict] += 1
    if result.verdict == "fails":
      changes = ", ".join(f"{name}={value!r}" for name, value in one.changes)
      report(f"FAILS     {number} ({one.kind}) {changes}: {result.detail}")
    if number % 25 == 0:
      jax.clear_caches()
  return verdicts


def main() -> int:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--count", type=int, default=1000)
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--first", type=int, default=0, help="number of the first case")
  options = parser.parse_args()
  resource.setrlimit(resource.RLIMIT_AS, (GIBIBYTES * 2**30, resource.RLIM_INFINITY))
  verdicts = run(options.count, options.seed, options.first)
  print(f"{options.count} cases: " + ", ".join(f"{n} {v}" for v, n in sorted(verdicts.items())))
  return 1 if verdicts["fails"] else 0


if __name__ == "__main__":
  sys.exit(main())
