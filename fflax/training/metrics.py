"""What a run writes down: `metrics.jsonl`, `timing.jsonl` and TensorBoard events.

A row of `metrics.jsonl` is a pure function of the run: no clock, no machine. On resume the file is
cut back to the checkpoint's step, so that a run killed anywhere and started again ends with the
same bytes as an uncut one. Wall-clock time goes to `timing.jsonl`, which is only appended to.
"""

import contextlib
import json
import math
import os
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.record_writer import RecordWriter


class MetricsError(ValueError):
  """The rows of a run are damaged or do not reach its checkpoint; one sentence."""


Row = dict[str, float | int | None]
"""`step`, `epoch`, and flat metrics; None (JSON `null`) stands for not reported or not finite."""


def flatten(
  metrics: Mapping[str, Any], layer_names: Sequence[str], prefix: str
) -> dict[str, float | None]:
  """Flat metrics of one row, rounded to 8 significant digits.

  Args:
    metrics: name -> `[L]` per layer, becomes `<prefix>/<layer>/<name>`; or a scalar, becomes
      `<prefix>/<name>`.
    layer_names: L names.
    prefix: "train", "test", ...; empty for none.

  Raises:
    ValueError: an array has another shape.
  """
  flat = {}
  head = f"{prefix}/" if prefix else ""
  for name, value in metrics.items():
    value = np.asarray(value)
    if value.ndim == 0:
      flat[f"{head}{name}"] = _number(value)
    elif value.shape == (len(layer_names),):
      for layer, x in zip(layer_names, value, strict=True):
        flat[f"{head}{layer}/{name}"] = _number(x)
    else:
      raise ValueError(
        f"metric {name!r} has shape {list(value.shape)}; allowed are [] and [{len(layer_names)}]"
      )
  return flat


def _number(x: Any) -> float | None:
  return float(f"{float(x):.8g}") if math.isfinite(x) else None


def read_rows(path: str | os.PathLike) -> list[Row]:
  """The rows of a JSONL file; a half-written last line (the mark of a kill) is left out.

  Raises:
    ValueError: another line is not a JSON object with a step.
  """
  return [row for row, _ in _parse(Path(path))]


def cut_rows(path: str | os.PathLike, step: int) -> None:
  """Drops, atomically, all rows after `step` and a half-written last line.

  Raises:
    ValueError: the file does not reach `step` (the run's rows are missing), or is not JSONL; it
      stays as it was.
  """
  path = Path(path)
  rows = _parse(path) if path.exists() else []
  kept = [(row, line) for row, line in rows if row["step"] <= step]  # type: ignore[operator]
  last = kept[-1][0]["step"] if kept else 0
  if last != step:
    raise MetricsError(f"{path} ends at step {last}, but the checkpoint to go on from is at {step}")
  content = b"".join(line for _, line in kept)
  if path.exists() and path.read_bytes() != content:
    unfinished = path.with_name(f".{path.name}.unfinished")
    with unfinished.open("wb") as f:
      f.write(content)
      f.flush()
      os.fsync(f.fileno())
    unfinished.replace(path)


def _parse(path: Path) -> list[tuple[Row, bytes]]:
  rows = []
  lines = path.read_bytes().splitlines(keepends=True)
  for number, line in enumerate(lines, start=1):
    if not line.endswith(b"\n"):
      break
    try:
      row = json.loads(line)
      if not isinstance(row["step"], int):
        raise TypeError
    except (ValueError, KeyError, TypeError):
      raise MetricsError(f"{path} is broken: line {number} is not a row of metrics") from None
    rows.append((row, line))
  return rows


class _Events:
  """Scalars for TensorBoard, written where the caller stands, who so hears of every error.

  tensorboardX's own `SummaryWriter` writes from a thread: on a full disk that thread dies with a
  traceback, and the run would wait for ever at its full queue.
  """

  def __init__(self, folder: Path, purge_step: int | None):
    """Opens a new file; TensorBoard forgets what earlier ones have from `purge_step` on."""
    folder.mkdir(parents=True, exist_ok=True)
    # TensorBoard reads the files of a folder in the order of their names.
    name = f"events.out.tfevents.{time.time():.6f}.{platform.node()}"
    self._file = RecordWriter(str(folder / name))
    self._add(file_version="brain.Event:2")
    if purge_step is not None:
      self._add(step=purge_step, session_log=SessionLog(status=SessionLog.START))
    self._flushed = time.monotonic()

  def _add(self, **fields: Any) -> None:
    self._file.write(Event(wall_time=time.time(), **fields).SerializeToString())

  def write(self, row: Row) -> None:
    values = [
      Summary.Value(tag=name, simple_value=value)
      for name, value in row.items()
      if name != "step" and value is not None
    ]
    self._add(step=row["step"], summary=Summary(value=values))
    if time.monotonic() - self._flushed > _SHOWN_AFTER:
      self._file.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._file.close()


_SHOWN_AFTER = 10
"""Seconds that TensorBoard may be behind: a flush waits for the disk."""


class MetricsWriter:
  """Appends the rows of a run to the files in `directory`; a context manager.

  Attributes:
    path: of `metrics.jsonl`.
  """

  def __init__(
    self, directory: str | os.PathLike, *, resume_step: int = 0, tensorboard: bool = True
  ):
    """Opens the files; rows after `resume_step`, the step that the run goes on from, are dropped.

    Raises:
      ValueError: see `cut_rows`.
    """
    directory = Path(directory)
    self.path = directory / "metrics.jsonl"
    cut_rows(self.path, resume_step)
    directory.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as files:
      self._rows = files.enter_context(self.path.open("a", encoding="utf-8"))
      timing = (directory / "timing.jsonl").open("a", encoding="utf-8")
      self._timing = files.enter_context(timing)
      self._events = None
      if tensorboard:
        purge = resume_step + 1 if resume_step else None
        self._events = _Events(directory / "tensorboard", purge)
        files.callback(self._events.close)
      self._files = files.pop_all()

  def write(self, row: Row, seconds: float) -> None:
    """Appends one row, and the wall-clock `seconds` since the row before to the timing file."""
    self._rows.write(json.dumps(row, allow_nan=False) + "\n")
    self._rows.flush()
    self._timing.write(json.dumps({"step": row["step"], "seconds": round(seconds, 6)}) + "\n")
    self._timing.flush()
    if self._events is not None:
      self._events.write(row)

  def sync(self) -> None:
    """Waits until all rows are on disk; called before a checkpoint that relies on them."""
    os.fsync(self._rows.fileno())

  def close(self) -> None:
    """Closes the files, all of them, whatever becomes of one."""
    self._files.close()

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_: object) -> None:
    self.close()
