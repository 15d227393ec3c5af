"""Cells of the memory audit: a method at a micro-batch, its step compiled and, if asked, timed."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.assembly import check, count_parameters
from experiments.card import Task, compiled_step, traced_trainer
from experiments.config import ExperimentConfig, load_preset
from experiments.controls import matched_backprop
from fflax.analysis.memory import compiled_memory
from fflax.methods.backprop import BackpropConfig
from fflax.training.trainer import Trainer
from fflax.types import Batch, PyTree

CLASSES = 100

# Memory is planned before code is made: where nothing is run, poor code is good enough, and made in
# a fraction of the time.
_PLAN_ONLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def _forward_forward(base: ExperimentConfig) -> ExperimentConfig:
  return dataclasses.replace(base, method="forward_forward")


def _plain_backprop(base: ExperimentConfig) -> ExperimentConfig:
  methods = {**base.methods, "backprop": BackpropConfig()}
  return dataclasses.replace(base, method="backprop", methods=methods)


def _deep_supervision(base: ExperimentConfig) -> ExperimentConfig:
  own = dataclasses.replace(base.methods["local_losses"], detach=False)
  methods = {**base.methods, "local_losses": own}
  return dataclasses.replace(base, method="local_losses", methods=methods)


METHODS: Mapping[str, Callable[[ExperimentConfig], ExperimentConfig]] = MappingProxyType(
  {
    "dtg": lambda base: base,
    "forward_forward": _forward_forward,
    "backprop": lambda base: matched_backprop(base, "linear"),
    "backprop, no norm": _plain_backprop,
    "deep supervision": _deep_supervision,
  }
)
"""What is compared, made of the recipe of `dtg_cifar10`. "backprop" has the norm between layers
that "dtg" has, "deep supervision" its dropout and a head a layer, too; "no norm" is the leanest."""

GLOBAL = ("backprop", "backprop, no norm", "deep supervision")


class Cell(NamedTuple):
  """One step.

  Attributes:
    method: in `METHODS`.
    network: a name of `fflax.networks`.
    size: side of the images, of three channels.
    micro: examples a step.
    accumulate: steps an update.
    rematerialize: end-to-end gradients keep no activations.
  """

  method: str
  network: str
  size: int
  micro: int
  accumulate: int = 1
  rematerialize: bool = False

  @property
  def variant(self) -> str:
    """The method and how it saves memory, without the micro-batch."""
    parts = [self.method]
    parts += ["accumulated"] if self.accumulate > 1 else []
    parts += ["rematerialized"] if self.rematerialize else []
    return ", ".join(parts)


def cells(
  methods: Sequence[str], network: str, size: int, micro_batches: Sequence[int], batch: int
) -> list[Cell]:
  """All cells, small micro-batches first: updates from one micro-batch and from `batch` examples.

  Raises:
    ValueError: an unknown method, or a micro-batch that does not divide `batch`; one sentence.
  """
  for name in methods:
    if name not in METHODS:
      raise ValueError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
  found = []
  for micro in micro_batches:
    if micro < 1 or batch % micro:
      raise ValueError(f"a micro-batch must divide the batch of {batch}, which {micro} does not")
    times = batch // micro
    for name in methods:
      cell = Cell(name, network, size, micro)
      found.append(cell)
      if times > 1:
        found.append(cell._replace(accumulate=times))
      if name in GLOBAL:
        found.append(cell._replace(accumulate=times, rematerialize=True))
  return found


def configuration(cell: Cell) -> ExperimentConfig:
  """The run of a cell.

  Raises:
    ValueError: it is impossible; one sentence.
  """
  base = load_preset("dtg_cifar10")
  base = dataclasses.replace(
    base,
    network=cell.network,
    readouts=("score_sum",),
    optimizer=dataclasses.replace(base.optimizer, accumulate=cell.accumulate),
    data=dataclasses.replace(base.data, batch_size=cell.micro),
  )
  chosen = METHODS[cell.method](base)
  chosen = dataclasses.replace(chosen, rematerialize=cell.rematerialize)
  check(chosen)
  return chosen


def measure(cell: Cell, rounds: int = 0) -> dict[str, Any]:
  """Compiles a cell's step for this machine, and times it on random data in `rounds` rounds.

  Returns:
    Bytes by the compiler's account, "arguments", "outputs", "alias", "temporaries" and "peak" (see
    `MemoryUse`); of the arguments, "state" (weights, optimiser and accumulated gradients) and
    "batch"; "gradients", what one gradient of all weights takes; "locality" as declared. If timed,
    "images_per_second", one a round, and "device_peak" where the device counts it; these are empty,
    and "failed" says why, if the device has not enough memory.

  Raises:
    ValueError: the compiler gives no memory analysis.
  """
  chosen = configuration(cell)
  task = Task((cell.size, cell.size, 3), CLASSES, "random images")
  trainer = traced_trainer(chosen, task, plain=False)
  found: dict[str, Any] = {"locality": trainer.locality}
  options = _PLAN_ONLY if jax.default_backend() == "cpu" and not rounds else None
  try:
    compiled, state, batch = compiled_step(trainer, task, cell.micro, options)
    found |= compiled_memory(compiled)._asdict()
    found |= {"state": _bytes(state), "batch": _bytes(batch)}
    found["gradients"] = 4 * count_parameters(state)
    if rounds:
      found |= _timed(trainer, compiled, batch, rounds, max(4, cell.accumulate))
  except jax.errors.JaxRuntimeError as error:
    if "RESOURCE_EXHAUSTED" not in str(error):
      raise
    found |= {"failed": str(error).splitlines()[0], "images_per_second": [], "device_peak": None}
  return found


def _bytes(tree: PyTree) -> int:
  return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _timed(
  trainer: Trainer, compiled: jax.stages.Compiled, batch: Batch, rounds: int, steps: int
) -> dict[str, Any]:
  """Images a second in each round of `steps` steps, at least one update, after a warm-up round."""
  rng = np.random.RandomState(0)
  image = jnp.asarray(rng.randn(*batch.image.shape), jnp.float32)
  real = Batch(image, jnp.asarray(rng.randint(0, CLASSES, batch.label.shape), jnp.int32))
  state = jax.jit(trainer.init)(jax.random.key(0), real)
  rates = []
  for _ in range(1 + rounds):
    start = time.perf_counter()
    for _ in range(steps):
      state, _ = compiled(state, real)
    jax.block_until_ready(state)
    rates.append(steps * len(image) / (time.perf_counter() - start))
  counted = jax.devices()[0].memory_stats() or {}
  return {"images_per_second": rates[1:], "device_peak": counted.get("peak_bytes_in_use")}
