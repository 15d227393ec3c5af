"""Runs on records through Grain: what the same run finds in memory, cut or not, bit for bit."""

import dataclasses
import functools
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from experiments import cli, record_sets
from experiments.assembly import build, prove_locality
from experiments.config import DataConfig, ExperimentConfig
from experiments.running import final_accuracies, restored, run_in
from fflax.data import npz_source, sources
from fflax.data.array_record_source import is_streamed
from fflax.data.augment import AugmentConfig
from fflax.training import loop, streaming
from fflax.training.chunk import make_chunk
from tests.experiments.prepare_data_test import main, parsed_flags  # noqa: F401
from tests.training.checkpoint_test import bits

CONFIG = ExperimentConfig(
  epochs=3,
  network="mlp",
  networks={"mlp": {"sizes": (16,)}},
  data=DataConfig(
    "digits", validation=137, normalization="dataset", augment=AugmentConfig(shift=1)
  ),
  eval_every=1,
  checkpoint_every=1,
  eval_batch_size=64,
)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory, parsed_flags):  # noqa: F811
  """The digits as records, and the same run on them."""
  path = tmp_path_factory.mktemp("sets") / "digits.array_record"
  main(dataset="digits", array_record=str(path))
  return build(of(path))


def of(path):
  return dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, name=str(path)))


class Cut(Exception):
  """In the place of a kill."""


def test_equals_the_run_in_memory(streamed, tmp_path, monkeypatch):
  """Order, augmentation, statistics, rows and accuracies; with a cut between two checkpoints."""
  monkeypatch.setattr(loop, "make_chunk", functools.cache(make_chunk))
  monkeypatch.setattr(streaming, "WINDOW", 5 * 100 * 64)
  memory = build(CONFIG)
  assert is_streamed(streamed.dataset.train) and not is_streamed(memory.dataset.train)
  states = {}
  for name, one in (("memory", memory), ("streamed", streamed)):
    states[name] = run_in(one, one.init(), tmp_path / name)
  assert bits(states["streamed"]) == bits(states["memory"])
  rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in states]
  assert rows[0] == rows[1] and b"validation/accuracy/score_sum" in rows[0]
  state = states["memory"]
  assert final_accuracies(streamed, state) == final_accuracies(memory, state)

  monkeypatch.setattr("experiments.console.Bar.update", cut_at(26))
  with pytest.raises(Cut):
    run_in(streamed, streamed.init(), tmp_path / "cut")
  assert int(restored(streamed, tmp_path / "cut").step) == 13
  monkeypatch.undo()
  assert bits(run_in(streamed, streamed.init(), tmp_path / "cut")) == bits(state)
  assert (tmp_path / "cut" / "metrics.jsonl").read_bytes() == rows[0]


def cut_at(step: int):
  def update(self, row):
    if row["step"] == step:
      raise Cut

  return update


@pytest.mark.slow
def test_a_set_is_the_same_run_in_memory_or_streamed(tmp_path, monkeypatch):
  """Found under its name in `data_dir`, records continue what a `.npz` began."""
  monkeypatch.setattr(loop, "make_chunk", functools.cache(make_chunk))
  digits = sources.load("digits")._replace(max_value=255.0)
  data = dataclasses.replace(CONFIG.data, name="x", data_dir=str(tmp_path))
  config = dataclasses.replace(CONFIG, epochs=2, data=data)
  npz_source.save(tmp_path / "x.npz", digits)
  memory = build(config)
  whole = run_in(memory, memory.init(), tmp_path / "whole")
  monkeypatch.setattr("experiments.console.Bar.update", cut_at(26))
  with pytest.raises(Cut):
    run_in(memory, memory.init(), tmp_path / "cut")
  monkeypatch.undo()

  (tmp_path / "x.npz").unlink()
  record_sets.from_dataset(tmp_path / "x.array_record", digits)
  streamed = build(config)
  assert is_streamed(streamed.dataset.train)
  assert int(restored(streamed, tmp_path / "cut").step) == 13
  assert bits(run_in(streamed, streamed.init(), tmp_path / "cut")) == bits(whole)
  rows = [(tmp_path / name / "metrics.jsonl").read_bytes() for name in ("whole", "cut")]
  assert rows[0] == rows[1]


def test_locality_is_proved_on_records(streamed):
  np.testing.assert_array_equal(prove_locality(streamed), [[1]])


def test_damage_in_the_middle_of_a_run_is_one_sentence(streamed, tmp_path):
  path = tmp_path / "digits.array_record"
  shutil.copytree(streamed.dataset.train.image._path.parent, path)
  damaged = build(of(path))
  file = damaged.dataset.train.image._path
  file.write_bytes(file.read_bytes()[:-200_000])
  found = r"train.array_record: (cannot be read|record \d+ has 0 bytes)"
  with pytest.raises(cli.Stopped, match=found) as error:
    run_in(damaged, damaged.init(), tmp_path / "run")
  assert "\n" not in str(error.value)


@pytest.mark.slow
def test_vgg11_on_imagenet_100_starts_from_one_command(tmp_path, repo_root):
  """At its size and shape, generated: two steps of two images, and evaluations."""
  record_sets.random_images(tmp_path / "imagenet100.array_record", "imagenet100:5")
  arguments = (
    f"--config={repo_root}/experiments/configs/dtg_images.py:imagenet100",
    f"--config.data.data_dir={tmp_path}",
    "--config.data.batch_size=2",
    "--config.eval_batch_size=2",
    "--config.epochs=1",
  )
  done = subprocess.run(
    [sys.executable, "-m", "experiments.train", f"--workdir={tmp_path}/run", *arguments],
    cwd=repo_root,
    env={**os.environ, "XLA_FLAGS": ""},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert "imagenet100: 4 training, 0 validation, 1 test examples, 100 classes, streamed" in (
    " ".join(done.stdout.split())
  )
  assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2
