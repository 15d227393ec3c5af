"""What a person sees in the terminal: opening lines, progress bar, closing table."""

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from experiments import workdir
from experiments.alarms import Alarms
from experiments.assembly import Experiment, count_parameters, passes_per_prediction
from fflax.data.array_record_source import is_streamed
from fflax.networks.registry import describe
from fflax.training.metrics import Row
from fflax.types import TrainState

console = Console(highlight=False, soft_wrap=True)


def locality_line(experiment: Experiment, matrix: np.ndarray) -> str:
  """The declared class of locality and what the machine measured."""
  size, pairs = len(matrix), int((matrix & ~np.eye(len(matrix), dtype=bool)).sum())
  found = (
    f"no loss moves another layer's parameters ({size} x {size} layers)"
    if pairs == 0
    else f"losses move other layers' parameters in {pairs} of {size * (size - 1)} pairs of layers"
  )
  return f"locality  {experiment.trainer.locality} (declared), measured: {found}"


def opening(experiment: Experiment, state: TrainState, matrix: np.ndarray) -> None:
  """Versions, device, method, locality and cost, before the run starts."""
  config, data = experiment.config, experiment.dataset
  v = workdir.versions()
  passes = passes_per_prediction(experiment)
  sizes = [len(data.train.label), len(data.validation.label) if data.validation else 0]
  console.print(
    f"fflax     python {v['python']}, jax {v['jax']}, flax {v['flax']}, {workdir.device()}"
  )
  axes = {name: size for name, size in config.mesh.axes.items() if size > 1}
  if axes:
    shared = ", ".join(f"{name} {size}" for name, size in axes.items())
    number = jax.process_count()
    of = f" of {number} processes" if number > 1 else ""
    kind = f", {config.mesh.pipeline}" if "layer" in axes else ""
    console.print(f"mesh      {shared}{kind}: {math.prod(axes.values())} devices{of}")
  console.print(
    f"run       {config.method} x {config.network} x {config.numerics} x {config.schedule} x "
    f"{config.readouts[0]}, seed {config.seed}"
  )
  console.print(
    f"data      {data.name}: {sizes[0]} training, {sizes[1]} validation, "
    f"{len(data.test.label)} test examples, {data.num_classes} classes"
    + (", streamed" if is_streamed(data.train) else "")
  )
  view, example = experiment.method.plain_view, experiment.example().image
  layers = ", ".join(
    f"{r.name} {'x'.join(map(str, r.output_shape))}"
    for r in describe(experiment.network, jax.eval_shape(view, example).shape[1:])
  )
  console.print(f"network   {layers}")
  console.print(locality_line(experiment, matrix))
  costs = ", ".join(f"{n}: {p} pass{'es' * (p != 1)}" for n, p in passes.items())
  console.print(
    f"cost      {count_parameters(state):,} trained parameters; a prediction by {costs}"
  )


class Bar:
  """A progress bar over steps with loss and accuracy; plain lines where there is no terminal."""

  def __init__(self, experiment: Experiment, first_step: int):
    """`first_step`: where a resumed run goes on."""
    self._plan = experiment.plan
    self._layers = experiment.trainer.layer_names
    self._primary = experiment.readouts[0].name
    self._accuracy = ""
    self._alarms = Alarms(self._layers)
    self._progress = Progress(
      TextColumn("training"),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn("{task.description}"),
      TimeRemainingColumn(),
      console=console,
    )
    self._task = self._progress.add_task("", total=self._plan.num_steps, completed=first_step)

  def __enter__(self) -> "Bar":
    if console.is_terminal:
      self._progress.start()
    return self

  def __exit__(self, *_: object) -> None:
    self._progress.stop()

  def update(self, row: Row) -> None:
    """Shows one row of metrics."""
    for line in self._alarms.hear(row):
      console.print(line)
    losses = [row.get(f"train/{name}/loss") for name in self._layers]
    text = "loss " + " ".join("-" if x is None else f"{x:.3g}" for x in losses)
    for split in ("validation", "test"):
      value = row.get(f"{split}/accuracy/{self._primary}")
      if value is not None:
        layers = [row.get(f"{split}/{name}/accuracy") for name in self._layers]
        known = " ".join(f"{100 * x:.1f}" for x in layers if x is not None)
        self._accuracy = f"{split} {100 * value:.2f} %" + (f" (layers {known})" if known else "")
        break
    self._progress.update(
      self._task, completed=row["step"], description=f"{text}  {self._accuracy}"
    )
    if not console.is_terminal and any("accuracy/" in name for name in row):
      console.print(
        f"epoch {row['epoch']:g}/{self._plan.num_steps // self._plan.steps_per_epoch:g}  "
        f"{text}  {self._accuracy}"
      )


@contextlib.contextmanager
def counting(what: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
  """A bar over many runs; gives `tell(how many more, line)`, the lines stand above the bar."""
  columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
  progress = Progress(*columns, TimeRemainingColumn(), console=console)
  task = progress.add_task(what, total=total, completed=done)

  def tell(more: int, line: str) -> None:
    progress.advance(task, more)
    if line:
      console.print(line)

  if console.is_terminal:
    progress.start()
  try:
    yield tell
  finally:
    progress.stop()


def closing(experiment: Experiment, accuracies: Mapping[str, Mapping[str, float]]) -> None:
  """The table of accuracies per layer and readout, one column a split."""
  table = Table(title=f"accuracy in percent, {experiment.dataset.name}, {experiment.method.name}")
  table.add_column("")
  for split in accuracies:
    table.add_column(split, justify="right")
  rows = [(f"{n}/accuracy", f"layer {n}") for n in experiment.trainer.layer_names]
  rows += [(f"accuracy/{r.name}", f"readout {r.name}") for r in experiment.readouts]
  for key, title in rows:
    values = [split.get(key) for split in accuracies.values()]
    if any(v is not None for v in values):
      table.add_row(title, *("-" if v is None else f"{100 * v:.2f}" for v in values))
  console.print(table)


_PREFIXES = tuple(zip((1e12, 1e9, 1e6, 1e3, 1, 1e-3, 1e-6, 1e-9), "TGMk mun", strict=True))


def si(value: float, unit: str = "") -> str:
  """Three digits and a prefix: "46.0 M", "0.83 uJ"."""
  if not value:
    return f"0 {unit}".strip()
  scale, prefix = next((s for s in _PREFIXES if abs(value) >= 0.9995 * s[0]), (1e-12, "p"))
  digits = value / scale
  places = 2 if digits < 9.995 else 1 if digits < 99.95 else 0
  return f"{digits:.{places}f} {prefix.strip()}{unit}".strip()
