"""The card of a run: its numbers beside the controls', and the command as a person uses it."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

from experiments.assembly import check
from experiments.card import Task, card, columns, find_task, notes, ratio
from experiments.config import from_mapping
from experiments.console import si
from experiments.controls import matched_backprop

ROOT = pathlib.Path(__file__).parents[2]
MNIST = Task((28, 28, 1), 10, "mnist")


def make(**values):
  values = {
    "networks": {"mlp": {"sizes": (1000, 1000)}},
    "optimizer": {"name": "adam"},
    "data": {"name": "mnist", "batch_size": 10},
    **values,
  }
  return from_mapping(values)


def test_the_card_of_784_1000_1000_beside_its_controls():
  found = card(make(numerics="bfloat16"), MNIST, memory=False)
  run, control, same = (
    found["columns"][name] for name in ("run", "backprop float32", "backprop bfloat16")
  )
  assert [c["locality"] for c in (run, control, same)] == ["strict", "global", "global"]
  n, n1, r = 1_784_000, 784_000, 10_000
  assert run["training"]["macs"] == pytest.approx(4 * n)
  assert run["training"]["macs_by_type"] == {
    "backward real bfloat16": 2 * n,
    "forward real bfloat16": 2 * n,
  }
  for column in (control, same):
    assert column["training"]["macs"] == pytest.approx(3 * n - n1 + 3 * r)
    assert column["prediction"]["macs"] == n + r
  assert control["training"]["macs_by_type"] == {
    "backward real float32": pytest.approx(2 * n - n1 + 2 * r),
    "forward real float32": pytest.approx(n + r),
  }
  assert run["prediction"]["macs"] == 10 * n  # one pass a candidate label
  assert ratio(run["training"]["macs"], control["training"]["macs"]) == pytest.approx(
    4 * n / (3 * n - n1 + 3 * r)
  )
  # Weights once a batch: read forward, and their gradient written.
  assert run["parameters"] == n + 2000
  assert run["training"]["bits_by_owner"]["weights"] == pytest.approx((16 + 32) * n / 10)
  assert run["training"]["bits_by_owner"]["optimizer"] == pytest.approx(7 * 32 * (n + 2000) / 10)
  assert run["prediction"]["bits_by_owner"]["weights"] == pytest.approx(16 * n)
  for column in (run, control, same):
    energies = column["training"]["energy_pj"]
    assert energies["none"] < energies["on_chip"] < energies["dram_weights"]
    assert sum(column["training"]["energy_pj_parts"].values()) == pytest.approx(
      energies["dram_weights"]
    )
    assert column["memory"] is None
  assert control["training"]["energy_pj_parts"]["macs"] == pytest.approx(
    4.6 * control["training"]["macs"]
  )
  assert notes(found["columns"].values()) == ["horowitz_45nm has no bfloat16: charged as float16"]
  json.dumps(found)


def test_memory_is_of_the_compiled_step_and_its_absence_is_said(monkeypatch):
  config = make(networks={"mlp": {"sizes": (16,)}}, numerics="float32")
  task = Task((6, 6, 1), 10, "tiny")
  run = card(config, task)["columns"]["run"]
  use = run["memory"]
  state = 4 * 3 * run["parameters"]  # Adam
  assert use["alias"] >= state
  assert state <= use["arguments"] <= state + 10 * 36 * 4 + 200
  assert use["peak"] == use["arguments"] + use["outputs"] - use["alias"] + use["temporaries"]

  def silent(compiled):
    raise ValueError("no plan")

  monkeypatch.setattr("experiments.card.compiled_memory", silent)
  found = card(config, task)["columns"]
  assert found["run"]["memory"] is None
  assert notes(found.values()) == ["no plan"]


def test_controls_differ_from_the_run_in_the_method_alone():
  config = make(
    numerics="bfloat16",
    schedule="greedy",
    readouts=("softmax_head",),
    methods={"backprop": {"heads": "all"}},
  )
  assert list(columns(config)) == ["run", "backprop float32", "backprop bfloat16"]
  assert list(columns(make())) == ["run", "backprop float32"]
  control = matched_backprop(config, None, "bfloat16")
  assert columns(config)["backprop bfloat16"] == control
  assert (control.method, control.schedule, control.readouts) == (
    "backprop",
    "simultaneous",
    ("score_sum",),
  )
  for field in ("network", "networks", "data", "optimizer", "activation", "methods"):
    assert getattr(control, field) == getattr(config, field)


def test_int8_settings_go_to_the_int8_control_alone():
  config = make(numerics="int8", int8={"weight_scale": "channel"}, weight_store="int8")
  found = columns(config)
  assert found["backprop int8"].int8.weight_scale == "channel"
  assert found["backprop int8"].weight_store == "int8"
  check(found["backprop float32"])


def test_shapes_of_data():
  assert find_task(make(data={"name": "cifar10"}))[:2] == ((32, 32, 3), 10)
  assert find_task(make(data={"name": "cifar10", "image_size": 16}))[:2] == ((16, 16, 3), 10)
  assert find_task(make(data={"name": "cifar100", "superclasses": 20}))[:2] == ((32, 32, 3), 20)
  assert find_task(make(data={"name": "tiny_imagenet"}))[:2] == ((64, 64, 3), 200)
  assert find_task(make(data={"name": "synthetic", "num_classes": 3})).num_classes == 3
  with pytest.raises(ValueError, match="there is no data set 'nowhere'"):
    find_task(make(data={"name": "nowhere"}))


@pytest.mark.parametrize(
  ("values", "options", "word"),
  [
    ({"numerics": "int3"}, {}, "unknown numerics 'int3'"),
    ({"schedule": "greedy", "epochs": 1}, {}, "never train the last"),
    ({}, {"table": "abacus"}, "unknown energy table 'abacus'"),
  ],
)
def test_impossible_cards(values, options, word):
  with pytest.raises(ValueError, match=word):
    card(make(**values), MNIST, memory=False, **options)


@pytest.mark.parametrize(
  ("value", "unit", "text"),
  [
    (45_980_000, "", "46.0 M"),
    (999.9, "B", "1.00 kB"),
    (8.3e-7, "J", "830 nJ"),
    (5e-13, "J", "0.50 pJ"),
    (7, "", "7.00"),
    (0, "J", "0 J"),
  ],
)
def test_numbers_have_three_digits(value, unit, text):
  assert si(value, unit) == text


def command(*args: str) -> subprocess.CompletedProcess:
  return subprocess.run(
    [sys.executable, "-m", "experiments.cost", *args],
    cwd=ROOT,
    env={**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "160"},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )


def test_the_command_prints_and_writes(tmp_path):
  out = tmp_path / "card.json"
  done = command("--config.networks.mlp.sizes=(32,32)", f"--out={out}")
  assert done.returncode == 0, done.stderr
  for word in (
    "forward_forward x mlp x float32 x simultaneous, locality strict",
    "modelled, not measured",
    "training, one example of a batch of 100",
    "MACs backward real float32",
    "energy, weights in DRAM",
    "backprop float32",
    "peak of a step",
  ):
    assert word in done.stdout, word
  written = json.loads(out.read_text())
  assert written["config"]["networks"]["mlp"]["sizes"] == [32, 32]
  assert written["columns"]["run"]["memory"]["peak"] > 0


@pytest.mark.parametrize(
  ("args", "word"),
  [
    (["--config.epoch=3"], "epoch"),
    (["--config.data.name=nowhere"], "there is no data set 'nowhere'"),
    (["--out=/nowhere/card.json"], "no folder /nowhere"),
    (["--config.network=small_cnn"], "layer 'conv_1'"),
    (["--workdir=/nowhere/run"], "/nowhere/run holds no run"),
  ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(args, word):
  done = command(*args)
  assert done.returncode == 2, done.stderr
  assert done.stderr.count("\n") == 1, done.stderr
  assert word in done.stderr


def test_the_command_measures_p_bits_first():
  done = command(
    "--config=experiments/configs/bsff_digits.py",
    "--config.networks.cfse.channels=(10,)",
    "--config.networks.cfse.groups=(1,)",
    "--config.networks.cfse.pool_after=(1,)",
    "--steps=2",
    "--memory=false",
  )
  assert done.returncode == 0, done.stderr
  for word in (
    "channelwise int8",
    "index additions, code",
    "energy of p-bits, with read-out",
    "counts as measured: 360 test images after 2 steps",
    "int8, thermo",
  ):
    assert word in done.stdout, word
