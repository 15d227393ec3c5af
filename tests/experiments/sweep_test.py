"""The command as a person uses it: bad input, a sweep that is killed and goes on, its slices."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  "--config.networks.mlp.sizes=(24,16)",
  "--config.epochs=2",
  "--config.eval_every=1",
  "--config.readouts=('score_sum',)",
  "--config.optimizer.name=adam",
]
AXES = [
  "--axis=seed=0,1",
  "--axis=optimizer.learning_rate=0.003,0.01",
  "--axis=data.batch_size=60,100,140,180",
]

STARTED: list[subprocess.Popen] = []


@pytest.fixture(autouse=True)
def nobody_is_left():
  """A test that fails leaves no processes behind."""
  yield
  for run in STARTED:
    with contextlib.suppress(ProcessLookupError):
      os.killpg(run.pid, signal.SIGKILL)
  STARTED.clear()


def start(*args: str) -> subprocess.Popen:
  run = subprocess.Popen(
    [sys.executable, "-m", "experiments.sweep", *args],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "160"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    text=True,
    start_new_session=True,
  )
  STARTED.append(run)
  return run


def finish(run: subprocess.Popen) -> tuple[int, str, str]:
  out, err = run.communicate(timeout=1200)
  return run.returncode, out, err


def points(folder: pathlib.Path) -> dict[str, tuple[bytes, int]]:
  return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in (folder / "points").glob("*")
          if not p.name.startswith(".")}  # fmt: skip


def wait_for(run: subprocess.Popen, folder: pathlib.Path, count: int) -> None:
  deadline = time.monotonic() + 900
  while len(points(folder)) < count:
    assert run.poll() is None, finish(run)
    assert time.monotonic() < deadline
    time.sleep(0.02)


def workers(run: subprocess.Popen) -> list[int]:
  listed = subprocess.run(
    ["ps", "-ww", "-o", "pid=", "-o", "args=", "--ppid", str(run.pid)],
    capture_output=True,
    text=True,
    check=True,
  )
  lines = [line.split(maxsplit=1) for line in listed.stdout.splitlines()]
  return [int(pid) for pid, command in lines if "spawn_main" in command]


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path):
  code, _, err = finish(start(f"--workdir={tmp_path / 'w'}", "--axis=optimizer.rate=1"))
  assert code == 2, err
  assert err == "sweep: axis 'optimizer.rate': the configuration has no such field (rate)\n"
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_killed_workers_and_a_killed_sweep_lose_and_repeat_nothing(tmp_path):
  command = [f"--workdir={tmp_path}", "--jobs=2", *SMALL, *AXES]
  run = start(*command)
  wait_for(run, tmp_path, 1)
  os.kill(workers(run)[0], signal.SIGKILL)  # the sweep goes on without it
  wait_for(run, tmp_path, len(points(tmp_path)) + 1)
  os.killpg(run.pid, signal.SIGKILL)
  run.communicate()
  before = points(tmp_path)
  assert 1 < len(before)
  code, out, err = finish(start(*command))
  assert code == 0, err
  assert f"sweep     16 points, {len(before)} of them finished" in out
  after = points(tmp_path)
  assert len(after) == 16
  assert {name: after[name] for name in before} == before
  study = json.loads((tmp_path / "results.json").read_text())
  assert sorted((r["settings"]["data.batch_size"], len(r["values"])) for r in study["rows"]) == [
    (size, 2) for size in (60, 100, 140, 180) for _ in range(2)
  ]


@pytest.mark.slow
def test_slices_are_collected_and_a_point_that_fails_is_told(tmp_path):
  command = [f"--workdir={tmp_path}", *SMALL, "--axis=seed=0,1"]
  command += ["--axis=optimizer.learning_rate=0.003,1e30"]
  for i in range(2):
    code, out, err = finish(start(*command, f"--slice={i}/2"))
    assert len(points(tmp_path)) == 2 * (i + 1), (out, err)
  before = points(tmp_path)
  code, out, err = finish(start(*command))
  assert code == 1, err
  assert out.count("is not finite in step") == 2
  assert "seed=1, optimizer.learning_rate=1e+30: the loss of dense_1" in out
  assert points(tmp_path) == before
  rows = json.loads((tmp_path / "results.json").read_text())["rows"]
  assert [(len(r["values"]), r["diverged"]) for r in rows] == [(2, []), (0, [0, 1])]
  assert (tmp_path / "sweep.md").read_text().count("| strict |") == 2


@pytest.mark.slow
def test_points_are_spread_over_devices(tmp_path, monkeypatch):
  monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
  axes = ["--axis=seed=0,1,2", "--axis=optimizer.learning_rate=0.003"]
  code, _, err = finish(start(f"--workdir={tmp_path / 'two'}", *SMALL, *axes))
  assert code == 0, err
  monkeypatch.delenv("XLA_FLAGS")
  code, _, err = finish(start(f"--workdir={tmp_path / 'one'}", *SMALL, *axes))
  assert code == 0, err
  found = [json.loads((tmp_path / n / "results.json").read_text())["rows"] for n in ("one", "two")]
  assert found[0][0]["values"] == pytest.approx(found[1][0]["values"], abs=100 * 1.1 / 360)
