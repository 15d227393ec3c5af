"""The training loop: a run that may be cut anywhere and goes on as if nothing had happened.

The device works through chunks of steps (`fflax.training.chunk`); the host reads the metrics of one
chunk while the next one runs, evaluates, saves checkpoints, and stops a run that diverges. Rows of
metrics are on disk before the checkpoint that relies on them, and a resumed run drops the rows
after its checkpoint, so a kill at any moment costs time and nothing else. Where several processes
train together, all of them run this loop, and the first one alone writes rows.
"""

import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fflax.training import checkpoint, processes
from fflax.training.chunk import Feed, make_chunk
from fflax.training.metrics import MetricsWriter, Row, flatten
from fflax.training.pipeline import MakePipeline, Pipeline
from fflax.training.streaming import feed_chunk
from fflax.training.trainer import Trainer
from fflax.types import Array, Metrics, PyTree, TrainState


@dataclasses.dataclass(frozen=True)
class Plan:
  """When a run does what, counted in steps.

  Attributes:
    num_steps: the run's length.
    steps_per_epoch: converts steps to the epochs of the metrics' rows.
    log_every: a row of metrics, the mean over the steps since the row before.
    eval_every: an evaluation, also at the end; None: at the end only.
    checkpoint_every: a checkpoint, also at the end; None: at the end only.
    keep: how many checkpoints stay.
  """

  num_steps: int
  steps_per_epoch: float
  log_every: int = 100
  eval_every: int | None = None
  checkpoint_every: int | None = None
  keep: int = 2

  def __post_init__(self) -> None:
    """Refuses periods that are not positive."""
    for field in dataclasses.fields(self):
      value = getattr(self, field.name)
      if value is not None and not value > 0:
        raise ValueError(f"plan: {field.name} must be positive, not {value}")

  def next_stop(self, step: int) -> int:
    """Where the chunk that begins at `step` ends: the next row, evaluation or checkpoint."""
    periods = [p for p in (self.log_every, self.eval_every, self.checkpoint_every) if p]
    return min([self.num_steps, *((step // p + 1) * p for p in periods)])

  def is_due(self, step: int, period: int | None) -> bool:
    """Whether something with this period happens after `step` steps."""
    return step == self.num_steps or (period is not None and step % period == 0)


class Diverged(RuntimeError):
  """A loss or a parameter is not finite any more.

  Attributes:
    step: number of the step, counted from 0.
    layer: name of the first layer that failed (or "readout <name>").
    checkpoint: folder of the last good checkpoint, or None.
  """

  def __init__(self, what: str, step: int, layer: str, good: Path | None):
    last = f"the last good checkpoint is {good}" if good else "there is no checkpoint yet"
    super().__init__(f"{what} of {layer} is not finite in step {step} (counted from 0); {last}")
    self.step, self.layer, self.checkpoint = step, layer, good


class Interrupted(RuntimeError):
  """SIGTERM or SIGINT ended the run early; what was done is saved.

  Attributes:
    step: the number of steps taken.
    checkpoint: its checkpoint's folder, or None for a run without a directory.
  """

  def __init__(self, name: str, step: int, saved: Path | None):
    where = f"saved in {saved}; the same run goes on from there" if saved else "nothing is saved"
    super().__init__(f"stopped by {name} after {step} steps, {where}")
    self.step, self.checkpoint = step, saved


class _Signals:
  """Notes SIGTERM and SIGINT instead of dying; a second SIGINT does not wait any longer."""

  def __init__(self) -> None:
    self.name = ""
    self._previous: dict[int, Any] = {}

  def _note(self, number: int, _: FrameType | None) -> None:
    if self.name and number == signal.SIGINT:
      raise KeyboardInterrupt
    self.name = signal.Signals(number).name

  def __enter__(self) -> "_Signals":
    if threading.current_thread() is threading.main_thread():  # others may not set handlers
      for number in (signal.SIGTERM, signal.SIGINT):
        self._previous[number] = signal.signal(number, self._note)
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._previous.items():
      signal.signal(number, signal.SIG_DFL if handler is None else handler)


class _Pending(NamedTuple):
  """A chunk that may still be running."""

  first: int
  stop: int
  results: tuple[Metrics, Metrics]
  evaluation: Mapping[str, Array]


def _mean(rows: np.ndarray) -> np.ndarray:
  """Mean over the steps that reported; NaN where none did."""
  there = ~np.isnan(rows)
  total = np.sum(np.where(there, rows, 0), axis=0, dtype=np.float64)
  count = np.sum(there, axis=0)
  return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def first_failure(
  failed: Mapping[str, np.ndarray], layer_names: Sequence[str]
) -> tuple[int, str] | None:
  """The row of the first failure and who failed in it: a layer, if one did, or a readout."""
  # Columns in the order of blame: the layers' losses, then each readout's.
  readouts = sorted(name for name in failed if name != "loss")
  names = [*layer_names, *(f"readout {name.partition('/')[2]}" for name in readouts)]
  flags = np.column_stack([failed["loss"], *(failed[name] for name in readouts)])
  if not flags.any():
    return None
  row, column = np.argwhere(flags)[0]
  return int(row), names[column]


def _alone(trainer: Trainer, feed: Feed, capacity: int) -> Pipeline:
  """All layers on one device."""
  same = lambda state: state  # noqa: E731
  return Pipeline(same, make_chunk(trainer, feed, capacity), same)


def is_broken(params: PyTree) -> Array:
  """Whether any parameter is NaN or infinite."""
  leaves = [~jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(params)]
  return jnp.any(jnp.stack(leaves)) if leaves else jnp.zeros((), bool)


def train(
  trainer: Trainer,
  feed: Feed,
  state: TrainState,
  images: Any,
  labels: Any,
  plan: Plan,
  *,
  evaluate: Callable[[TrainState], Mapping[str, Array]] | None = None,
  directory: Path | None = None,
  fingerprint: str = "",
  on_row: Callable[[Row], None] | None = None,
  pipeline: MakePipeline | None = None,
) -> TrainState:
  """Trains from `state`, or from the newest checkpoint in `directory`, to the end of the plan.

  Killed at any moment and called again with the same arguments, it ends with bit-identical state
  and `metrics.jsonl` (same machine, same versions).

  Args:
    trainer: takes the steps.
    feed: makes the batches.
    state: the fresh state; it is copied, not donated.
    images: `[N, ...]` as stored (uint8), on the device (of several processes: in each); not looked
      at if the feed streams.
    labels: `[N]` int32; the same.
    plan: when a run does what.
    evaluate: flat name -> scalar of a state; evaluations go into the rows under these names.
    directory: for `metrics.jsonl`, `timing.jsonl`, `tensorboard/` and `checkpoints/`; None writes
      nothing. Several processes must all see it.
    fingerprint: identifies the run's configuration; checkpoints of another one are refused.
    on_row: is told every row, for a progress bar; in the first process.
    pipeline: spreads the layers over devices; None: all are on one.

  Raises:
    Diverged: a loss or parameter is NaN or infinite; such a state is never saved.
    Interrupted: SIGTERM or SIGINT came; the state is saved.
    CheckpointError: the newest checkpoint is damaged or foreign; nothing was changed.
    ValueError: the directory's metrics do not reach its newest checkpoint; nothing was changed.
  """
  folder = None if directory is None else Path(directory) / "checkpoints"
  if state.step.ndim:
    raise ValueError("train takes one state; for several seeds use make_chunk(over_seeds=True)")
  if folder is not None and checkpoint.latest_step(folder) is not None:
    state = checkpoint.restore(folder, state, fingerprint=fingerprint)
  else:
    # Copied, because it will be donated; without weak types, so that one compilation serves.
    state = jax.tree.map(lambda x: jnp.array(x, dtype=x.dtype), state)
  step, names = int(state.step), trainer.layer_names
  if step > plan.num_steps:
    raise ValueError(
      f"the run has taken {step} steps already, more than the plan's {plan.num_steps}"
    )
  if step == plan.num_steps:
    return state

  stream, capacity = feed.stream, min(plan.log_every, plan.num_steps)
  if stream is not None:
    capacity, feed = stream.window(capacity), feed._replace(indices=stream.indices)
  scatter, chunk, gather = (pipeline or _alone)(trainer, feed, capacity)
  batches = None if stream is None else stream.batches(state)
  if batches is not None:
    chunk = feed_chunk(chunk, batches, state, capacity)
  held: Any = scatter(state)
  del state  # donated, or in parts now
  broken_parts = jax.jit(
    lambda s: [is_broken(x.params) for x in (*trainer.layer_states(s), *s.readouts)]
  )
  writer = None
  if directory is not None and processes.is_first():
    writer = MetricsWriter(directory, resume_step=step)
  clock = time.perf_counter()
  pending: _Pending | None = None

  def good() -> Path | None:
    found = None if folder is None else checkpoint.latest_step(folder)
    return None if folder is None or found is None else checkpoint.path(folder, found)

  def finish(done: _Pending) -> None:
    """Waits for a chunk, and writes its row if its losses are finite."""
    nonlocal clock
    metrics, failed = jax.tree.map(lambda x: np.asarray(x)[: done.stop - done.first], done.results)
    failure = first_failure(failed, names)
    if failure is not None:
      raise Diverged("the loss", done.first + failure[0], failure[1], good())
    row: Row = {"step": done.stop, "epoch": done.stop / plan.steps_per_epoch}
    row |= flatten({n: _mean(x) for n, x in metrics.items()}, names, "train")
    row |= flatten(done.evaluation, names, "")
    now = time.perf_counter()
    if writer is not None:
      writer.write(row, now - clock)
    clock = now
    if on_row is not None and processes.is_first():
      on_row(row)

  try:
    with _Signals() as signals:
      while step < plan.num_steps:
        stop = plan.next_stop(step)
        held, results = chunk(held, images, labels, stop - step)
        if pending is not None:
          finish(pending)  # while the device works on the chunk just dispatched
        evaluation: Mapping[str, Array] = {}
        if evaluate is not None and plan.is_due(stop, plan.eval_every):
          evaluation = evaluate(gather(held))
        pending, step = _Pending(step, stop, results, evaluation), stop
        interrupted = max(processes.texts_of_all(signals.name))
        if not interrupted and not plan.is_due(step, plan.checkpoint_every):
          continue
        finish(pending)
        pending = None
        whole = gather(held)
        broken = np.flatnonzero(broken_parts(whole))
        if broken.size:
          part = [*names, *("a readout" for _ in whole.readouts)][broken[0]]
          raise Diverged("a parameter", step - 1, part, good())
        saved = None
        if folder is not None:
          if writer is not None:
            writer.sync()
          saved = checkpoint.save(folder, step, whole, fingerprint=fingerprint, keep=plan.keep)
        if interrupted:
          raise Interrupted(interrupted, step, saved)
  finally:
    if batches is not None:
      batches.close()
    if writer is not None:
      writer.close()
  return gather(held)
