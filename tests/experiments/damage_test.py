"""Damage around a run: bad data, folders that cannot be used, a full disk, two runs at once.

One sentence, no traceback, an exit code, and nothing that was there is lost. Damage inside a
checkpoint or a `.npz` is in tests/training/checkpoint_test.py and tests/data/npz_source_test.py.
"""

import errno
import os
import pathlib
import resource
import shutil
import subprocess
import sys
import time
import types

import numpy as np
import pytest

from experiments import cli, workdir
from experiments.assembly import build
from experiments.config import ExperimentConfig, from_mapping
from fflax.data import npz_source
from fflax.data.dataset import DataError
from fflax.training import checkpoint
from fflax.training.metrics import read_rows
from tests.experiments.train_test import ROOT, SMALL, command, files
from tests.training import toy
from tests.training.checkpoint_test import bits

ROWS = 40


def arrays(**changes: np.ndarray) -> dict[str, np.ndarray]:
  rng = np.random.default_rng(0)
  good = {
    "x_train": rng.normal(size=(ROWS, 7)).astype(np.float32),
    "y_train": (np.arange(ROWS) % 3).astype(np.int64),
    "x_test": rng.normal(size=(9, 7)).astype(np.float32),
    "y_test": (np.arange(9) % 3).astype(np.int64),
  }
  return {**good, **changes}


def spoiled(value: float) -> np.ndarray:
  x = arrays()["x_train"]
  x[3, 5] = value
  return x


BAD_ARRAYS = {
  "NaN": {"x_train": spoiled(np.nan)},
  "infinite": {"x_test": spoiled(np.inf)[:9]},
  "float64": {"x_train": arrays()["x_train"].astype(np.float64)},
  "complex": {"x_train": arrays()["x_train"].astype(np.complex64)},
  "text": {"y_train": np.array(["one"] * ROWS)},
  "objects": {"x_train": np.array([{}] * ROWS, dtype=object)},
  "float labels": {"y_train": arrays()["y_train"].astype(np.float32)},
  "negative label": {"y_train": np.arange(ROWS) % 3 - 1},
  "huge label": {"y_train": np.full(ROWS, 2**63, np.uint64)},
  "label above the classes": {"y_test": np.arange(9) % 4},
  "no example": {"x_test": np.zeros((0, 7), np.float32), "y_test": np.zeros(0, np.int64)},
  "no feature": {"x_train": np.zeros((ROWS, 0), np.float32)},
  "too few labels": {"y_train": np.arange(ROWS - 1) % 3},
  "one class": {"y_train": np.zeros(ROWS, np.int64), "y_test": np.zeros(9, np.int64)},
  "other width": {"x_test": np.zeros((9, 6), np.float32)},
  "scalar": {"x_train": np.float32(3)},
}


def refuses(path: pathlib.Path) -> str:
  values = {"data": {"name": str(path), "batch_size": 10}, "networks": {"mlp": {"sizes": (4,)}}}
  with pytest.raises(cli.UsageError) as error, cli.checking():
    build(from_mapping(values))
  return str(error.value)


def test_bad_arrays_are_one_sentence_with_their_file(tmp_path):
  for name, changes in BAD_ARRAYS.items():
    path = tmp_path / f"{name.replace(' ', '_')}.npz"
    np.savez(path, **arrays(**changes))
    sentence = refuses(path)
    assert str(path) in sentence and "\n" not in sentence, name


def test_cut_and_flipped_archives_never_pass(tmp_path):
  """Whatever a disk or a transfer does: refused, or (outside of the arrays) the same arrays."""
  whole = tmp_path / "whole.npz"
  np.savez(whole, **arrays())
  raw, rng = whole.read_bytes(), np.random.default_rng(0)
  path, refused = tmp_path / "damaged.npz", 0
  headers = [raw.index(b"PK\x03\x04"), raw.index(b"PK\x01\x02"), raw.index(b"PK\x05\x06")]
  near = np.concatenate(
    [np.arange(h, h + 20) for h in headers]
  )  # where flips are not bytes of data
  for position in (*rng.integers(0, len(raw), 150), *near):
    flipped = bytearray(raw)
    flipped[position] ^= 1 << int(rng.integers(8))
    for content in (raw[:position], flipped):
      path.write_bytes(content)
      try:
        found = npz_source.load(path)
      except DataError as error:
        sentence = str(error)
        refused += 1
      else:
        sentence = str(path)
        np.testing.assert_array_equal(found.train.image, arrays()["x_train"])
        np.testing.assert_array_equal(found.test.label, arrays()["y_test"])
      assert str(path) in sentence and "\n" not in sentence
  assert refused > 300


def test_a_folder_serves_one_process_at_a_time(tmp_path):
  folder = tmp_path / "run"
  own, other = ExperimentConfig(), ExperimentConfig(seed=1)
  with workdir.held(folder, own):
    workdir.open_run(folder, own)
    before = files(folder)
    with (
      pytest.raises(workdir.InUse, match="in use by another process"),
      workdir.held(folder, own),
    ):
      pass
  with pytest.raises(workdir.InUse, match="another configuration"), workdir.held(folder, other):
    pass  # it has become another's between the first look and the lock
  with workdir.held(folder, own):
    assert files(folder) == before


def test_a_run_killed_between_lock_and_configuration_may_go_on(tmp_path):
  (tmp_path / ".lock").touch()
  workdir.claim(tmp_path, ExperimentConfig())


def test_a_full_disk_is_no_fault_of_the_program():
  with (
    pytest.raises(cli.Stopped, match=r"No space left.* is whole"),
    cli.working(pathlib.Path("a")),
  ):
    raise OSError(errno.ENOSPC, "No space left on device", "x")
  with pytest.raises(FileNotFoundError), cli.working(pathlib.Path("runs/a")):
    raise FileNotFoundError(errno.ENOENT, "a fault of the program")


def test_late_writes_of_a_failed_save_say_nothing_and_other_faults_do(monkeypatch):
  heard = []
  monkeypatch.setattr(sys, "unraisablehook", lambda one: heard.append(str(one.exc_value)))
  with cli.working(pathlib.Path("a")):
    pass
  late, fault = (
    types.SimpleNamespace(exc_value=RuntimeError(text)) for text in ("Event loop is closed", "else")
  )
  sys.unraisablehook(late)
  with pytest.raises(cli.Stopped), cli.working(pathlib.Path("a")):
    raise OSError(errno.ENOSPC, "No space left on device", "x")
  sys.unraisablehook(late)
  sys.unraisablehook(fault)
  assert heard == ["Event loop is closed", "else"]


# --- real disks and processes ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> pathlib.Path:
  folder = tmp_path_factory.mktemp("run") / "uncut"
  done = command("train", f"--workdir={folder}", *SMALL)
  assert done.returncode == 0, done.stderr
  return folder


class Disk:
  """A file system of its own, in memory."""

  def __init__(self, folder: pathlib.Path, size: str):
    self.folder = folder
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    if os.geteuid() != 0 or subprocess.run(command, capture_output=True).returncode:
      pytest.skip("no file system can be mounted here")

  def remount(self, option: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{option}", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path):
  made = []

  def make(size: str) -> Disk:
    made.append(Disk(tmp_path / f"disk{len(made)}", size))
    return made[-1]

  yield make
  for one in made:
    # Lazily: threads of a library may still hold a file of the run that was stopped.
    subprocess.run(["umount", "-l", str(one.folder)], check=True)


def assert_one_sentence(done: subprocess.CompletedProcess, code: int, word: str) -> None:
  assert done.returncode == code, done.stderr
  assert done.stderr.count("\n") == 1, done.stderr
  assert word in done.stderr


def assert_whole(folder: pathlib.Path, uncut: pathlib.Path) -> None:
  """Every checkpoint that is there was written to its end; the rest of the run equals the uncut."""
  done = command("train", f"--workdir={folder}", *SMALL)
  assert done.returncode == 0, done.stderr
  assert (folder / "metrics.jsonl").read_bytes() == (uncut / "metrics.jsonl").read_bytes()
  digests = [
    (checkpoint.path(f / "checkpoints", 84) / "manifest.json").read_text().split('"files"')[0]
    for f in (folder, uncut)
  ]
  assert digests[0] == digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("size", ["24k", "80k"])
def test_a_full_disk_ends_the_loop_and_more_space_ends_it_well(disk, capfd, size):
  """Wherever the disk fills up, in rows or in checkpoints: one error, and nothing is lost."""
  small = disk(size)
  with pytest.raises(OSError, match="No space left"):
    toy.run(small.folder / "run")
  saved = checkpoint.steps(small.folder / "run" / "checkpoints")
  assert "Traceback" not in capfd.readouterr().err
  small.remount("size=16m")
  seen = []
  state = toy.run(small.folder / "run", on_row=seen.append)
  assert seen[0]["step"] > max(saved, default=0)
  assert bits(state) == bits(toy.run(None))
  rows = read_rows(small.folder / "run" / "metrics.jsonl")
  assert [row["step"] for row in rows] == sorted({row["step"] for row in rows})
  assert rows[-1]["step"] == 60


@pytest.mark.slow
def test_a_full_disk_stops_a_run_in_one_sentence(uncut, disk):
  """With more space the same command goes on, and ends as if the disk had never been full."""
  small = disk("150k")
  folder = small.folder / "run"
  done = command("train", f"--workdir={folder}", *SMALL)
  assert_one_sentence(done, 1, "No space left on device")
  small.remount("size=64m")
  assert_whole(folder, uncut)


@pytest.mark.slow
def test_files_that_may_not_grow_stop_a_run_in_one_sentence(uncut, tmp_path):
  """The same without the right to mount: a limit on the size of every file."""
  limit = 8_000
  folder = tmp_path / "run"
  done = subprocess.run(
    [sys.executable, "-m", "experiments.train", f"--workdir={folder}", *SMALL],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "0"},
    capture_output=True,
    text=True,
    preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
  )
  assert_one_sentence(done, 1, "File too large")
  assert_whole(folder, uncut)


@pytest.mark.slow
def test_a_read_only_disk_is_refused_and_can_still_be_evaluated(uncut, disk):
  own = disk("64m")
  shutil.copytree(uncut, own.folder / "run")
  own.remount("ro")
  before = files(own.folder)
  done = command("train", f"--workdir={own.folder / 'new'}", *SMALL)
  assert_one_sentence(done, 2, "not a writable folder")
  assert_one_sentence(command("train", f"--workdir={own.folder / 'run'}", *SMALL), 2, "writable")
  done = command("evaluate", f"--workdir={own.folder / 'run'}")
  assert done.returncode == 0, done.stderr
  assert files(own.folder) == before


@pytest.mark.slow
def test_folders_and_files_without_rights_are_one_sentence(uncut, tmp_path):
  """The checks run as nobody, after the imports: root may read and write everything."""
  for path in (tmp_path, *tmp_path.parents):
    if "pytest" in str(path):  # pytest's own folders are closed to others
      path.chmod(0o755)
  shutil.copytree(uncut, tmp_path / "run")
  np.savez(tmp_path / "data.npz", **arrays())
  (tmp_path / "closed").mkdir()
  for path in (tmp_path / "run" / "config.json", tmp_path / "data.npz", tmp_path / "closed"):
    path.chmod(0)
  cases = {
    "workdir.claim(path / 'closed', own)": "",
    "workdir.claim(path / 'closed' / 'run', own)": "",
    "workdir.claim(path / 'run', own)": "",
    "workdir.read_config(path / 'run')": "config.json",
    "build(from_mapping({'data': {'name': str(path / 'data.npz')}}))": "data.npz",
  }
  lines = "\n".join(
    f"try:\n  with cli.checking(): {case}\n  print('passed')\nexcept cli.UsageError as e: print(e)"
    for case in cases
  )
  program = (
    "import os, pathlib, sys\nfrom experiments import cli, workdir\n"
    "from experiments.assembly import build\n"
    "from experiments.config import ExperimentConfig, from_mapping\n"
    f"path, own = pathlib.Path({str(tmp_path)!r}), ExperimentConfig()\n"
    f"if os.geteuid() == 0: os.setgid(65534); os.setuid(65534)\n{lines}\n"
  )
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  sentences = done.stdout.splitlines()
  assert len(sentences) == len(cases) and "passed" not in sentences, sentences
  for word, sentence in zip(cases.values(), sentences, strict=True):
    assert word in sentence


@pytest.mark.slow
def test_a_second_run_in_the_folder_is_refused_and_the_first_ends_as_ever(uncut, tmp_path):
  folder = tmp_path / "run"
  first = subprocess.Popen(
    [sys.executable, "-m", "experiments.train", f"--workdir={folder}", *SMALL],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 200
  while not (folder / "versions.json").exists():
    assert first.poll() is None and time.monotonic() < deadline
    time.sleep(0.01)
  first.send_signal(19)  # SIGSTOP: it holds the folder for as long as the second one looks
  try:
    done = command("train", f"--workdir={folder}", *SMALL)
  finally:
    first.send_signal(18)  # SIGCONT
  assert_one_sentence(done, 2, "in use by another process")
  assert first.wait() == 0
  assert_whole(folder, uncut)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["truncated", "flipped", "emptied"])
def test_damaged_checkpoints_are_one_sentence_for_every_command(uncut, tmp_path, how):
  folder = tmp_path / "run"
  shutil.copytree(uncut, folder)
  newest = checkpoint.path(folder / "checkpoints", 84)
  largest = max((p for p in newest.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  content = bytearray(largest.read_bytes())
  content[len(content) // 2] ^= 1
  kept = {"truncated": content[: len(content) // 2], "flipped": content, "emptied": b""}[how]
  largest.write_bytes(kept)
  before = files(folder)
  for module, *args in (("train", *SMALL), ("evaluate",)):
    assert_one_sentence(command(module, f"--workdir={folder}", *args), 2, "is damaged")
  after = files(folder)
  after.pop(str(folder / ".lock"), None), before.pop(str(folder / ".lock"), None)
  assert after == before
