"""Runs that are cut, killed, diverge or find bad files: they end as if uncut, or change nothing."""

import functools
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.training import checkpoint, loop
from fflax.training.checkpoint import CheckpointError
from fflax.training.chunk import make_chunk
from fflax.training.loop import Diverged, Interrupted, Plan
from fflax.training.metrics import read_rows
from fflax.training.schedules import greedy
from tests.training import toy
from tests.training.checkpoint_test import bits, snapshot


@pytest.fixture(scope="module", autouse=True)
def compile_once():
  """Compiles each toy once, not once a run; the processes that are killed compile their own."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(loop, "make_chunk", functools.cache(make_chunk))
    yield


class Uncut:
  """The run that every cut one must equal."""

  def __init__(self, directory: pathlib.Path):
    self.directory = directory
    self.rows: list[dict] = []
    self.state = toy.run(directory, on_row=self.rows.append)
    self.metrics = (directory / "metrics.jsonl").read_bytes()

  def assert_equal(self, directory: pathlib.Path) -> None:
    restored = checkpoint.restore(directory / "checkpoints", self.state)
    assert bits(restored) == bits(self.state)
    assert (directory / "metrics.jsonl").read_bytes() == self.metrics


@pytest.fixture(scope="module")
def uncut(tmp_path_factory) -> Uncut:
  return Uncut(tmp_path_factory.mktemp("uncut"))


def test_run(uncut):
  """What a run leaves: rows where the plan says, means over the right steps, two checkpoints."""
  plan, rows = toy.PLAN, uncut.rows
  due = [s for s in range(1, 61) if s % 7 == 0 or s % 10 == 0 or s % 12 == 0]
  assert [r["step"] for r in rows] == due
  assert read_rows(uncut.directory / "metrics.jsonl") == rows
  assert rows[0]["epoch"] == 7 / plan.steps_per_epoch
  evaluated = [r["step"] for r in rows if "test/accuracy/sum" in r]
  assert evaluated == [10, 20, 30, 40, 50, 60]
  assert rows[-1]["test/accuracy/sum"] > 0.7 > rows[0]["train/low/loss"] - 0.5
  assert checkpoint.steps(uncut.directory / "checkpoints") == (48, 60)
  timing = read_rows(uncut.directory / "timing.jsonl")
  assert [r["step"] for r in timing] == due and all(r["seconds"] > 0 for r in timing)
  assert int(uncut.state.step) == 60


EVERY_STEP = Plan(num_steps=60, steps_per_epoch=1, log_every=1, eval_every=60)


def compare_plans() -> None:
  assert bits(toy.run(None, plan=EVERY_STEP, evaluate=None)) == bits(toy.run(None))


def test_another_plan_gives_the_same_bits(repo_root):
  """Neither rows nor evaluations nor checkpoints may move the parameters by one bit.

  In a process whose programs are made as a user's are: the tests' quicker ones round differently.
  """
  code = "from tests.training import loop_test; loop_test.compare_plans()"
  environment = {**os.environ, "XLA_FLAGS": ""}
  subprocess.run([sys.executable, "-c", code], cwd=repo_root, env=environment, check=True)


def test_another_plan_gives_the_same_means(uncut):
  every_step = []
  toy.run(None, plan=EVERY_STEP, evaluate=None, on_row=every_step.append)
  losses = [r["train/high/loss"] for r in every_step]
  by_step = {r["step"]: r["train/high/loss"] for r in uncut.rows}
  assert by_step[7] == pytest.approx(np.mean(losses[:7]), rel=1e-6)
  assert by_step[10] == pytest.approx(np.mean(losses[7:10]), rel=1e-6)


def test_finished_run_is_left_alone(uncut):
  before = snapshot(uncut.directory)
  state = toy.run(uncut.directory)
  assert bits(state) == bits(uncut.state)
  assert snapshot(uncut.directory) == before


def test_given_state_stays_usable():
  trainer = toy.make_trainer()
  state = toy.make_state(trainer)
  before = bits(state)
  plan = Plan(num_steps=7, steps_per_epoch=1, log_every=7)
  images, labels = toy.make_data()
  after = loop.train(trainer, toy.make_feed(), state, images, labels, plan)
  assert bits(state) == before and int(after.step) == 7


# --- cut runs -------------------------------------------------------------------------------------


class _Kill(BaseException):
  pass


KILLED_AT = {
  "before the first checkpoint": ("write", 2),
  "while a row is written": ("half a row", 8),
  "rows written, checkpoint not": ("save", 2),
  "arrays written, manifest not": ("_describe", 2),
  "manifest written, not renamed": ("_sync", 3),
  "renamed, old one not removed": ("rmtree", 1),
  "last checkpoint": ("save", 5),
}


@pytest.mark.parametrize("where", KILLED_AT)
def test_cut_in_every_window_of_a_save(uncut, tmp_path, monkeypatch, where):
  """Each moment between two writes, one by one, where the kill below only meets some by chance."""
  name, when = KILLED_AT[where]
  places = {
    "write": (loop.MetricsWriter, "write"),
    "half a row": (loop.MetricsWriter, "write"),
    "save": (checkpoint, "save"),
    "_describe": (checkpoint, "_describe"),
    "_sync": (checkpoint, "_sync"),
    "rmtree": (shutil, "rmtree"),
  }
  owner, attribute = places[name]
  original, calls = getattr(owner, attribute), []

  def cut(*args, **kwargs):
    calls.append(args)
    if len(calls) == when:
      if name == "half a row":
        args[0]._rows.write('{"step": 24, "ep')
      raise _Kill
    return original(*args, **kwargs)

  with monkeypatch.context() as patch:
    patch.setattr(owner, attribute, cut)
    with pytest.raises(_Kill):
      toy.run(tmp_path)
  toy.run(tmp_path)
  uncut.assert_equal(tmp_path)


def start(directory: pathlib.Path, repo_root: pathlib.Path, pause: float) -> subprocess.Popen:
  command = [sys.executable, "-m", "tests.training.toy", str(directory), "--pause", str(pause)]
  environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(
    command, cwd=repo_root, env=environment, stdout=subprocess.PIPE, text=True
  )


@pytest.mark.parametrize("kills", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_kill_9_and_start_again(uncut, tmp_path, repo_root, kills):
  """The promise itself, with processes: SIGKILL at random moments, then to the end."""
  rng = random.Random(time.time_ns())  # another moment in every run of the tests
  killed_at = []
  for kill in range(kills):
    row = rng.choice((20, 24, 28)) + 12 * kill  # a checkpoint is there, others are being written
    process = start(tmp_path, repo_root, pause=0.02)
    for line in process.stdout:
      if int(line) >= row:
        break
    time.sleep(rng.uniform(0, 0.15))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    rest = process.stdout.read().split()
    killed_at.append((row, rest[-1:], checkpoint.latest_step(tmp_path / "checkpoints")))
  process = start(tmp_path, repo_root, pause=0)
  assert process.wait() == 0, killed_at
  first_row = int(process.stdout.readline())
  assert first_row > 12, f"began afresh instead of resuming: {killed_at}"
  uncut.assert_equal(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_leaves_with_a_message(uncut, tmp_path, number):
  handler = signal.getsignal(number)

  def on_row(row):
    if row["step"] == 14:
      os.kill(os.getpid(), number)

  with pytest.raises(Interrupted) as error:
    toy.run(tmp_path, on_row=on_row)
  # Row 14 is written while the chunk that ends at step 20 runs: that one is finished.
  saved = tmp_path / "checkpoints" / "00000020"
  assert str(error.value) == (
    f"stopped by {number.name} after 20 steps, saved in {saved}; the same run goes on from there"
  )
  assert error.value.checkpoint == saved and saved.is_dir() and error.value.step == 20
  assert signal.getsignal(number) is handler, "the caller's handler is back"
  toy.run(tmp_path)
  uncut.assert_equal(tmp_path)


def test_second_ctrl_c_ends_at_once(tmp_path):
  """Someone who cannot wait for the chunk must not need kill -9."""

  def on_row(_):
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)

  with pytest.raises(KeyboardInterrupt):
    toy.run(tmp_path, on_row=on_row)


def test_signal_without_directory():
  def on_row(_):  # again and again, as cluster schedulers send it
    os.kill(os.getpid(), signal.SIGTERM)

  with pytest.raises(Interrupted, match="after 10 steps, nothing is saved") as error:
    toy.run(None, on_row=on_row)
  assert error.value.checkpoint is None


def test_runs_in_other_threads(uncut):
  """Only the main thread may set signal handlers (notebook servers run code in others)."""
  found = []
  thread = threading.Thread(target=lambda: found.append(toy.run(None)))
  thread.start()
  thread.join()
  assert bits(found[0]) == bits(uncut.state)


# --- runs that diverge ----------------------------------------------------------------------------


def test_nan_loss_names_step_layer_and_checkpoint(tmp_path):
  with pytest.raises(Diverged) as error:
    toy.run(tmp_path, {"nan_loss_at": 37})
  good = tmp_path / "checkpoints" / "00000036"
  assert str(error.value) == (
    "the loss of high is not finite in step 37 (counted from 0); "
    f"the last good checkpoint is {good}"
  )
  assert (error.value.step, error.value.layer, error.value.checkpoint) == (37, "high", good)
  assert checkpoint.steps(tmp_path / "checkpoints") == (24, 36), "nothing later was saved"
  assert read_rows(tmp_path / "metrics.jsonl")[-1]["step"] == 36, "no row with NaN"


def test_nan_loss_before_any_checkpoint(tmp_path):
  with pytest.raises(Diverged, match=r"in step 2 .* there is no checkpoint yet") as error:
    toy.run(tmp_path, {"nan_loss_at": 2})
  assert error.value.checkpoint is None
  assert not list(tmp_path.glob("checkpoints/*"))


def test_nan_loss_in_the_last_step_is_not_saved(tmp_path):
  with pytest.raises(Diverged, match="in step 59 "):
    toy.run(tmp_path, {"nan_loss_at": 59})
  assert checkpoint.latest_step(tmp_path / "checkpoints") == 48


def test_infinite_parameters_are_never_saved(tmp_path):
  """The loss of the step was still finite: a check of losses alone would save the wreck."""
  with pytest.raises(Diverged, match="a parameter of high is not finite in step 35 ") as error:
    toy.run(tmp_path, {"inf_params_at": 35})
  assert error.value.checkpoint == tmp_path / "checkpoints" / "00000024"
  assert checkpoint.steps(tmp_path / "checkpoints") == (12, 24)


@pytest.mark.parametrize(
  ("failed", "expected"),
  [
    ({"loss": [[0, 0], [0, 0]], "readout_loss/a": [0, 0]}, None),
    ({"loss": [[0, 0], [0, 1]], "readout_loss/a": [0, 1]}, (1, "high")),
    ({"loss": [[0, 0], [1, 1]], "readout_loss/a": [1, 0]}, (0, "readout a")),
  ],
)
def test_first_failure(failed, expected):
  flags = {name: np.array(rows, bool) for name, rows in failed.items()}
  assert loop.first_failure(flags, toy.LAYER_NAMES) == expected


def test_silent_layers_neither_stop_a_run_nor_spoil_means(tmp_path):
  schedule = greedy(steps_per_layer=10)
  rows = []
  plan = Plan(num_steps=20, steps_per_epoch=1, log_every=8)
  toy.run(tmp_path, schedule=schedule, plan=plan, on_row=rows.append)
  assert [r["train/low/loss"] is None for r in rows] == [False, False, True]
  assert [r["train/high/loss"] is None for r in rows] == [True, False, False]


# --- bad files and arguments ----------------------------------------------------------------------


def flip_last_bit(directory: pathlib.Path) -> None:
  files = [p for p in (directory / "checkpoints" / "00000060").rglob("*") if p.is_file()]
  file = max(files, key=lambda p: p.stat().st_size if p.name != "manifest.json" else 0)
  content = bytearray(file.read_bytes())
  content[-1] ^= 1
  file.write_bytes(content)


BAD_RUNS = {
  "damaged": (flip_last_bit, {}, CheckpointError, "00000060 is damaged.* step 48 is there too"),
  "foreign": (
    lambda _: None,
    {"fingerprint": "other"},
    CheckpointError,
    "00000060 belongs to a run with another configuration",
  ),
  "metrics lost": (
    lambda directory: (
      (directory / "metrics.jsonl").unlink(),
      shutil.rmtree(directory / "checkpoints" / "00000060"),
    ),
    {},
    ValueError,
    "metrics.jsonl ends at step 0, but the checkpoint to go on from is at 48",
  ),
  "shorter plan": (
    lambda _: None,
    {"plan": Plan(num_steps=30, steps_per_epoch=1)},
    ValueError,
    "taken 60 steps already, more than the plan's 30",
  ),
}


@pytest.mark.parametrize("case", BAD_RUNS)
def test_refuses_and_leaves_all_files(uncut, tmp_path, case):
  """A resume that starts by cutting the metrics would destroy what the user wants to rescue."""
  spoil, options, error, message = BAD_RUNS[case]
  directory = tmp_path / "run"
  shutil.copytree(uncut.directory, directory)
  spoil(directory)
  before = snapshot(directory)
  with pytest.raises(error, match=message):
    toy.run(directory, **options)
  assert snapshot(directory) == before


@pytest.mark.parametrize("field", ["num_steps", "log_every", "eval_every", "keep"])
def test_plan_refuses(field):
  with pytest.raises(ValueError, match=f"plan: {field} must be positive, not 0"):
    Plan(**{"num_steps": 1, "steps_per_epoch": 1, field: 0})


def test_refuses_a_batch_of_states():
  trainer = toy.make_trainer()
  states = jax.tree.map(lambda x: jnp.stack([x, x]), toy.make_state(trainer))
  with pytest.raises(ValueError, match="over_seeds=True"):
    loop.train(trainer, toy.make_feed(), states, *toy.make_data(), toy.PLAN)


_periods = st.one_of(st.none(), st.integers(1, 50))


@hypothesis.given(st.integers(1, 200), st.integers(1, 50), _periods, _periods)
def test_stops(num_steps, log_every, eval_every, checkpoint_every):
  """Stops are the multiples of all periods, and no chunk exceeds the compiled capacity."""
  plan = Plan(num_steps, 1, log_every, eval_every, checkpoint_every)
  stops = [0]
  while stops[-1] < num_steps:
    stops.append(plan.next_stop(stops[-1]))
  periods = [p for p in (log_every, eval_every, checkpoint_every) if p]
  due = {s for s in range(1, num_steps) if any(s % p == 0 for p in periods)} | {num_steps}
  assert set(stops[1:]) == due
  assert max(np.diff(stops)) <= min(log_every, num_steps)
