"""Modelled energy against the published constants and the cells of the specification."""

import numpy as np
import pytest

from fflax.analysis.counts import Counts, Key
from fflax.analysis.energy import (
  MEMORIES,
  TABLES,
  accumulator_bits,
  energy,
  index_additions,
)

# The channel-wise CIFAR-10 net: MACs of its four convolutions, weights, stored activations.
LAYERS = (552_960, 1_474_560, 44_236_800, 26_542_080)
WEIGHTS, INPUT, OUTPUTS = 280_920, 3072, 20_480 + 20_480 + 61_440 + 30_720


def macs(number: float, kind: str = "real", dtype: str = "float32") -> Counts:
  return Counts({Key(what, kind, dtype, "forward"): number for what in ("macs", "macs_valid")})


def micro(counts: Counts, **options) -> float:
  return energy(counts, **options).total * 1e-6


@pytest.mark.parametrize(
  ("kind", "dtype", "want"),
  [("real", "float32", 334.9), ("real", "float16", 109.2), ("int8", "int8", 21.84)],
)
def test_baselines(kind, dtype, want):
  assert micro(macs(sum(LAYERS), kind, dtype)) == pytest.approx(want, rel=1e-3)


def rates(units: int, spread: float = 1.0) -> tuple[float, float]:
  """Mean count and mean code ones of `units` tied p-bits, thresholds 1/2, 3/2, ..., v normal."""
  v = np.linspace(-9, 9, 4001)[:, None] * spread
  weight = np.exp(-((v[:, 0] / spread) ** 2) / 2)
  weight /= weight.sum()
  on = 1 / (1 + np.exp(-(v - np.arange(units) - 0.5)))
  counts = np.zeros((len(v), units + 1))
  counts[:, 0] = 1
  for p in on.T:
    counts = counts * (1 - p)[:, None] + np.roll(counts, 1, axis=1) * p[:, None]
  law = weight @ counts
  number = np.arange(units + 1)
  return float(law @ number), float(law @ [n.bit_count() for n in number.tolist()])


CELLS = {  # accumulator, reading, MAC of the first layer: uJ at M = 1, 3, 7
  ("float32", "half", "float32"): (35.1, 100.1, 230.2),
  ("float32", "thermo", "float32"): (28.7, 50.2, 55.0),
  ("float16", "code", "float16"): (12.5, 17.1, 18.0),
  ("int32", "thermo", "int8"): (3.07, 5.46, 5.99),
  ("int32", "code", "int8"): (3.07, 4.24, 4.47),
}


@pytest.mark.parametrize("cell", CELLS)
def test_index_additions_of_the_cifar_net(cell):
  accumulator, reading, first = cell
  for units, want in zip((1, 3, 7), CELLS[cell], strict=True):
    mean, ones = rates(units)
    rate = {"half": units / 2, "thermo": mean, "code": ones}[reading]
    trace = macs(LAYERS[0], "int8" if first == "int8" else "real", first)
    trace += macs(sum(LAYERS[1:]), "count_real")
    found = index_additions(trace, {"count_real": rate}, reading=reading, accumulator=accumulator)
    # The cells were made with sampled rates, up to 1.4 % above these.
    assert micro(found) == pytest.approx(want, rel=0.015)
    assert found.total("index_adds") == pytest.approx(rate * sum(LAYERS[1:]))


def bits(weights: float, activations: float) -> Counts:
  return Counts(
    {Key("bits", "weights"): weights, Key("bits", "activations"): activations + 8 * INPUT}
  )


@pytest.mark.parametrize(
  ("weight_bits", "act_bits", "on_chip", "dram", "dram_128"),
  [
    (32, 32, 27.4, 195.9, 14.8),
    (16, 16, 13.7, 98.0, 7.4),
    (8, 8, 6.9, 49.0, 3.7),
    (8, 1, 4.0, 46.1, 0.8),
    (8, 3, 4.8, 46.9, 1.6),
  ],
)
def test_memory_of_the_cifar_net(weight_bits, act_bits, on_chip, dram, dram_128):
  weights, activations = weight_bits * WEIGHTS, 2 * act_bits * OUTPUTS
  counts = bits(weights, activations)
  tolerance = dict(rel=0.01, abs=0.05)  # of the printed digits
  assert micro(counts, memory=MEMORIES["on_chip"]) == pytest.approx(on_chip, **tolerance)
  assert micro(counts, memory=MEMORIES["dram_weights"]) == pytest.approx(dram, **tolerance)
  batch = bits(weights / 128, activations)
  assert micro(batch, memory=MEMORIES["dram_weights"]) == pytest.approx(dram_128, **tolerance)
  assert energy(counts, memory=None).total == 0


def test_stochastic_samples():
  samples = Counts({Key("pbits"): 7 * 286_720})
  for name, want in (("smtj", 0.004), ("cmos", 0.4), ("spice_flip_read", 3.4)):
    assert micro(samples, pbit=name) == pytest.approx(want, rel=0.01)
  word = Counts({Key("ops", "random", "uint32", "forward"): 1})
  assert energy(word, pbit="cmos").parts == {"random": pytest.approx(32 * 0.2)}


@pytest.mark.parametrize(
  ("fan_in", "want"), [(720, (18, 20, 21)), (216, (16, 18, 19)), (18, (13, 14, 15))]
)
def test_accumulators_hold_the_sum(fan_in, want):
  assert tuple(accumulator_bits(fan_in, m) for m in (1, 3, 7)) == want
  for units, width in zip((1, 3, 7), want, strict=True):
    assert 2 ** (width - 1) > 127 * units * fan_in >= 2 ** (width - 2)


def test_every_operation_is_priced_once():
  table = TABLES["horowitz_45nm"]
  priced = {
    Key("ops", "add", "float32"): 0.9,
    Key("ops", "compare", "float32"): 0.9,
    Key("ops", "compare", "bool"): 0.1 / 32,
    Key("ops", "reduce", "uint32"): 0.1,
    Key("ops", "mul", "float16"): 1.1,
    Key("ops", "div", "float32"): table.div,
    Key("ops", "special", "float32"): table.special,
    Key("index_adds", "thermo", "int18"): 0.1 * 18 / 32,
    Key("macs", "binary_binary", "int8"): 0.1 / 32,
    Key("macs", "integer", "int32"): 3.2,
    Key("macs_valid", "real", "float32"): 0,
    Key("bits", "weights"): 0,
  }
  for key, want in priced.items():
    assert energy(Counts({key: 2})).total == pytest.approx(2 * want), key
  everything = energy(Counts(dict.fromkeys(priced, 3)))
  assert everything.total == pytest.approx(3 * sum(priced.values()))
  assert energy(Counts({})).total == 0


@pytest.mark.parametrize("table", TABLES)
def test_energy_is_linear(table):
  a, b = macs(5.0) + bits(10, 20), macs(7.0, "int8", "int8")
  one = lambda c: energy(c, table, memory=MEMORIES["dram_weights"]).total  # noqa: E731
  assert one(3 * a + 2 * b) == pytest.approx(3 * one(a) + 2 * one(b))
  assert one(a) > 0 and one(b) > 0


def test_what_a_table_lacks_is_said_or_refused():
  found = energy(macs(1, dtype="bfloat16"))
  assert found.total == pytest.approx(1.5)
  assert found.notes == ("horowitz_45nm has no bfloat16: charged as float16",)
  assert energy(macs(1, dtype="bfloat16"), "jouppi_7nm").notes == ()
  assert "NOT VERIFIED" in TABLES["jouppi_7nm"].source
  for counts, options, word in (
    (macs(1, dtype="float64"), {}, "no operations of float64"),
    (macs(1, "count_int8"), {}, "measure the rates"),
    (macs(1), {"table": "abacus"}, "unknown energy table 'abacus'"),
    (macs(1), {"pbit": "coin"}, "unknown p-bit 'coin'"),
    (Counts({Key("bits", "products"): 1}), {"memory": MEMORIES["on_chip"]}, "kind 'products'"),
    (bits(1, 1), {"memory": dict.fromkeys(MEMORIES["on_chip"], "tape")}, "of memory 'tape'"),
  ):
    with pytest.raises(ValueError, match=word):
      energy(counts, **options)
