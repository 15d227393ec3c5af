"""The card of a run: what it costs, beside its matched backprop controls.

Everything is traced or compiled, nothing is trained. Energies are modelled, not measured.
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from experiments.assembly import check, count_parameters, trainer_parts
from experiments.config import ExperimentConfig
from fflax.analysis.cost import count
from fflax.analysis.counts import Counts, Key, PerBatch, split_batch
from fflax.analysis.energy import MEMORIES, TABLES, energy
from fflax.analysis.memory import compiled_memory
from fflax.analysis.plain import plain_numerics
from fflax.analysis.traffic import optimizer_bits
from fflax.core.int8_config import Int8Config
from fflax.core.numerics_registry import make_numerics
from fflax.data import sources
from fflax.training.lookahead import LookaheadConfig
from fflax.training.step import make_trainer
from fflax.types import Array, Batch, Trainer, TrainState


class Task(NamedTuple):
  """What the data look like.

  Attributes:
    image_shape: of one example.
    num_classes: K.
    source: where that is known from.
  """

  image_shape: tuple[int, ...]
  num_classes: int
  source: str


_KNOWN = {
  "digits": ((8, 8, 1), 10),
  "mnist": ((28, 28, 1), 10),
  "fashion_mnist": ((28, 28, 1), 10),
  "cifar10": ((32, 32, 3), 10),
  "cifar100": ((32, 32, 3), 100),
}


def find_task(config: ExperimentConfig) -> Task:
  """The shapes of a configuration's data; well-known sets are not loaded.

  Raises:
    ValueError: the data are not known and cannot be loaded.
  """
  data = config.data
  if data.name in _KNOWN and not data.num_classes:
    shape, classes = _KNOWN[data.name]
    if data.image_size:
      shape = (data.image_size, data.image_size, shape[-1])
    return Task(shape, classes, f"{data.name} (not loaded)")
  found = sources.load(
    data.name,
    data_dir=data.data_dir or None,
    validation=data.validation,
    seed=config.seed,
    **data.source_options(),
  )
  return Task(found.train.image.shape[1:], found.num_classes, data.name)


def control_of(config: ExperimentConfig, numerics: str) -> ExperimentConfig:
  """The matched backprop control: same network, data and batches, its own head and nothing more."""
  if numerics != config.numerics:  # without the settings of numerics that it does not have
    config = dataclasses.replace(config, int8=Int8Config(), weight_store="float32")
  return dataclasses.replace(
    config,
    method="backprop",
    numerics=numerics,
    schedule="simultaneous",
    epochs_per_layer=0,
    lookahead=LookaheadConfig(),
    readouts=("score_sum",),
  )


def columns(config: ExperimentConfig) -> dict[str, ExperimentConfig]:
  """The run and its controls, in float32 and in the run's own numerics."""
  found = {"run": config}
  for numerics in dict.fromkeys(("float32", config.numerics)):
    found[f"backprop {numerics}"] = control_of(config, numerics)
  return found


def card(
  config: ExperimentConfig,
  task: Task,
  *,
  table: str = "horowitz_45nm",
  memory: bool = True,
) -> dict[str, Any]:
  """Counts, memory and modelled energy of a run and its controls.

  Args:
    config: the run.
    task: of its data, see `find_task`.
    table: of energies, in `fflax.analysis.energy.TABLES`.
    memory: also compile each step for this machine and read its peak memory.

  Returns:
    Plain values, ready for JSON: "columns" by title, each with "training" (one example of a batch)
    and "prediction" (one example alone, by the first readout), "parameters" and "memory" (bytes).

  Raises:
    ValueError: the run or its control is impossible; one sentence.
  """
  if table not in TABLES:
    raise ValueError(f"unknown energy table {table!r}; there are {', '.join(TABLES)}")
  return {
    "table": table,
    "table_source": TABLES[table].source,
    "data": task.source,
    "image_shape": list(task.image_shape),
    "num_classes": task.num_classes,
    "network": config.network,
    "batch_size": config.data.batch_size,
    "columns": {title: _column(one, task, table, memory) for title, one in columns(config).items()},
  }


def _column(config: ExperimentConfig, task: Task, table: str, memory: bool) -> dict[str, Any]:
  check(config)
  trainer = _trainer(config, task, plain=True)
  training = training_cost(trainer, task, config.data.batch_size)
  prediction = prediction_cost(trainer, task, config.readouts[0])
  state, _ = _abstract(trainer, task, config.data.batch_size)
  found, missing = _memory(config, task) if memory else (None, None)
  return {
    "method": config.method,
    "numerics": config.numerics,
    "schedule": config.schedule,
    "lookahead": config.lookahead.mode,
    "readout": config.readouts[0],
    "locality": trainer.locality,
    "parameters": count_parameters(state),
    "training": _plain(training.per_example(config.data.batch_size), table),
    "prediction": _plain(prediction.per_example(1), table),
    "memory": found,
    "notes": [missing] if missing else [],
  }


def _trainer(config: ExperimentConfig, task: Task, *, plain: bool) -> Trainer:
  numerics = make_numerics(config.numerics, config.int8)
  parts = trainer_parts(
    config,
    task.num_classes,
    steps_per_epoch=100,
    numerics=plain_numerics(numerics) if plain else numerics,
  )
  return make_trainer(image_shape=task.image_shape, **parts)


def _abstract(trainer: Trainer, task: Task, batch_size: int) -> tuple[TrainState, Batch]:
  image = jax.ShapeDtypeStruct((batch_size, *task.image_shape), jnp.float32)
  label = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
  batch = Batch(cast(Array, image), cast(Array, label))
  key = jax.eval_shape(lambda: jax.random.key(0))
  return jax.eval_shape(trainer.init, key, batch), batch


def _twice(
  trainer: Trainer, task: Task, batch_size: int, fn: Callable[[TrainState, Batch], Any]
) -> PerBatch:
  sizes = (batch_size, 2 * batch_size)
  once, twice = (count(fn, *_abstract(trainer, task, size)) for size in sizes)
  return split_batch(once, twice, batch_size)


def training_cost(trainer: Trainer, task: Task, batch_size: int) -> PerBatch:
  """A step's cost, optimiser included; metrics, which training does not need, are not."""
  step = _twice(trainer, task, batch_size, lambda state, batch: trainer.step(state, batch)[0])
  state, _ = _abstract(trainer, task, batch_size)
  moved = optimizer_bits(
    [[s.params for s in state.layers], [s.params for s in state.readouts]],
    [[s.opt_state for s in state.layers], [s.opt_state for s in state.readouts]],
  )
  return step._replace(fixed=step.fixed + moved)


def prediction_cost(trainer: Trainer, task: Task, readout: str) -> PerBatch:
  """The cost of answering by one readout."""
  return _twice(
    trainer, task, 1, lambda state, batch: trainer.answer(state, batch.image).readouts[readout]
  )


def _plain(counts: Counts, table: str) -> dict[str, Any]:
  """A section of the card as plain values."""
  energies = {name: energy(counts, table, memory=where) for name, where in MEMORIES.items()}

  def named(what: str, *fields: str) -> dict[str, float]:
    return {" ".join(key): n for key, n in counts.by(what, *fields).items()}

  random = sum(n for key, n in counts.items.items() if _is_random(key))
  return {
    "macs": counts.total("macs"),
    "macs_valid": counts.total("macs_valid"),
    "macs_by_type": named("macs", "phase", "kind", "dtype"),
    "ops": counts.total("ops") - random,
    "ops_by_type": named("ops", "kind", "dtype"),
    "random_words": random,
    "bits": counts.total("bits"),
    "bits_by_owner": named("bits", "kind"),
    "energy_pj": {name: found.total for name, found in energies.items()},
    "energy_pj_parts": dict(energies["dram_weights"].parts),
    "notes": sorted({note for found in energies.values() for note in found.notes}),
  }


def _is_random(key: Key) -> bool:
  return key.what == "ops" and key.kind == "random"


def _memory(config: ExperimentConfig, task: Task) -> tuple[dict[str, int] | None, str | None]:
  """Bytes of the step as it is compiled for this machine, updated in place; or why not."""
  trainer = _trainer(config, task, plain=False)
  state, batch = _abstract(trainer, task, config.data.batch_size)
  compiled = jax.jit(trainer.step, donate_argnums=0).lower(state, batch).compile()
  try:
    return compiled_memory(compiled)._asdict(), None
  except ValueError as error:
    return None, str(error)


def ratio(run: float, control: float) -> float | None:
  """How many times the control's number the run's is; None if the control's is zero."""
  return run / control if control else None


def notes(columns: Iterable[Mapping[str, Any]]) -> list[str]:
  """What a reader of these columns must know, each sentence once."""
  found: dict[str, None] = {}
  for column in columns:
    for part in (column["training"], column["prediction"], column):
      found |= dict.fromkeys(part["notes"])
  return list(found)
