"""The card of a run: what it costs, beside its matched backprop controls.

Everything is traced or compiled, nothing is trained. Energies are modelled, not measured. Firing
rates of p-bits, on which their costs depend, are measured before (`experiments.firing`).
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp

from experiments.assembly import check, count_parameters, trainer_parts
from experiments.config import ExperimentConfig
from experiments.controls import matched_backprop
from experiments.firing import Measured, draws, twin_of
from experiments.firing import as_dict as firing_as_dict
from experiments.pbit_hardware import SAMPLES, Pass, judge
from fflax.analysis.cost import INDEXED, count
from fflax.analysis.counts import Counts, Key, PerBatch, split_batch
from fflax.analysis.energy import MEMORIES, TABLES, energy, index_additions
from fflax.analysis.firing import READINGS
from fflax.analysis.memory import compiled_memory
from fflax.analysis.plain import plain_numerics
from fflax.analysis.traffic import optimizer_bits
from fflax.core.numerics_registry import make_numerics
from fflax.data import sources
from fflax.data.catalog import KNOWN
from fflax.methods.registry import make_method
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.types import Answers, Array, Batch, TrainState


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


def find_task(config: ExperimentConfig) -> Task:
  """The shapes of a configuration's data; well-known sets are not loaded.

  Raises:
    ValueError: the data are not known and cannot be loaded.
  """
  data = config.data
  if data.name in KNOWN and not data.num_classes:
    shape, classes, _ = KNOWN[data.name]
    classes = data.superclasses or classes
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


def columns(config: ExperimentConfig) -> dict[str, ExperimentConfig]:
  """The run and its controls, in float32 and in the run's own numerics.

  A run whose units are p-bits answers by sampled passes (one, if it names none). It stands beside
  the same run with real units, in float32 and in int8, and its controls have real units, too.
  """
  found = {"run": config}
  if draws(config):
    found["run"] = dataclasses.replace(config, eval_samples=max(1, config.eval_samples))
  for numerics in dict.fromkeys(("float32", config.numerics)):
    real = twin_of(config, numerics) if draws(config) else config
    found[f"backprop {numerics}"] = matched_backprop(real, None, numerics)
  if draws(config) and config.method != "backprop":
    for numerics in ("float32", "int8"):
      twin = twin_of(config, numerics)
      found[f"{twin.method} {numerics}"] = twin
  return found


def card(
  config: ExperimentConfig,
  task: Task,
  *,
  table: str = "horowitz_45nm",
  memory: bool = True,
  firing: Measured | None = None,
) -> dict[str, Any]:
  """Counts, memory and modelled energy of a run and its controls.

  Args:
    config: the run.
    task: of its data, see `find_task`.
    table: of energies, in `fflax.analysis.energy.TABLES`.
    memory: also compile each step for this machine and read its peak memory.
    firing: of p-bits, which a run that has them needs.

  Returns:
    Plain values, ready for JSON: "columns" by title, each with "training" (one example of a batch)
    and "prediction" (one example alone, by the first readout), "parameters" and "memory" (bytes).
    Of p-bits also "firing", and "judge": the products of one pass on hardware that has them.

  Raises:
    ValueError: the run or its control is impossible, or firing rates are missing; one sentence.
  """
  if table not in TABLES:
    raise ValueError(f"unknown energy table {table!r}; there are {', '.join(TABLES)}")
  if draws(config) and firing is None:
    raise ValueError("what p-bits cost depends on how often they fire: measure that first")
  own = firing if draws(config) else None
  found = {
    title: _column(one, task, table, memory, own if title == "run" else None)
    for title, one in columns(config).items()
  }
  rows = None
  if own is not None:
    one, twin = (
      forward_pass(c, task, c.readouts[0], own) for c in (config, twin_of(config, "float32"))
    )
    rows = judge(one, twin, table)
  return {
    "table": table,
    "table_source": TABLES[table].source,
    "data": task.source,
    "image_shape": list(task.image_shape),
    "num_classes": task.num_classes,
    "network": config.network,
    "batch_size": config.data.batch_size,
    "columns": found,
    "firing": None if own is None else firing_as_dict(own),
    "judge": rows,
  }


def forward_pass(
  config: ExperimentConfig, task: Task, readout: str, firing: Measured | None
) -> Pass:
  """The products and stochastic bits of one pass of one example, by one readout.

  `firing` is that of the run's p-bits; it is not read if the run's units are real.
  """
  one = dataclasses.replace(config, eval_samples=int(draws(config)))
  counts = prediction_cost(traced_trainer(one, task), task, readout).per_example(1)
  indexed = sum(counts.total("macs", kind=kind) for kind in INDEXED)
  products = firing.of([readout]) if draws(config) and firing is not None else []
  return Pass(counts.total("macs") - indexed, counts.total("pbits"), products)


def _column(
  config: ExperimentConfig, task: Task, table: str, memory: bool, firing: Measured | None
) -> dict[str, Any]:
  check(config)
  trainer = traced_trainer(config, task)
  training = training_cost(trainer, task, config.data.batch_size)
  prediction = prediction_cost(trainer, task, config.readouts[0])
  state, _ = _abstract(trainer, task, config.data.batch_size)
  found, missing = step_memory(config, task) if memory else (None, None)
  # Heads that learn from a pass of their own learn from the mean field: their products are real.
  method = make_method(config.method, config.methods[config.method], task.num_classes)
  listening = config.readouts if method.single_view else ()
  return {
    "method": config.method,
    "numerics": config.numerics,
    "schedule": config.schedule,
    "lookahead": config.lookahead.mode,
    "readout": config.readouts[0],
    "locality": trainer.locality,
    "parameters": count_parameters(state),
    "training": _plain(training.per_example(config.data.batch_size), table, firing, listening),
    "prediction": _plain(prediction.per_example(1), table, firing, config.readouts[:1]),
    "memory": found,
    "notes": [missing] if missing else [],
  }


def traced_trainer(config: ExperimentConfig, task: Task, *, plain: bool = True) -> Trainer:
  """A trainer to trace; `plain`: each product is written as the one operation it stands for."""
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


def prediction_cost(
  trainer: Trainer, task: Task, answer: str | Callable[[Answers], Any]
) -> PerBatch:
  """The cost of answering by one readout, or of another part of what the network answers."""

  def part(state: TrainState, batch: Batch) -> Any:
    answers = trainer.answer(state, batch.image)
    return answers.readouts[answer] if isinstance(answer, str) else answer(answers)

  return _twice(trainer, task, 1, part)


def _plain(
  counts: Counts, table: str, firing: Measured | None, readouts: Sequence[str]
) -> dict[str, Any]:
  """A section of the card as plain values; `readouts` are those whose products are in it.

  A gradient of weights adds where its input fires: as often as the product itself.
  """
  traced, adds = counts, dict.fromkeys(READINGS, 0.0)
  if firing is not None:
    for reading in reversed(READINGS):  # the energy is that of the first, the dearer one
      rates = dict.fromkeys(INDEXED, firing.rate(reading, readouts))
      sums = "int32" if traced.total("macs", kind="count_int8") else "float32"
      counts = index_additions(traced, rates, reading=reading, accumulator=sums)
      adds[reading] = counts.total("index_adds")
  energies = {name: energy(counts, table, memory=where) for name, where in MEMORIES.items()}

  def named(what: str, *fields: str) -> dict[str, float]:
    return {" ".join(key): n for key, n in traced.by(what, *fields).items()}

  random = sum(n for key, n in counts.items.items() if _is_random(key))
  return {
    "macs": traced.total("macs"),
    "macs_valid": traced.total("macs_valid"),
    "macs_by_type": named("macs", "phase", "kind", "dtype"),
    "index_adds": adds,
    "pbits": traced.total("pbits"),
    "pbit_pj": {
      name: energy(traced.only("pbits"), table, pbit=pbit).total for name, pbit in SAMPLES.items()
    },
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


def compiled_step(
  trainer: Trainer, task: Task, batch_size: int, options: Mapping[str, Any] | None = None
) -> tuple[jax.stages.Compiled, TrainState, Batch]:
  """The step as it is compiled for this machine, updated in place, and its arguments' shapes."""
  state, batch = _abstract(trainer, task, batch_size)
  lowered = jax.jit(trainer.step, donate_argnums=0).lower(state, batch)
  return lowered.compile(dict(options) if options else None), state, batch


def step_memory(config: ExperimentConfig, task: Task) -> tuple[dict[str, int] | None, str | None]:
  """Bytes of the step as it is compiled for this machine, updated in place; or why not."""
  trainer = traced_trainer(config, task, plain=False)
  compiled, *_ = compiled_step(trainer, task, config.data.batch_size)
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
