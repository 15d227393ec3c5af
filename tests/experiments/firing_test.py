"""Firing rates of a run against its own samples; energies against the specification's cells."""

import json

import jax
import numpy as np
import pytest

from experiments import firing, pbit_hardware
from experiments.assembly import build
from experiments.card import Task, card, columns, forward_pass
from experiments.config import as_dict, from_mapping, load_preset
from experiments.firing import Measured, Product, measure_firing, twin_of
from experiments.pbit_hardware import Pass, judge, pass_energy
from experiments.studies.comparison import merge
from fflax.random import Role, role_key
from tests.methods.tiny import jit

TASK = Task((8, 8, 1), 10, "digits")


def small(**changes):
  base = {
    "networks": {"cfse": {"channels": (10, 20), "groups": (1, 10), "pool_after": (2,)}},
    "pbits": {"units": 3},
  }
  return from_mapping(merge(merge(as_dict(load_preset("bsff_digits")), base), changes))


def test_rates_are_those_of_the_networks_own_samples():
  experiment = build(small())
  state = experiment.init()
  found = measure_firing(experiment, state, examples=5, batch_size=3)
  assert (found.steps, found.examples) == (0, 5)
  root, parts, outs = role_key(state.key, Role.PROBE), [], jit(experiment.trainer.layer_outs)
  for start in (0, 3):
    image = experiment.preprocess(None, experiment.dataset.test.image[start : min(start + 3, 5)])
    parts.append(outs(state, image, jax.random.fold_in(root, start)))
  one, two = (
    np.concatenate([np.asarray(found[i].counts) for found in parts]).astype(int) for i in (0, 1)
  )
  assert (one.shape, two.shape) == ((5, 8, 8, 10), (5, 4, 4, 20))
  for row, counts in zip(found.layers, (one, two), strict=True):
    assert row["mean_count"] == pytest.approx(counts.mean())
    assert row["lines"] == pytest.approx([(counts >= m).mean() for m in (1, 2, 3)])
  # Layer 2: every class's channel is read by two of its own, inside the image.
  meets = np.minimum(np.minimum(np.arange(8), np.arange(8)[::-1]), 1) + 2
  weights = (meets[:, None] * meets[None])[None, :, :, None]
  (product,) = found.products
  assert product.name == "cfse_2"
  assert product.macs == 20 * meets.sum() ** 2
  assert product.thermo == pytest.approx(2 * (weights * one).sum() / 5)
  ones = np.array([0, 1, 1, 2])[one]
  assert product.code == pytest.approx(2 * (weights * ones).sum() / 5)
  assert 2 ** (product.accumulator_bits - 1) > 127 * 3 * 9 > 2 ** (product.accumulator_bits - 2)
  (head,) = found.heads
  assert (head.name, head.macs) == ("softmax_last", 320 * 10)
  assert head.thermo == pytest.approx(10 * two.sum() / 5)
  assert found.of(["last_layer"]) == [product]
  assert found.rate("thermo", ["softmax_last"]) == pytest.approx(
    (product.thermo + head.thermo) / (product.macs + head.macs)
  )
  real = build(small(activation="relu", method="channelwise", pbits={"units": 7}))
  with pytest.raises(ValueError, match="activation 'relu'"):
    measure_firing(real, state)


LAYER = Product("cfse_2", 20 * 22**2, 5000.0, 4000.0, 13)
HEAD = Product("softmax_last", 3200, 6000.0, 3000.0, 16)
FAKE = Measured(7, 5, [], [LAYER], [HEAD])


def test_the_card_counts_additions_as_measured():
  config = small(eval_samples=2)
  found = card(config, TASK, memory=False, firing=FAKE)
  assert list(found["columns"]) == [
    "run", "backprop float32", "channelwise float32", "channelwise int8",
  ]  # fmt: skip
  run, control, twin, int8 = found["columns"].values()
  samples = 3 * 64 * (10 + 20)
  prediction, training = run["prediction"], run["training"]
  assert prediction["index_adds"] == pytest.approx({"thermo": 22000, "code": 14000})  # two passes
  assert prediction["pbits"] == 2 * samples
  # Forward and the gradient of the weights, of the layer and of the head.
  assert training["index_adds"] == pytest.approx({"thermo": 22000, "code": 14000})
  assert training["pbits"] == samples
  assert training["pbit_pj"] == pytest.approx(
    {"no read-out": 0.002 * samples, "with read-out": 1.70709 * samples}
  )
  first = 9 * 64 * 10
  assert prediction["energy_pj_parts"]["macs"] == pytest.approx(2 * first * 4.6)
  assert prediction["energy_pj_parts"]["index_adds"] == pytest.approx(0.9 * 22000)
  assert prediction["energy_pj_parts"]["pbits"] == pytest.approx(0.002 * 2 * samples)
  for column in (control, twin, int8):
    assert column["training"]["pbits"] == 0
    assert not any(column["training"]["index_adds"].values())
  assert int8["prediction"]["macs_by_type"]["forward int8 int8"] == first + 9 * 64 * 20
  assert twin["prediction"]["macs"] == first + 9 * 64 * 20 + 3200
  json.dumps(found)
  with pytest.raises(ValueError, match="measure that first"):
    card(config, TASK, memory=False)


def test_passes_by_readout_and_of_the_twin():
  config = small()
  for readout, products in (("softmax_last", (LAYER, HEAD)), ("last_layer", (LAYER,))):
    one = forward_pass(config, TASK, readout, FAKE)
    assert (one.macs, tuple(one.products)) == (9 * 64 * 10, products)
    assert one.pbits == 3 * 64 * 30
    assert pbit_hardware.from_dict(json.loads(json.dumps(pbit_hardware.as_dict(one)))) == Pass(
      one.macs, one.pbits, products
    )
  real = forward_pass(twin_of(config, "float32"), TASK, "last_layer", None)
  assert real == Pass(9 * 64 * 30, 0, [])


def test_the_twin_is_the_same_run_with_real_units():
  config = small(methods={"binary_stochastic": {"competing": (5, 10)}}, eval_samples=4)
  twin = twin_of(config, "int8")
  assert (twin.method, twin.activation, twin.numerics) == ("channelwise", "relu", "int8")
  assert twin.methods["channelwise"].competing == (5, 10)
  assert (twin.eval_samples, twin.pbits.units) == (0, 7)
  assert (twin.networks, twin.optimizer, twin.data) == (
    config.networks, config.optimizer, config.data,
  )  # fmt: skip
  other = twin_of(from_mapping({"activation": "pbits", "method": "forward_forward"}), "float32")
  assert other.method == "forward_forward"
  assert columns(small())["run"].eval_samples == 1


def test_energies_are_those_of_the_specification():
  """The CIFAR-10 net without its head: M = 7 with v ~ N(0, 1), mean count 0.807."""
  macs, first = 72_806_400, 552_960
  adds = 0.807 * (macs - first)
  one = Pass(first, 7 * 286_720, (Product("all", macs - first, adds, adds, 32),))
  rows = {(r["weights"], r["reading"]): r for r in judge(one, Pass(macs))}
  for width, micro, times in (
    ("float32", 55.0, (6.1, 2.0, 0.4)),
    ("int8", 5.99, (56, 18, 3.6)),
  ):
    row = rows[width, "thermo"]
    assert row["pj"]["no read-out"] * 1e-6 == pytest.approx(micro, rel=0.01)
    got = row["times"]["no read-out"].values()
    assert list(got) == pytest.approx(times, rel=0.02, abs=0.05)
    extra = row["pj"]["with read-out"] - row["pj"]["no read-out"]
    assert extra * 1e-6 == pytest.approx(3.4, rel=0.02)
  # Of T passes the image's product is computed once.
  four = pass_energy(one, "float32", samples=4)
  assert four == pytest.approx(4 * pass_energy(one, "float32") - 3 * 4.6 * first)


def test_heads_read_whole_layers():
  with pytest.raises(ValueError, match="whole layers"):
    firing._head("head", firing.Reader(10, 7, 70), [])
