"""The folder of a run: whose it is, and that a cut never makes it refuse its own run."""

import dataclasses
import json
import pathlib

import pytest

from experiments import workdir
from experiments.config import ExperimentConfig
from fflax.training.sharding import MeshConfig


class Killed(Exception):
  """Stands for SIGKILL."""


@pytest.mark.parametrize("files_before", [0, 1])
def test_a_run_killed_while_its_folder_is_opened_may_go_on(files_before, tmp_path, monkeypatch):
  """A folder with versions but no config would look like someone else's."""
  folder, written, original = tmp_path / "run", [], workdir.write_json

  def dying(path: pathlib.Path, value: object) -> None:
    if len(written) == files_before:
      path.with_name(f".unfinished-{path.name}").write_text('{"half')
      raise Killed
    written.append(path)
    original(path, value)

  monkeypatch.setattr(workdir, "write_json", dying)
  with pytest.raises(Killed):
    workdir.open_run(folder, ExperimentConfig())
  monkeypatch.setattr(workdir, "write_json", original)
  workdir.claim(folder, ExperimentConfig())
  workdir.open_run(folder, ExperimentConfig())
  assert workdir.read_config(folder) == ExperimentConfig()
  assert "jax" in json.loads((folder / "versions.json").read_text())


def test_a_resumed_run_keeps_its_first_versions(tmp_path):
  workdir.open_run(tmp_path, ExperimentConfig())
  workdir.write_json(tmp_path / "versions.json", {"jax": "old"})
  workdir.open_run(tmp_path, ExperimentConfig())
  assert json.loads((tmp_path / "versions.json").read_text()) == {"jax": "old"}


def test_default_names_tell_runs_apart_and_fit_a_file_system():
  """Where data lies does not change a run; and a name of 300 characters cannot be made."""
  plain = workdir.default_name("ff", {})
  long = {"networks.mlp.sizes": (1000,) * 50, "optimizer.learning_rate": 0.003}
  names = [
    plain,
    workdir.default_name("ff", {"seed": 3}),
    workdir.default_name("ff", long),
    workdir.default_name("ff", {**long, "seed": 3}),
    workdir.default_name("hff", long),
  ]
  assert names[:2] == ["ff", "ff,seed=3"]
  assert len(set(names)) == len(names)
  assert all(len(name) <= 70 and "/" not in name for name in names)
  for overrides in ({}, {"seed": 3}, long):
    elsewhere = workdir.default_name("ff", {**overrides, "data.data_dir": "/a/b"})
    assert elsewhere == workdir.default_name("ff", overrides)
  assert workdir.default_name("ff", dict(reversed(long.items()))) == names[2]


def test_a_folder_tells_nothing_of_the_devices_it_was_trained_on(tmp_path):
  """Fields of the mesh come and go with versions; old runs must stay readable and resumable."""
  wide = ExperimentConfig(mesh=MeshConfig(data=8))
  workdir.open_run(tmp_path, wide)
  told = json.loads((tmp_path / "config.json").read_text())
  told["mesh"] = {"sweep": 1, "data": 8, "layer": 1}
  (tmp_path / "config.json").write_text(json.dumps(told))
  assert workdir.read_config(tmp_path) == ExperimentConfig()
  workdir.claim(tmp_path, wide)
  with pytest.raises(ValueError, match=r"it differs in epochs\): choose another workdir"):
    workdir.claim(tmp_path, dataclasses.replace(wide, epochs=7))
