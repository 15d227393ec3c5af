"""Configurations: what they refuse, and that they survive flags and JSON."""

import dataclasses
import json
import pathlib

import pytest

from experiments import config as config_lib
from experiments.assembly import check
from experiments.config import DataConfig, ExperimentConfig
from fflax.core.pbit_config import PbitConfig
from fflax.training.lookahead import LookaheadConfig
from fflax.training.optimizers import OptimizerConfig

CONFIGS = sorted(
  p
  for p in (pathlib.Path(config_lib.__file__).parent / "configs").glob("*.py")
  if p.stem != "__init__"
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_config_file_is_possible_and_survives_json(path):
  chosen = config_lib.load_preset(path.stem)
  check(chosen)
  again = config_lib.from_mapping(json.loads(json.dumps(config_lib.as_dict(chosen))))
  assert again == chosen
  assert config_lib.fingerprint(again) == config_lib.fingerprint(chosen)
  assert "python -m experiments.train" in path.read_text().split('"""')[1]


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"method": "nothing"}, "unknown method 'nothing'; there are forward_forward"),
    ({"network": "nothing"}, "unknown network 'nothing'"),
    ({"readouts": ("nothing",)}, "unknown readout 'nothing'"),
    ({"readouts": ("score_sum", "score_sum")}, "different names"),
    ({"readouts": ()}, "one or more"),
    ({"epochs": 0}, "epochs must be at least 1, not 0"),
    ({"epochs_per_layer": -1}, "epochs_per_layer must be at least 0, not -1"),
    ({"seed": -1}, "seed must be in"),
    ({"data": {"batch_size": 0}}, "batch sizes"),
    ({"data": {"colour": 1}}, "unknown field 'colour' of data"),
    ({"weight_store": "int4"}, "unknown weight_store 'int4'; there are float32, int8"),
    ({"lookahead": {"mode": "far"}}, "lookahead.mode must be"),
    ({"pbits": {"unit": 3}}, "unknown field 'unit' of pbits"),
    ({"lookahead": {"lamda": 1.0}}, "unknown field 'lamda' of lookahead"),
    ({"speed": 3}, "unknown field 'speed' of config"),
    ({"methods": {"forward_forward": {"thta": 1}}}, "unknown field 'thta'"),
  ],
)
def test_wrong_fields_are_one_sentence(changes, sentence):
  with pytest.raises(ValueError, match="^[^\n]*$") as error:
    config_lib.from_mapping(changes)
  assert sentence in str(error.value)


@pytest.mark.parametrize(
  ("changes", "sentence"),
  [
    ({"numerics": "int3"}, "unknown numerics 'int3'"),
    ({"schedule": "never"}, "unknown schedule 'never'"),
    ({"activation": "step"}, "step"),
    ({"activation": "pbits", "pbits": {"units": 0}}, "integer from 1 to 16, not 0"),
    ({"activation": "pbits", "pbits": {"pool": "min"}}, "unknown pool 'min' of pbits"),
    ({"pbits": {"units": 3}}, "belong to activation 'pbits', not to 'relu'"),
    ({"activation": "pbits", "pbits": {"estimator": "score"}}, "leaves the gradient to the loss"),
    (
      {
        "method": "binary_stochastic",
        "methods": {"binary_stochastic": {"error": "reinforce"}},
        "activation": "pbits",
        "network": "cfse",
      },
      "leaves the gradient to the loss",
    ),
    ({"networks": {"mlp": {"sizes": ()}}}, "sizes"),
    ({"networks": {"mlp": {"depth": 3}}}, "depth"),
    ({"method": "backprop", "schedule": "greedy"}, "method 'backprop' is global"),
    ({"methods": {"forward_forward": {"negatives": "softmax_hard"}}}, "add 'softmax_head'"),
    ({"methods": {"forward_forward": {"supervision": "hybrid"}}}, "use readout 'softmax_head'"),
    ({"methods": {"forward_forward": {"goodness": "max"}}}, "goodness must be one of"),
    ({"method": "backprop", "lookahead": {"mode": "exact"}}, "'backprop' is global already"),
    ({"rematerialize": True}, "rematerialize is for end-to-end gradients"),
    ({"schedule": "greedy", "lookahead": {"mode": "exact"}}, "needs all layers' losses at once"),
    ({"method": "hyperspherical", "lookahead": {"mode": "scalar"}}, "'hyperspherical' has none"),
    ({"optimizer": {"name": "lion"}}, "unknown optimizer 'lion'"),
    ({"optimizer": {"learning_rate": 0.0}}, "learning_rate must be positive"),
  ],
)
def test_impossible_choices_are_refused_without_data(changes, sentence):
  with pytest.raises(ValueError, match="^[^\n]*$") as error:
    check(config_lib.from_mapping({**changes, "data": {"name": "/nowhere.npz"}}))
  assert sentence in str(error.value)


def test_the_fingerprint_knows_what_changes_the_numbers_and_ignores_the_rest():
  base = ExperimentConfig()
  same = [
    dataclasses.replace(base, data=dataclasses.replace(base.data, data_dir="/elsewhere")),
    dataclasses.replace(base, methods={**base.methods, "hyperspherical": base.methods["backprop"]}),
    dataclasses.replace(base, epochs_per_layer=3),
    dataclasses.replace(base, lookahead=LookaheadConfig(slope=0.5)),
  ]
  other = [
    dataclasses.replace(base, seed=1),
    dataclasses.replace(base, data=DataConfig(batch_size=7)),
    dataclasses.replace(base, data=DataConfig(train_split="train[:80%]")),
    dataclasses.replace(base, schedule="greedy"),
    dataclasses.replace(base, schedule="greedy", epochs_per_layer=3),
    dataclasses.replace(base, networks={"mlp": {"sizes": (3,)}}),
    dataclasses.replace(base, lookahead=LookaheadConfig("exact")),
    dataclasses.replace(base, weight_store="int8"),
    dataclasses.replace(base, optimizer=OptimizerConfig(accumulate=2)),
    dataclasses.replace(base, rematerialize=True),
    dataclasses.replace(base, activation="pbits"),
    dataclasses.replace(base, activation="pbits", pbits=PbitConfig(3)),
  ]
  assert {config_lib.fingerprint(c) for c in same} == {config_lib.fingerprint(base)}
  assert len({config_lib.fingerprint(c) for c in [base, *other]}) == 1 + len(other)


def test_differences_name_the_fields():
  a = config_lib.as_dict(ExperimentConfig())
  b = config_lib.as_dict(ExperimentConfig(seed=1, networks={"mlp": {"sizes": (3,)}}))
  assert config_lib.differences(a, b) == ["networks.mlp.sizes", "seed"]


def test_runs_of_earlier_releases_are_still_resumed():
  """The fingerprints of two presets before schedules, heads and p-bits had options of their own."""
  old = {
    "ff_digits": "3fe26483bf9d7fe06592da7af6f91a1f65b7221fcbf835ef9db529634cd1aa9b",
    "ff_mnist_loewex": "728feeb8a9dbeffd66c296c94db87db21c5f21efa9f7477748231cecd7e73e2a",
  }
  for name, found in old.items():
    assert config_lib.fingerprint(config_lib.load_preset(name)) == found
