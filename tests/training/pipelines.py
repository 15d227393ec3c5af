"""Runs over several devices against the same runs on one, in a process that has several devices.

    python -m tests.training.pipelines STAGES LAYERS CASE [CASE ...]

prints, for each case, how the state and the metrics of both kinds of pipeline ("mpmd", "spmd")
differ from those of the ordinary trainer and, if the first do, from those of the same programs on
one device ("alone"), as JSON.
"""

import dataclasses
import functools
import json
import sys
from typing import Any

import jax
import numpy as np

from experiments.assembly import Experiment, build
from experiments.config import ExperimentConfig, load_preset
from fflax.core.pbit_config import PbitConfig
from fflax.data import sources
from fflax.data.dataset import Dataset, Split
from fflax.training.chunk import make_chunk
from fflax.training.pipeline import Pipeline, make_pipeline
from fflax.training.spmd_pipeline import make_spmd_pipeline, share_out
from fflax.types import TrainState

STEPS, CAPACITY = 20, 12


def case(name: str, num_layers: int) -> ExperimentConfig:
  """A small run: METHOD, METHOD-int8, METHOD-pbits or METHOD-interleaved.

  All layers but the first are equal, and of perceptrons of the latter all but the first and the
  last; eight equal ones of a perceptron are stacked under one scan.
  """
  name, _, kind = name.partition("-")
  preset = {
    "forward_forward": "ff_digits",
    "hyperspherical": "hff_digits",
    "channelwise": "cwc_digits",
    "dtg": "dtg_digits",
    "local_losses": "local_ce_digits",
  }[name]
  convolutions = {"channels": (8,) * num_layers, "pool_after": (1,)}
  sizes = (*(24,) * (num_layers - 1), 12 if kind == "interleaved" else 24)
  networks: dict[str, dict[str, Any]] = {
    "mlp": {"sizes": sizes},
    "cfse": {
      "channels": (20,) * num_layers,
      "groups": (1,) * num_layers,
      "pool_after": (1,),
    },
    "small_cnn": {**convolutions, "pool": "avg"},
  }
  base = load_preset(preset)
  data = dataclasses.replace(base.data, batch_size=16)
  heads = {
    "forward_forward": ("softmax_head", "score_sum"),
    "local_losses": ("score_sum", "softmax_head"),
  }
  readouts = heads.get(name, base.readouts)
  changes: dict[str, Any] = {"numerics": "int8"} if kind == "int8" else {}
  if kind == "pbits":
    changes = {"activation": "pbits", "pbits": PbitConfig(units=3)}
  if kind == "interleaved":
    changes = {"schedule": "interleaved"}
  return dataclasses.replace(
    base, epochs=1, networks=networks, readouts=readouts, data=data, **changes
  )


def small_digits() -> Dataset:
  digits = sources.load("digits")
  first = lambda split: Split(split.image[:64], split.label[:64])  # noqa: E731
  return digits._replace(train=first(digits.train), validation=None, test=first(digits.test))


def differences(a: Any, b: Any) -> dict[str, float]:
  """Path -> the largest difference, of the leaves that are not equal in every bit."""
  found = {}
  pairs = zip(
    jax.tree_util.tree_leaves_with_path(a), jax.tree_util.tree_leaves_with_path(b), strict=True
  )
  for (path, x), (_, y) in pairs:
    if jax.numpy.issubdtype(x.dtype, jax.dtypes.prng_key):
      x, y = jax.random.key_data(x), jax.random.key_data(y)
    x, y = np.asarray(x), np.asarray(y)
    if x.tobytes() != y.tobytes() or x.dtype != y.dtype or x.shape != y.shape:
      gap = np.abs(x.astype(np.float64) - y.astype(np.float64))
      found[jax.tree_util.keystr(path)] = float(np.max(gap))
  return found


def take(experiment: Experiment, runner: Pipeline, state: TrainState) -> tuple:
  """The state and the rows of metrics after two chunks."""
  parts, rows = runner.scatter(state), []
  for n in (CAPACITY, STEPS - CAPACITY):
    parts, results = runner.chunk(parts, experiment.images, experiment.labels, n)
    rows.append(jax.tree.map(lambda a, n=n: np.asarray(a)[:n], results))
  return runner.gather(parts), rows


def compare(name: str, num_stages: int, num_layers: int) -> dict[str, Any]:
  experiment = build(case(name, num_layers), small_digits())
  trainer, feed, state = experiment.trainer, experiment.feed, experiment.init()
  sizes = (num_layers - num_stages + 1, *(1,) * (num_stages - 1))
  first, *others = jax.devices()[:num_stages]
  copy = functools.partial(jax.tree.map, jax.numpy.copy)
  one = Pipeline(copy, make_chunk(trainer, feed, CAPACITY), lambda state: state)
  ordinary = take(experiment, one, state)
  mpmd = take(experiment, make_pipeline(trainer, feed, CAPACITY, sizes), state)
  share = share_out(trainer.equal_layers, num_stages, "its")
  spmd = make_spmd_pipeline(trainer, feed, CAPACITY, share, num_stages)
  found = {
    "devices": 1 + len(others),
    "share": share,
    "moved": len(differences(state.layers, ordinary[0].layers)),
    "mpmd": differences(mpmd, ordinary),
    "spmd": differences(take(experiment, spmd, state), ordinary),
  }
  if found["mpmd"]:  # do devices, or does the compiler?
    alone = make_pipeline(trainer, feed, CAPACITY, sizes, [first] * num_stages)
    found["alone"] = differences(mpmd, take(experiment, alone, state))
  return found


def main() -> None:
  num_stages, num_layers, *names = sys.argv[1:]
  print(json.dumps({n: compare(n, int(num_stages), int(num_layers)) for n in names}))


if __name__ == "__main__":
  main()
