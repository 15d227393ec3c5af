"""What a result row says of its run's cost, beside its matched backprop control.

Counted from the traced step and read from the compiler; nothing is trained or timed.
"""

from typing import Any

from experiments.card import (
  Task,
  find_task,
  prediction_cost,
  step_memory,
  traced_trainer,
  training_cost,
)
from experiments.config import ExperimentConfig
from experiments.controls import matched_backprop
from experiments.firing import draws, twin_of


def row_costs(
  config: ExperimentConfig, task: Task | None = None, *, memory: bool = True
) -> dict[str, Any]:
  """The column "cost" of a run's rows.

  Products with counts of p-bits are counted as if the units were real; what they save depends on
  how often they fire (see `python -m experiments.cost`).

  Args:
    config: the run.
    task: of its data; None finds it.
    memory: also compile both steps for this machine.

  Returns:
    "training_macs" of one example, "prediction_macs" of one by each readout, "step_bytes" (the
    compiler's peak of a step: arguments, results and temporaries; None if it does not tell), and
    "control": the first and the last of the matched backprop control, None for a run by backprop.
  """
  task = task or find_task(config)
  trainer = traced_trainer(config, task)
  batch = config.data.batch_size
  found = {
    "training_macs": training_cost(trainer, task, batch).per_example(batch).total("macs"),
    "prediction_macs": {
      name: prediction_cost(trainer, task, name).per_example(1).total("macs")
      for name in config.readouts
    },
    "step_bytes": _step_bytes(config, task) if memory else None,
    "control": None,
  }
  if config.method != "backprop":
    real = twin_of(config, config.numerics) if draws(config) else config
    control = matched_backprop(real, head=None)
    step = training_cost(traced_trainer(control, task), task, batch).per_example(batch)
    found["control"] = {
      "training_macs": step.total("macs"),
      "step_bytes": _step_bytes(control, task) if memory else None,
    }
  return found


def _step_bytes(config: ExperimentConfig, task: Task) -> int | None:
  memory, _ = step_memory(config, task)
  return None if memory is None else memory["peak"]
