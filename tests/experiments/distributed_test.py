"""Processes that train one run together: refusals, and two of them beside one with two devices."""

import os
import pathlib
import shlex
import socket
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from experiments import config as config_lib
from experiments.assembly import check
from experiments.config import ExperimentConfig
from experiments.distributed import DistributedConfig, arguments
from experiments.running import reopened
from experiments.workdir import default_name, open_run, read_config
from fflax.training.sharding import equal_share
from tests.experiments.mesh_runs import bits
from tests.experiments.mesh_test import ROOT, with_devices

ADDRESS = "10.0.0.1:1234"


def test_arguments_of_jax():
  assert arguments(DistributedConfig()) == {}
  waits = {"heartbeat_timeout_seconds": 7, "initialization_timeout": 14}
  assert arguments(DistributedConfig("auto", timeout=7)) == waits
  assert arguments(DistributedConfig(ADDRESS, 4, 3, 7)) == {
    "coordinator_address": ADDRESS,
    "num_processes": 4,
    "process_id": 3,
    **waits,
  }


@pytest.mark.parametrize(
  ("values", "sentence"),
  [
    (("10.0.0.1", 2, 0), "must be HOST:PORT or 'auto', not '10.0.0.1'"),
    (("10.0.0.1:70000", 2, 0), "not '10.0.0.1:70000'"),
    ((":1234", 2, 0), "not ':1234'"),
    ((ADDRESS, 0, 0), "distributed.num_processes must be at least 1, not 0"),
    ((ADDRESS, 2, 2), r"distributed.process_id must be in [0, 2) for 2 processes, not 2"),
    ((ADDRESS, 2), "not -1"),
    (("auto", 2), "distributed.coordinator finds them by itself"),
    (("", 2, 0), "distributed.coordinator is empty: leave them out or name it"),
    (("auto", 0, -1, 0), "distributed.timeout must be at least 1 second, not 0"),
  ],
)
def test_what_cannot_be_is_refused_with_the_configuration(values, sentence):
  with pytest.raises(ValueError, match="^[^\n]*$") as error:
    ExperimentConfig(distributed=DistributedConfig(*values))
  assert sentence in str(error.value)


def test_only_who_has_joined_may_run_together():
  with pytest.raises(ValueError, match=r"only experiments\.train runs in several processes"):
    check(ExperimentConfig(distributed=DistributedConfig("auto")))


def devices(*processes: int) -> list:
  return [SimpleNamespace(process_index=p, id=i) for i, p in enumerate(processes)]


def test_every_process_has_an_equal_share_of_the_mesh():
  ids = lambda found: [d.id for d in found]  # noqa: E731
  assert ids(equal_share(devices(0, 0, 0, 1, 1, 1), 4, "it")) == [0, 1, 3, 4]
  assert ids(equal_share(devices(0, 0, 0), 2, "it")) == [0, 1]
  for own, number, sentence in (
    (devices(0, 1), 3, "^it asks for 3 devices, which 2 processes cannot share .* multiple of 2$"),
    (devices(0, 0, 1), 4, "asks for 2 devices of each of 2 processes, but one of them has 1$"),
    (devices(0), 2, "^it asks for 2 devices, but there are 1$"),
  ):
    with pytest.raises(ValueError, match=sentence):
      equal_share(own, number, "it")


def test_processes_are_no_part_of_a_run(tmp_path):
  """Else it could not go on alone, or with a coordinator elsewhere."""
  own = ExperimentConfig(distributed=DistributedConfig(ADDRESS, 2, 1))
  assert config_lib.fingerprint(own) == config_lib.fingerprint(ExperimentConfig())
  assert config_lib.from_mapping(config_lib.as_dict(own)) == own
  assert default_name("ff", {"distributed.process_id": 1, "distributed.coordinator": "a"}) == "ff"
  open_run(tmp_path, own)
  assert read_config(tmp_path) == ExperimentConfig()


def guide_commands(repo_root: pathlib.Path) -> list[list[str]]:
  """The words of the guide's commands in several processes, lines put together."""
  text = (repo_root / "docs" / "guide.md").read_text().replace("\\\n", " ")
  lines = [line.partition("  # ")[0] for line in text.splitlines()]
  lines = [x for x in lines if x.startswith((".venv/bin/", "sbatch ", "gcloud "))]
  return [shlex.split(x) for x in lines if "config.distributed" in x or "train.slurm" in x]


def test_commands_of_the_guide_are_runs_of_several_processes(repo_root):
  by_hand, slurm, pod = guide_commands(repo_root)
  assert slurm[0] == "sbatch" and (repo_root / slurm[4]).is_file()
  assert pod[0] == "gcloud" and pod[-1].startswith("--command=cd fflax && ")
  script = ["--config.distributed.coordinator=auto"]
  for words, coordinator, devices in (
    (by_hand, "HOST:1234", 2),
    (slurm[5:] + script, "auto", 32),
    (shlex.split(pod[-1])[3:], "auto", 32),
  ):
    values: dict = {}
    for name, _, value in (w[2:].partition("=") for w in words if w.startswith("--config.")):
      _, group, field = name.split(".")
      values.setdefault(group, {})[field] = int(value) if value.isdecimal() else value
    assert values.pop("mesh") == {"data": devices}
    found = config_lib.from_mapping(values).distributed
    assert arguments(found).get("coordinator_address", "auto") == coordinator == found.coordinator


SRUN = """#!/bin/bash
# Stands in for SLURM's: two tasks on this machine, in an environment as SLURM makes it.
set -u
[ "$1" = --kill-on-bad-exit=1 ] || exit 9
shift
export SLURM_JOB_ID={job} SLURM_STEP_NODELIST=localhost SLURM_NTASKS=2 SLURM_STEP_NUM_NODES=1
SLURM_PROCID=1 SLURM_LOCALID=1 "$@" &
SLURM_PROCID=0 SLURM_LOCALID=0 "$@"
code=$?
wait $! && exit $code
"""


def slurm(folder: pathlib.Path, python: str, *args: str) -> subprocess.CompletedProcess:
  """The script, with a stand-in for SLURM."""
  srun = folder / "srun"
  srun.write_text(SRUN.replace("{job}", str(os.getpid())))
  srun.chmod(0o755)
  return subprocess.run(
    ["bash", "experiments/cluster/train.slurm", *args],
    cwd=ROOT,
    env=environment() | {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHON": python},
    capture_output=True,
    text=True,
    timeout=240,
    check=False,
  )


def test_the_slurm_script_hands_its_arguments_to_every_task(tmp_path):
  done = slurm(tmp_path, "echo", "--workdir=a b", "--config.mesh.data=2")
  said = "-m experiments.train --config.distributed.coordinator=auto --workdir=a b"
  assert done.returncode == 0 and done.stdout == 2 * f"{said} --config.mesh.data=2\n", done


# --- two processes --------------------------------------------------------------------------------

SMALL = (
  "--config.networks.mlp.sizes=(32,32,32)",
  "--config.epochs=12",
  "--config.eval_every=6",
  "--config.checkpoint_every=1",
  "--config.data.batch_size=96",
)


def environment() -> dict[str, str]:
  """As that of `with_devices`, with one device."""
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0".strip()
  return {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "160", "XLA_FLAGS": flags}


def start(folder: pathlib.Path, *args: str, each: tuple = ((), ())) -> list[subprocess.Popen]:
  """Two processes over the loopback, one device each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  where = {"coordinator": f"127.0.0.1:{port}", "num_processes": 2, "timeout": 30}
  shared = [f"--config.distributed.{k}={v}" for k, v in where.items()]
  started = []
  for i, own in enumerate(each):
    command = [sys.executable, "-m", "experiments.train", f"--workdir={folder}", *args, *shared]
    command += [f"--config.distributed.process_id={i}", *own]
    pipe = subprocess.PIPE
    started.append(
      subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=pipe, stderr=pipe, text=True)
    )
  return started


def ends(processes: list[subprocess.Popen]) -> list[tuple[int, str, str]]:
  """Exit code, stdout and stderr of each."""
  try:
    outputs = [p.communicate(timeout=240) for p in processes]
  finally:
    for p in processes:
      p.kill()
  return [(p.returncode, *out) for p, out in zip(processes, outputs, strict=True)]


def last_state(folder: pathlib.Path) -> list[bytes]:
  """The bits of the newest checkpoint, read by this one process."""
  experiment, state = reopened(folder)
  assert int(state.step) == experiment.plan.num_steps
  return bits(state)


@pytest.mark.slow
@pytest.mark.parametrize(("axis", "pipeline"), [("data", ""), ("layer", "mpmd"), ("layer", "spmd")])
def test_two_processes_are_one_with_two_devices(tmp_path, axis, pipeline):
  """Every bit of metrics and state; killed and resumed, too."""
  flags = (*SMALL, f"--config.mesh.{axis}=2", f"--config.mesh.pipeline={pipeline or 'mpmd'}")
  one, two, cut = (tmp_path / name for name in ("one", "two", "cut"))
  done = with_devices("experiments.train", *flags, f"--workdir={one}", devices=2)
  assert done.returncode == 0, done.stderr
  found = ends(start(two, *flags))
  assert [code for code, _, _ in found] == [0, 0], found
  assert f"mesh      {axis} 2: 2 devices of 2 processes" in found[0][1]
  assert "epoch" not in found[1][1], "the second process talks, too"
  rows = (one / "metrics.jsonl").read_bytes()
  assert (two / "metrics.jsonl").read_bytes() == rows
  assert last_state(two) == last_state(one)
  written = {p.name for p in two.glob("checkpoints/**/ocdbt.process_*")}
  assert written == {"ocdbt.process_0", "ocdbt.process_1"}, "they have not written together"

  for victim in (1, 0):
    processes = start(cut, *flags)
    before = set(cut.glob("checkpoints/0*"))
    while not set(cut.glob("checkpoints/0*")) - before:
      assert all(p.poll() is None for p in processes), ends(processes)
      time.sleep(0.01)
    processes[victim].kill()
    code, _, said = ends(processes)[1 - victim]
    assert code not in (0, None) and "cannot go on with the others" in said, (code, said)
    assert not (cut / "summary.json").exists()
  resumed = ends(start(cut, *flags))
  assert [code for code, _, _ in resumed] == [0, 0], resumed
  assert "going on after step" in resumed[0][1]
  assert (cut / "metrics.jsonl").read_bytes() == rows
  assert last_state(cut) == last_state(one)


@pytest.mark.slow
def test_what_processes_cannot_do_together_ends_all_of_them(tmp_path):
  folder = tmp_path / "w"
  for args, each, sentence in (
    ((), ((), ()), "(data 1) asks for 1 devices, which 2 processes cannot share out equally"),
    (("--config.mesh.data=2",), ((), ("--config.seed=1",)), "have different configurations"),
    (("--config.mesh.data=4",), ((), ()), "2 devices of each of 2 processes, but one of them has"),
  ):
    # The second one may find the first one gone before it can say the same.
    first, second = ends(start(folder, *args, each=each))
    assert first[0] == 2 and sentence in first[2], first
    assert second[0] not in (0, None), second
    assert not folder.exists()
  alone = start(folder, "--config.mesh.data=2", "--config.distributed.timeout=3")
  alone[0].kill()
  code, _, said = ends(alone)[1]
  assert code == 2 and "process 1 of 2 has not met all others at 127.0.0.1" in said, said


@pytest.mark.slow
def test_tasks_of_a_slurm_job_find_each_other(tmp_path):
  args = (f"--workdir={tmp_path / 'w'}", *SMALL, "--config.epochs=1", "--config.mesh.data=2")
  done = slurm(tmp_path, sys.executable, *args)
  assert done.returncode == 0, done.stderr
  assert "mesh      data 2: 2 devices of 2 processes" in done.stdout
  assert (tmp_path / "w" / "summary.json").exists()
