"""What is written down: rows as pure functions of the run, cut back without loss."""

import json
import math
import os
import pathlib
import struct
import threading

import numpy as np
import pytest
from tensorboardX.proto import event_pb2

from fflax.training import metrics
from fflax.training.metrics import MetricsWriter, cut_rows, flatten, read_rows


def test_flatten():
  """A wrong layer's name on a number would not be noticed by anything else."""
  flat = flatten({"loss": np.float32([0.1, 2.0]), "lr": np.float32(0.5)}, ("a", "b"), "train")
  assert flat == {"train/a/loss": 0.1, "train/b/loss": 2.0, "train/lr": 0.5}
  assert flatten({"loss": np.ones(1)}, ("only",), "") == {"only/loss": 1.0}


def test_flatten_marks_what_is_not_finite():
  flat = flatten({"x": np.float32([np.nan, np.inf]), "y": -math.inf}, ("a", "b"), "train")
  assert set(flat.values()) == {None}


@pytest.mark.parametrize("shape", [(3,), (2, 2), (1,)])
def test_flatten_refuses_other_shapes(shape):
  with pytest.raises(ValueError, match=r"'loss' has shape .* allowed are \[\] and \[2\]"):
    flatten({"loss": np.zeros(shape)}, ("a", "b"), "train")


def row(step: int, value: float | None = 1.5) -> metrics.Row:
  return {"step": step, "epoch": step / 4, "train/a/loss": value}


def write_rows(directory: pathlib.Path, *steps: int, resume_step: int = 0) -> bytes:
  with MetricsWriter(directory, resume_step=resume_step, tensorboard=False) as writer:
    for step in steps:
      writer.write(row(step), seconds=0.1)
    writer.sync()
  return (directory / "metrics.jsonl").read_bytes()


def test_rows_are_json_and_have_no_clock(tmp_path):
  with MetricsWriter(tmp_path / "new", tensorboard=False) as writer:
    writer.write(row(4, None), seconds=0.123)
    # Flushed row by row: a killed run's rows are there.
    assert writer.path.read_text() == '{"step": 4, "epoch": 1.0, "train/a/loss": null}\n'
  timing = json.loads((tmp_path / "new" / "timing.jsonl").read_text())
  assert timing == {"step": 4, "seconds": 0.123}
  assert not (tmp_path / "new" / "tensorboard").exists()
  assert read_rows(tmp_path / "new" / "metrics.jsonl") == [row(4, None)]


@pytest.mark.parametrize("tail", [b"", b'{"step": 40, "epo', b'{"step": 40}'])
def test_resumed_file_equals_uncut(tmp_path, tail):
  """Rows twice, a hole, or half a line would end in the figures as data."""
  uncut = write_rows(tmp_path / "uncut", 10, 20, 30, 40)
  write_rows(tmp_path / "cut", 10, 20, 30)
  with (tmp_path / "cut" / "metrics.jsonl").open("ab") as file:
    file.write(tail)
  assert [r["step"] for r in read_rows(tmp_path / "cut" / "metrics.jsonl")] == [10, 20, 30]
  assert write_rows(tmp_path / "cut", 30, 40, resume_step=20) == uncut
  assert not list((tmp_path / "cut").glob(".*")), "the temporary file stayed"


def test_start_from_scratch_drops_all_rows(tmp_path):
  write_rows(tmp_path, 10, 20)
  assert write_rows(tmp_path, 10) == write_rows(tmp_path / "other", 10)
  cut_rows(tmp_path / "missing.jsonl", 0)
  assert not (tmp_path / "missing.jsonl").exists()


@pytest.mark.parametrize(
  ("content", "message"),
  [
    (b'{"step": 10}\nnonsense\n{"step": 20}\n', "line 2 is not a row"),
    (b'{"step": 10}\n{"epoch": 2}\n{"step": 20}\n', "line 2 is not a row"),
    (b'{"step": 10}\n{"step": "20"}\n', "line 2 is not a row"),
    (b"[10]\n", "line 1 is not a row"),
    (b'{"step": 10}\n', "ends at step 10, but the checkpoint to go on from is at 20"),
    (b"", "ends at step 0"),
  ],
)
def test_broken_file_is_refused_and_stays(tmp_path, content, message):
  path = tmp_path / "metrics.jsonl"
  path.write_bytes(content)
  with pytest.raises(ValueError, match=message):
    MetricsWriter(tmp_path, resume_step=20)
  assert path.read_bytes() == content
  assert list(tmp_path.iterdir()) == [path], "nothing else may be written"


def events(directory: pathlib.Path) -> list[event_pb2.Event]:
  """Reads TensorBoard's record format: length, crc, data, crc."""
  found = []
  for path in sorted(directory.glob("events.*")):
    data, start = path.read_bytes(), 0
    while start < len(data):
      (length,) = struct.unpack_from("<Q", data, start)
      event = event_pb2.Event()
      event.ParseFromString(data[start + 12 : start + 12 + length])
      found.append(event)
      start += 12 + length + 4
  return found


def test_tensorboard(tmp_path):
  with MetricsWriter(tmp_path) as writer:
    writer.write(row(4, 1.5), 0.1)
    writer.write(row(8, None), 0.1)
  scalars = [(e.step, v.tag, v.simple_value) for e in events(tmp_path / "tensorboard")
             for v in e.summary.value]  # fmt: skip
  assert scalars == [(4, "epoch", 1.0), (4, "train/a/loss", 1.5), (8, "epoch", 2.0)]


def test_tensorboard_forgets_rows_that_are_written_again(tmp_path):
  """Without the purge, curves of resumed runs double back on themselves."""
  with MetricsWriter(tmp_path) as writer:
    writer.write(row(4), 0.1)
    writer.write(row(8), 0.1)
  with MetricsWriter(tmp_path, resume_step=4) as writer:
    writer.write(row(8), 0.1)
  start = event_pb2.SessionLog.SessionStatus.Value("START")
  logged = events(tmp_path / "tensorboard")
  assert [e.step for e in logged if e.session_log.status == start] == [5]


def test_a_full_disk_is_an_error_of_the_caller_and_leaves_no_file_open(tmp_path):
  """A thread that writes would die with a traceback, and an open file complain at the exit."""

  def opened() -> list[str]:
    links = [os.readlink(link) for link in map(str, pathlib.Path("/proc/self/fd").iterdir())
             if os.path.islink(link)]  # fmt: skip
    return [link for link in links if link.startswith(str(tmp_path)) or link == "/dev/full"]

  if not (os.path.exists("/dev/full") and os.path.exists("/proc/self/fd")):
    pytest.skip("not Linux")
  (tmp_path / "timing.jsonl").symlink_to("/dev/full")
  threads = threading.active_count()
  writer = MetricsWriter(tmp_path)
  assert threading.active_count() == threads and len(opened()) == 3
  with pytest.raises(OSError, match="No space left"):
    writer.write(row(4), 0.1)
  with pytest.raises(OSError, match="No space left"):
    writer.close()  # what could not be written is tried again
  assert opened() == []
  assert read_rows(writer.path) == [row(4)]
