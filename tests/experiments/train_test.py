"""The commands as a person uses them: train, resume, evaluate, and bad input."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from fflax.training import checkpoint

ROOT = pathlib.Path(__file__).parents[2]
SMALL = [
  "--config.networks.mlp.sizes=(64,64)",
  "--config.optimizer.name=adam",
  "--config.optimizer.learning_rate=0.003",
  "--config.epochs=6",
  "--config.eval_every=2",
  "--config.checkpoint_every=2",
]


def command(module: str, *args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", f"experiments.{module}", *args],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "160"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def files(folder: pathlib.Path) -> dict[str, bytes]:
  return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[pathlib.Path, str]:
  folder = tmp_path_factory.mktemp("run") / "uncut"
  done = command("train", f"--workdir={folder}", *SMALL)
  assert done.returncode == 0, done.stderr
  return folder, done.stdout


def test_a_run_says_what_it_is_and_leaves_what_it_promises(finished):
  folder, text = finished
  for word in ("fflax ", "forward_forward x mlp x float32", "locality  strict (declared)"):
    assert word in text
  assert "no loss moves another layer's parameters (2 x 2 layers)" in text
  assert "layer dense_1" in text
  assert "readout score_sum" in text
  for name in ("config.json", "versions.json", "metrics.jsonl", "summary.json", "tensorboard"):
    assert (folder / name).exists(), name
  for line in text.splitlines():
    if line.startswith("figure"):
      assert pathlib.Path(line.split()[1]).read_bytes().startswith(b"\x89PNG")
  assert sum(line.startswith("figure") for line in text.splitlines()) == 3
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["locality_matrix"] == [[1, 0], [0, 1]]
  assert summary["accuracy"]["test"]["accuracy/softmax_head"] > 0.5


def test_the_same_command_re_evaluates_and_evaluate_agrees(finished):
  folder, text = finished
  rows = [line for line in text.splitlines() if "readout" in line or "layer dense" in line]
  before = files(folder / "checkpoints") | {"m": (folder / "metrics.jsonl").read_bytes()}
  again = command("train", f"--workdir={folder}", *SMALL)
  assert again.returncode == 0, again.stderr
  assert "is finished" in again.stdout
  looked = command("evaluate", f"--workdir={folder}")
  assert looked.returncode == 0, looked.stderr
  for row in rows:
    assert row in again.stdout
    assert row in looked.stdout
  after = files(folder / "checkpoints") | {"m": (folder / "metrics.jsonl").read_bytes()}
  assert after == before


def test_killed_and_started_again_equals_the_uncut_run(finished, tmp_path):
  folder, _ = finished
  cut = tmp_path / "cut"
  run = subprocess.Popen(
    [sys.executable, "-m", "experiments.train", f"--workdir={cut}", *SMALL],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
  )
  deadline = time.monotonic() + 200
  while checkpoint.latest_step(cut / "checkpoints") is None and run.poll() is None:
    assert time.monotonic() < deadline
    time.sleep(0.01)
  run.send_signal(signal.SIGKILL)
  run.wait()
  done = command("train", f"--workdir={cut}", *SMALL)
  assert done.returncode == 0, done.stderr
  assert (cut / "metrics.jsonl").read_bytes() == (folder / "metrics.jsonl").read_bytes()
  accuracy = [json.loads((f / "summary.json").read_text())["accuracy"] for f in (cut, folder)]
  assert accuracy[0] == accuracy[1]
  manifests = [
    json.loads(next((f / "checkpoints").glob("*84/manifest.json")).read_text())
    for f in (cut, folder)
  ]
  assert manifests[0]["body"]["leaves"] == manifests[1]["body"]["leaves"]


def test_another_configuration_in_the_workdir_is_refused(finished):
  folder, _ = finished
  before = files(folder)
  done = command("train", f"--workdir={folder}", *SMALL, "--config.seed=5")
  assert done.returncode == 2
  assert done.stderr.count("\n") == 1
  assert "it differs in seed" in done.stderr
  assert files(folder) == before


def write_npz(path: pathlib.Path, **changes: np.ndarray) -> str:
  rng = np.random.default_rng(0)
  arrays = {
    "x_train": rng.integers(0, 255, (60, 6, 6, 1)).astype(np.uint8),
    "y_train": np.arange(60).astype(np.uint8) % 3,
    "x_test": rng.integers(0, 255, (20, 6, 6, 1)).astype(np.uint8),
    "y_test": np.arange(20).astype(np.uint8) % 3,
  }
  np.savez(path, **{**arrays, **changes})
  return f"--config.data.name={path}"


BAD = {
  "unknown flag": (["--speed=3"], "speed"),
  "unknown field": (["--config.epoch=3"], "epoch"),
  "wrong type": (["--config.epochs=many"], "epochs"),
  "unknown method": (["--config.method=magic"], "unknown method 'magic'"),
  "impossible schedule": (["--config.method=backprop", "--config.schedule=greedy"], "global"),
  "flat views for a conv net": (["--config.network=small_cnn"], "layer 'conv_1'"),
  "flipped features": (
    ["--config.data.name=synthetic", "--config.data.augment.flip=true"],
    "augmentation needs images",
  ),
  "shift too far": (["--config.data.augment.shift=8"], "shift 8 must be below"),
  "saturated grey": (["--config.data.augment.saturation=0.5"], "saturation needs 3 channels"),
  "option of another source": (["--config.data.image_size=16"], "no option 'image_size'"),
  "no such config": (["--config=/nowhere/c.py"], "nowhere"),
  "no such data": (["--config.data.name=nowhere"], "there is no data set 'nowhere'"),
  "stray argument": (["fast"], "fast"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_2(case, tmp_path):
  args, word = BAD[case]
  done = command("train", f"--workdir={tmp_path / 'w'}", *args)
  assert done.returncode == 2, done.stderr
  assert done.stderr.count("\n") == 1, done.stderr
  assert word in done.stderr
  assert not (tmp_path / "w").exists()


def test_bad_data_files_are_one_sentence(tmp_path):
  cases = {
    "labels.npz": {"y_train": np.full(60, 200, np.int64) - 300},
    "empty.npz": {"x_test": np.zeros((0, 6, 6, 1), np.uint8), "y_test": np.zeros(0, np.uint8)},
    "objects.npz": {"x_train": np.array([{}] * 60, dtype=object)},
  }
  for name, changes in cases.items():
    flag = write_npz(tmp_path / name, **changes)
    done = command("train", f"--workdir={tmp_path / 'w'}", flag)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert name in done.stderr
    assert not (tmp_path / "w").exists()


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
  (tmp_path / "thesis.txt").write_text("years of work")
  done = command("train", f"--workdir={tmp_path}")
  assert done.returncode == 2
  assert "holds no run of fflax" in done.stderr
  assert files(tmp_path) == {str(tmp_path / "thesis.txt"): b"years of work"}


def test_evaluate_refuses_a_damaged_checkpoint_and_a_folder_without_a_run(finished, tmp_path):
  done = command("evaluate", f"--workdir={tmp_path}")
  assert done.returncode == 2
  assert "holds no run of fflax" in done.stderr
  done = command("evaluate", f"--workdir={finished[0]}", "--step=3")
  assert done.returncode == 2
  assert "no checkpoint of step 3" in done.stderr


def test_a_divergent_run_names_step_and_layer(tmp_path):
  done = command(
    "train", f"--workdir={tmp_path / 'w'}", *SMALL, "--config.optimizer.learning_rate=1e30"
  )
  assert done.returncode == 1
  assert "is not finite in step" in done.stderr
  assert "dense_" in done.stderr
  assert "Traceback" not in done.stderr
