"""Data-parallel runs: eight devices find what one finds, and each does an eighth of the work."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments import config as config_lib
from experiments.assembly import check
from experiments.workdir import default_name

ROOT = pathlib.Path(__file__).parents[2]
FAST = ("forward_forward",)
SLOW = ("hyperspherical", "backprop", "channelwise", "int8", "three views")
# Of how far training moves it. float32 rounds to 6e-8; a gradient sums a few thousand products
# of either sign, in another order, and three steps carry the difference on: 6e-7 (int8) to 3e-5
# (`three views`) were found. One other draw, such as no augmentation, gives 0.7.
TOLERANCE = 5e-4


def with_devices(*args: str, devices: int = 8, timeout: int = 500) -> subprocess.CompletedProcess:
  """A process of its own: the number of devices is fixed when jax starts."""
  # The second flag halves the time of compiling.
  own = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
  flags = f"{os.environ.get('XLA_FLAGS', '')} {own}"
  return subprocess.run(
    [sys.executable, "-m", *args],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags.strip(), "COLUMNS": "160"},
    capture_output=True,
    text=True,
    timeout=timeout,
    check=False,
  )


@functools.cache
def measured(cases: tuple[str, ...]) -> dict:
  done = with_devices("tests.experiments.mesh_runs", *cases)
  assert done.returncode == 0, done.stderr
  return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
  ("case", "group"),
  [
    *((c, FAST) for c in FAST),
    *(pytest.param(c, SLOW, marks=pytest.mark.slow) for c in SLOW),
  ],
)
def test_eight_devices_find_what_one_finds(case, group):
  """Views, hard negatives, noise, batch norm and int8 scales are the whole batch's, or it shows."""
  found = measured(group)[case]
  assert found["start"], "the fresh states differ"
  assert found["distance"] < TOLERANCE
  # Eight parts and what is whole everywhere, such as the optimiser; all whole would be 1.
  assert found["flops"] < 0.25
  assert found["feature_rows"] == [8], "a device has features of other than 64 / 8 examples"
  assert found["devices"] == [8, 1] and found["whole"]
  assert found["accuracy"][0] == pytest.approx(found["accuracy"][1], abs=1e-6)
  assert found["locality"][0] == found["locality"][1]
  assert found["restored"] == [True, True]
  assert found["resumed"] < TOLERANCE


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"mesh": {"data": 1000}}, "(data 1000) asks for 1000 devices, but there are"),
    ({"mesh": {"data": 0}}, "mesh.data must be at least 1, not 0"),
    ({"mesh": {"layer": -2}}, "mesh.layer must be at least 1, not -2"),
    ({"mesh": {"rows": 2}}, "unknown field 'rows' of mesh"),
    ({"mesh": {"pipeline": "spmd"}}, "mesh.pipeline='spmd' is for runs with several stages"),
    ({"mesh": {"pipeline": "1f1b"}}, "mesh.pipeline must be one of ('mpmd', 'spmd'), not '1f1b'"),
  ],
)
def test_impossible_meshes_are_refused_without_data(changes, sentence):
  with pytest.raises(ValueError, match="^[^\n]*$") as error:
    check(config_lib.from_mapping({**changes, "data": {"name": "/nowhere.npz"}}))
  assert sentence in str(error.value)


def test_devices_are_no_part_of_a_runs_identity():
  """Else a run could not go on, or be looked at, where there are fewer."""
  base, wide = (config_lib.from_mapping({"mesh": {"data": n}}) for n in (1, 8))
  assert config_lib.fingerprint(base) == config_lib.fingerprint(wide)
  assert config_lib.from_mapping(config_lib.as_dict(wide)) == wide
  assert default_name("ff", {"mesh.data": 8}) == "ff"


@pytest.mark.slow
def test_a_run_begun_on_eight_devices_goes_on_with_one(tmp_path):
  args = (
    f"--workdir={tmp_path / 'w'}",
    "--config.networks.mlp.sizes=(64,64)",
    "--config.epochs=2",
    "--config.eval_every=1",
    "--config.data.batch_size=96",
  )
  indivisible = with_devices("experiments.train", *args, "--config.mesh.data=7")
  assert indivisible.returncode == 2
  assert indivisible.stderr.count("\n") == 1, indivisible.stderr
  assert "mesh.data=7 does not divide data.batch_size=96" in indivisible.stderr
  assert not (tmp_path / "w").exists()

  begun = with_devices("experiments.train", *args, "--config.mesh.data=8")
  assert begun.returncode == 0, begun.stderr
  assert "mesh      data 8: 8 devices" in begun.stdout
  again = with_devices("experiments.train", *args, devices=1)
  assert again.returncode == 0, again.stderr
  assert "is finished: evaluating it again" in again.stdout
  looked = with_devices("experiments.evaluate", f"--workdir={tmp_path / 'w'}", devices=1)
  assert looked.returncode == 0, looked.stderr
  rows = [r for r in begun.stdout.splitlines() if "layer dense" in r or "readout" in r]
  assert len(rows) >= 3
  for row in rows:
    assert row in again.stdout and row in looked.stdout


@pytest.mark.slow
def test_a_pipeline_is_the_run_on_one_device(tmp_path):
  """Rows of metrics and evaluations are equal in every byte; what cannot be one is refused."""
  common = ("--config.epochs=2", "--config.eval_every=1", "--config.checkpoint_every=1")
  args = ("--config.networks.mlp.sizes=(32,32,32)", *common)
  for flag, sentence in (
    ("--config.mesh.layer=4", "mesh.layer=4: network 'mlp' has 3 layers to share out"),
    ("--config.mesh.data=2", "a run shares either batches or layers"),
    ("--config.network=small_cnn", "network 'small_cnn' has 1: use mesh.pipeline='mpmd'"),
    ("--config.method=backprop", "those of method 'backprop' are global in this run"),
    ("--config.schedule=alternating", "under schedule 'alternating' layers take turns"),
  ):
    # Before the data, which are not there, are looked for.
    none = ("--config.data.name=mnist", f"--config.data.data_dir={tmp_path}")
    two = ("--config.mesh.layer=2", "--config.mesh.pipeline=spmd")
    done = with_devices("experiments.train", *args, *none, *two, flag)
    assert done.returncode == 2 and sentence in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1

  # By its shapes, which come with the data, one layer fewer is equal.
  unequal = ("--config.networks.mlp.sizes=(32,32)", f"--workdir={tmp_path / 'unequal'}")
  done = with_devices("experiments.train", *common, *unequal, *two)
  assert done.returncode == 2 and "network 'mlp' has 1: use" in done.stderr, done.stderr
  assert not (tmp_path / "unequal").exists()

  rows = []
  for name, *mesh in (("one",), ("mpmd", "layer=2"), ("spmd", "layer=2", "pipeline=spmd")):
    own = (*args, f"--workdir={tmp_path / name}", *(f"--config.mesh.{m}" for m in mesh))
    done = with_devices("experiments.train", *own)
    assert done.returncode == 0, done.stderr
    assert ("mesh      layer 2: 2 devices" in done.stdout) == bool(mesh)
    rows.append((tmp_path / name / "metrics.jsonl").read_bytes())
  assert rows[0] == rows[1] == rows[2]
