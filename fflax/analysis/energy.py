"""Modelled energy of counted operations on stated hardware.

Compute-only figures are bounds: memory often costs more, so print both. A modelled energy and one
that was measured on a device are different claims; never put them in one column.
"""

import math
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from fflax.analysis.cost import INDEXED
from fflax.analysis.counts import Counts, Key, unique


class EnergyTable(NamedTuple):
  """Energies of single operations in pJ.

  Attributes:
    name: as in `TABLES`.
    source: where the numbers are from, and which of them are not verified.
    add, mul: by dtype.
    div, special: of one division, and of one exp, tanh or root.
    bit: of moving one bit, by level of memory.
  """

  name: str
  source: str
  add: Mapping[str, float]
  mul: Mapping[str, float]
  div: float
  special: float
  bit: Mapping[str, float]


TABLES: Mapping[str, EnergyTable] = MappingProxyType(
  {
    "horowitz_45nm": EnergyTable(
      "horowitz_45nm",
      "M. Horowitz, Computing's energy problem, ISSCC 2014 (45 nm, 0.9 V); division is 7.1 float32 "
      "multiplications (secondary), special functions are charged like it (our default)",
      add={"int8": 0.03, "int32": 0.1, "float16": 0.4, "float32": 0.9},
      mul={"int8": 0.2, "int32": 3.1, "float16": 1.1, "float32": 3.7},
      div=26.3,
      special=26.3,
      bit={"sram_8kb": 0.156, "sram_32kb": 0.3125, "sram_1mb": 1.5625, "dram": 20.3},
    ),
    "jouppi_7nm": EnergyTable(
      "jouppi_7nm",
      "N. Jouppi et al., ISCA 2021 (7 nm), by secondary sources: NOT VERIFIED against the paper; "
      "division and special functions are 7.1 float32 multiplications (our default)",
      add={"int8": 0.007, "int32": 0.03, "float16": 0.16, "bfloat16": 0.11, "float32": 0.38},
      mul={"int8": 0.07, "int32": 1.48, "float16": 0.34, "bfloat16": 0.21, "float32": 1.31},
      div=9.3,
      special=9.3,
      bit={"sram_8kb": 0.117, "sram_32kb": 0.133, "sram_1mb": 0.219, "dram": 20.3},
    ),
  }
)
"""Tables by name."""

PBITS: Mapping[str, float] = MappingProxyType(
  {"smtj": 2e-3, "cmos": 0.2, "spice_flip": 7.09e-3, "spice_flip_read": 7.09e-3 + 1.7}
)
"""pJ of one sample of a stochastic bit: a magnetic tunnel junction (arXiv 2304.05949; its figure is
secondary), a digital one of like quality, a simulated device, and that one with its read-out."""

MEMORIES: Mapping[str, Mapping[str, str] | None] = MappingProxyType(
  {
    "none": None,
    "on_chip": {"weights": "sram_1mb", "activations": "sram_1mb", "optimizer": "sram_1mb"},
    "dram_weights": {"weights": "dram", "activations": "sram_1mb", "optimizer": "dram"},
  }
)
"""Where each kind of bits lies; None leaves memory out."""


class Energy(NamedTuple):
  """Modelled energy.

  Attributes:
    parts: pJ by what it is spent on: "macs", "index_adds", "ops", "random", "pbits", "weights",
      "activations", "optimizer".
    notes: what a reader of the numbers must know.
  """

  parts: Mapping[str, float]
  notes: tuple[str, ...]

  @property
  def total(self) -> float:
    """PJ."""
    return sum(self.parts.values())


def energy(
  counts: Counts,
  table: str = "horowitz_45nm",
  *,
  pbit: str = "smtj",
  memory: Mapping[str, str] | None = None,
) -> Energy:
  """The energy of `counts`: linear in them.

  A MAC is a multiplication and an addition (int8: added in int32; bit by bit: one 1-bit addition).
  A comparison costs an addition; a random word costs 32 samples of a stochastic bit.

  Args:
    counts: MACs are taken with padding. Products of counts must have been made `index_additions`.
    table: in `TABLES`.
    pbit: in `PBITS`.
    memory: kind of bits -> level of memory, see `MEMORIES`; None leaves memory out.

  Raises:
    ValueError: an unknown name; products of counts, whose firing rates must be measured; a dtype
      or a kind of bits that has no energy here.
  """
  costs = TABLES[_known("energy table", table, TABLES)]
  sample = PBITS[_known("p-bit", pbit, PBITS)]
  parts: dict[str, float] = {}
  notes = list(counts.notes)
  for key, n in counts.items.items():
    part, each = _price(key, costs, sample, memory, notes)
    if part:
      parts[part] = parts.get(part, 0.0) + n * each
  return Energy(parts, unique(notes))


def index_additions(
  counts: Counts, rates: Mapping[str, float], *, reading: str, accumulator: str
) -> Counts:
  """Makes the MACs of products of counts into index additions, at measured rates.

  Args:
    counts: of a trace; its `macs_valid` of the kinds in `rates` are replaced.
    rates: kind of product -> additions for each MAC: the mean count of its inputs ("thermo") or the
      mean number of ones in the counts' binary code ("code").
    reading: "thermo" or "code".
    accumulator: dtype, such as "float32" or "int18", see `accumulator_bits`.
  """
  items: dict[Key, float] = {}
  for key, n in counts.items.items():
    if key.what in ("macs", "macs_valid") and key.kind in rates:
      if key.what == "macs_valid":
        new = Key("index_adds", reading, accumulator, key.phase)
        items[new] = items.get(new, 0) + rates[key.kind] * n
    else:
      items[key] = items.get(key, 0) + n
  return Counts(items, counts.notes)


def accumulator_bits(fan_in: int, units: int, largest_weight: int = 127) -> int:
  """Bits that a sum of `fan_in` counts up to `units` times integer weights needs, with its sign."""
  return math.ceil(math.log2(largest_weight * units * fan_in + 1)) + 1


def _known(what: str, name: str, names: Mapping) -> str:
  if name not in names:
    raise ValueError(f"unknown {what} {name!r}; there are {', '.join(names)}")
  return name


def _price(
  key: Key, costs: EnergyTable, sample: float, memory: Mapping[str, str] | None, notes: list[str]
) -> tuple[str, float]:
  """What one of `key` costs, and under which part; ("", 0) if it is not charged."""

  def add(dtype: str) -> float:
    return _of_dtype(costs, costs.add, dtype, notes)

  def mul(dtype: str) -> float:
    return _of_dtype(costs, costs.mul, dtype, notes)

  if key.what == "macs":
    if key.kind in INDEXED:
      raise ValueError(
        f"products of kind {key.kind!r} add as often as the counts say: measure the rates and "
        "call index_additions"
      )
    if key.kind == "binary_binary":
      return "macs", add("int1")
    if key.kind == "int8":
      return "macs", mul("int8") + add("int32")
    return "macs", mul(key.dtype) + add(key.dtype)
  if key.what == "index_adds":
    return "index_adds", add(key.dtype)
  if key.what == "pbits":
    return "pbits", sample
  if key.what == "ops":
    if key.kind == "random":
      return "random", 32 * sample
    prices = {"div": costs.div, "special": costs.special}
    if key.kind in prices:
      return "ops", prices[key.kind]
    return "ops", mul(key.dtype) if key.kind == "mul" else add(key.dtype)
  if key.what == "bits" and memory is not None:
    if key.kind not in memory:
      raise ValueError(
        f"no level of memory is given for bits of kind {key.kind!r}; there are {', '.join(memory)}"
      )
    return key.kind, costs.bit[_known("level of memory", memory[key.kind], costs.bit)]
  return "", 0.0


def _of_dtype(
  costs: EnergyTable, prices: Mapping[str, float], dtype: str, notes: list[str]
) -> float:
  """Integers between the table's widths are interpolated: in proportion to their bits of int32."""
  if dtype in prices:
    return prices[dtype]
  if dtype == "bfloat16":
    notes.append(f"{costs.name} has no bfloat16: charged as float16")
    return prices["float16"]
  if dtype == "bool":
    dtype = "int1"
  bits = re.fullmatch(r"u?int(\d+)", dtype)
  if not bits:
    raise ValueError(f"energy table {costs.name!r} has no operations of {dtype}")
  if f"int{bits[1]}" in prices:
    return prices[f"int{bits[1]}"]
  return prices["int32"] * int(bits[1]) / 32
