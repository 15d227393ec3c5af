"""Runs on eight devices beside the same runs on one, in a process that has eight.

`python -m tests.experiments.mesh_runs CASE...` prints a JSON object of what was measured; see
`mesh_test.py`, which starts it.
"""

import functools
import json
import sys
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.assembly import Experiment, build, prove_locality
from experiments.config import DataConfig, ExperimentConfig
from fflax.data.augment import AugmentConfig
from fflax.data.dataset import Dataset, Split
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.training import checkpoint
from fflax.training.chunk import make_chunk
from fflax.training.optimizers import OptimizerConfig
from fflax.training.sharding import MeshConfig
from fflax.types import PyTree, TrainState

DEVICES, STEPS, BATCH = 8, 3, 64
_MLP = {"networks": {"mlp": {"sizes": (32, 32)}}}
_SGD = OptimizerConfig("sgd", 0.03, 0.9)

CASES: dict[str, dict[str, Any]] = {
  "forward_forward": {
    **_MLP,
    "methods": {"forward_forward": ForwardForwardConfig(negatives="softmax_hard")},
    "readouts": ("softmax_head", "score_sum"),
  },
  "hyperspherical": {**_MLP, "method": "hyperspherical"},
  "backprop": {**_MLP, "method": "backprop"},
  "channelwise": {
    "method": "channelwise",
    "network": "cfse",
    "networks": {"cfse": {"channels": (8, 8), "groups": (1, 4), "pool_after": (2,)}},
    "readouts": ("softmax_last", "last_layer"),
  },
  "int8": {**_MLP, "numerics": "int8"},
  "three views": {
    **_MLP,
    "method": "dtg_mlp",
    "readouts": ("norm_head",),
  },
}


@functools.cache
def _dataset() -> Dataset:
  """Four classes of noisy pictures; the test split does not divide by the devices."""
  rng = np.random.default_rng(0)
  pictures = rng.uniform(0, 1, (4, 8, 8, 1))

  def split(n: int) -> Split:
    label = rng.integers(0, 4, n).astype(np.int32)
    image = 160 * pictures[label] + rng.uniform(0, 90, (n, 8, 8, 1))
    return Split(image.astype(np.uint8), label)

  return Dataset("pictures", split(3 * BATCH), None, split(61), 4, 255.0)


def _experiment(case: str, devices: int) -> Experiment:
  config = ExperimentConfig(
    **{"optimizer": _SGD, "readout_optimizer": _SGD, **CASES[case]},
    data=DataConfig("pictures", batch_size=BATCH, augment=AugmentConfig(shift=1)),
    mesh=MeshConfig(data=devices),
  )
  return build(config, _dataset())


def _numbers(state: TrainState) -> list[np.ndarray]:
  parts = [[(s.params, s.stats) for s in part] for part in (state.layers, state.readouts)]
  return [np.asarray(x, np.float64) for x in jax.tree.leaves(parts)]


def _distance(a: TrainState, b: TrainState, start: TrainState) -> float:
  """The largest difference of two states' arrays, as a share of how far training moved each."""
  found = [0.0]
  for x, y, old in zip(_numbers(a), _numbers(b), _numbers(start), strict=True):
    moved = np.abs(y - old).max(initial=0)
    found.append(np.abs(x - y).max(initial=0) / moved if moved else float((x != y).any()))
  return max(found)


def bits(tree: PyTree) -> list[bytes]:
  def raw(x: jax.Array) -> jax.Array:
    return jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x

  return [np.asarray(raw(x)).tobytes() for x in jax.tree.leaves(tree)]


class _Side:
  """A run on so many devices, compiled once."""

  def __init__(self, case: str, devices: int):
    self.experiment = _experiment(case, devices)
    e = self.experiment
    self.fresh = e.init()
    self.chunk = (
      make_chunk(e.trainer, e.feed, STEPS)
      .lower(self.fresh, e.images, e.labels, np.int32(STEPS))
      .compile()
    )

  def train(self, state: TrainState) -> TrainState:
    copy = jax.tree.map(lambda x: x.copy(), state)
    new, _ = self.chunk(copy, self.experiment.images, self.experiment.labels, np.int32(STEPS))
    return new

  def flops(self) -> float:
    """Of one step, on one device."""
    cost = self.chunk.cost_analysis()
    return float((cost[0] if isinstance(cost, list) else cost)["flops"])


def compare(case: str) -> dict[str, Any]:
  """Three steps on eight devices and on one, and three more after each resumed the other's."""
  many, one = _Side(case, DEVICES), _Side(case, 1)
  ends = [side.train(side.fresh) for side in (many, one)]
  test = [
    side.experiment.evaluator("test", side.experiment.dataset.test)(state)
    for side, state in zip((many, one), ends, strict=True)
  ]
  features = jax.jit(many.experiment.trainer.features)(
    ends[0], many.experiment.example(BATCH).image
  )
  resumed, same_bits = [], []
  for saved, other in zip(ends, (one, many), strict=True):
    with tempfile.TemporaryDirectory() as folder:
      checkpoint.save(folder, STEPS, saved)
      found = checkpoint.restore(folder, other.fresh)
    same_bits.append(bits(found) == bits(saved))
    resumed.append(other.train(found))
  return {
    "start": bits(many.fresh) == bits(one.fresh),
    "distance": _distance(*ends, one.fresh),
    "flops": many.flops() / one.flops(),
    "whole": all(x.sharding.is_fully_replicated for x in jax.tree.leaves(ends[0])),
    "devices": [len(ends[0].step.sharding.device_set), len(ends[1].step.sharding.device_set)],
    "feature_rows": sorted({s.data.shape[0] for f in features for s in f.addressable_shards}),
    "accuracy": [{k: float(v) for k, v in found.items()} for found in test],
    "locality": [prove_locality(s.experiment).tolist() for s in (many, one)],
    "restored": same_bits,
    "resumed": _distance(*resumed, one.fresh),
  }


if __name__ == "__main__":
  assert jax.device_count() == DEVICES, jax.devices()
  print(json.dumps({case: compare(case) for case in sys.argv[1:]}))
