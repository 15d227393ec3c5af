"""The benchmark of sweeps, at a size that takes no time: it runs to its last line."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[2]
SMALL = """
import pathlib, sys
from absl import app
from experiments import cli, results
from experiments.benchmarks import sweep_speed
results.FOLDER = pathlib.Path(sys.argv.pop(1))
sweep_speed._SEEDS, sweep_speed._RATES = (0,), (1e-3, 2e-3)
cli.run(sweep_speed.main)
"""


@pytest.mark.slow
def test_the_benchmark_writes_all_its_ratios(tmp_path):
  flags = ("--rounds=2", "--epochs=1", "--sizes=8,8")
  done = subprocess.run(
    [sys.executable, "-c", SMALL, str(tmp_path), *flags],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    timeout=600,
    check=False,
  )
  assert done.returncode == 0, done.stdout + done.stderr
  rows = json.loads((tmp_path / "sweep_speed.json").read_text())["rows"]
  assert [r["rival"] for r in rows] == [
    "one after another", "one after another, compiled", "train commands"
  ]  # fmt: skip
  assert [len(r["values"]) for r in rows] == [2, 2, 1]
  assert all(r["rival"] in r["seconds"] and len(r["seconds"]) == 2 for r in rows)
  assert "times as fast as train commands" in done.stdout
