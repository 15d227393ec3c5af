"""What one pass would cost on hardware with stochastic bits, beside arithmetic units: modelled.

Products alone, as the papers compare them: no norms, no memory. A product of counts is so many
additions of weights; that of the image, in the first layer, stays multiply-accumulates of the same
width as the weights. Every table is beside the same net with real units at three widths: float32
alone flatters (the published "10-100x" are against it), int8 is what is built.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments.firing import Product
from fflax.analysis.counts import Counts, Key
from fflax.analysis.energy import energy

WIDTHS = ("float32", "float16", "int8")
"""Of the weights. int8: sums in as many bits as they need, 32 for multiply-accumulates."""

SAMPLES = {"no read-out": "smtj", "with read-out": "spice_flip_read"}
"""Published energies of a stochastic bit, in `fflax.analysis.energy.PBITS`: a magnetic tunnel
junction, and a simulated device whose every sample is read out."""


class Pass(NamedTuple):
  """One pass of one example.

  Attributes:
    macs: multiply-accumulates of reals, padding counted.
    pbits: samples of stochastic bits.
    products: of counts.
  """

  macs: float
  pbits: float = 0
  products: Sequence[Product] = ()


def as_dict(one: Pass) -> dict[str, Any]:
  """Plain values, ready for JSON."""
  return {**one._asdict(), "products": [p._asdict() for p in one.products]}


def from_dict(values: Mapping[str, Any]) -> Pass:
  """The inverse of `as_dict`."""
  products = tuple(Product(**p) for p in values["products"])
  return Pass(values["macs"], values["pbits"], products)


def mean(passes: Sequence[Pass]) -> Pass:
  """Of one network in several states."""
  products = [
    same[0]._replace(
      thermo=sum(p.thermo for p in same) / len(same), code=sum(p.code for p in same) / len(same)
    )
    for same in zip(*(one.products for one in passes), strict=True)
  ]
  return passes[0]._replace(products=products)


def pass_counts(one: Pass, width: str, reading: str, samples: int = 1) -> Counts:
  """The operations of `samples` sampled passes; the product of the image is computed once."""
  kind = "int8" if width == "int8" else "real"
  found = Counts({Key("macs", kind, width): one.macs})
  for product in one.products:
    sums = f"int{product.accumulator_bits}" if width == "int8" else width
    adds = Counts({Key("index_adds", reading, sums): getattr(product, reading)})
    found += samples * adds
  return found + samples * Counts({Key("pbits"): one.pbits})


def pass_energy(
  one: Pass,
  width: str,
  reading: str = "code",
  *,
  samples: int = 1,
  table: str = "horowitz_45nm",
  pbit: str = "smtj",
) -> float:
  """Modelled pJ of the products and stochastic bits of an answer that averages `samples` passes.

  Args:
    one: the pass; of real units, `macs` alone.
    width: of the weights, in `WIDTHS`.
    reading: "thermo" or "code", see `fflax.analysis.firing`.
    samples: T.
    table: in `fflax.analysis.energy.TABLES`.
    pbit: in `fflax.analysis.energy.PBITS`.
  """
  return energy(pass_counts(one, width, reading, samples), table, pbit=pbit).total


def judge(one: Pass, twin: Pass, table: str = "horowitz_45nm") -> list[dict[str, Any]]:
  """Every width and reading beside the real-valued twin at every width.

  Args:
    one: of p-bits.
    twin: of the same net with real units.
    table: in `fflax.analysis.energy.TABLES`.

  Returns:
    Rows with "weights" and "reading", and by the names of `SAMPLES` "pj" and "times": by width of
    the twin's weights, how many times the pass its energy is.
  """
  rows = []
  for width in WIDTHS:
    for reading in ("thermo", "code"):
      pj = {
        name: pass_energy(one, width, reading, table=table, pbit=pbit)
        for name, pbit in SAMPLES.items()
      }
      rivals = {w: pass_energy(twin, w, table=table) for w in WIDTHS}
      times = {name: {w: rival / own for w, rival in rivals.items()} for name, own in pj.items()}
      rows.append({"weights": width, "reading": reading, "pj": pj, "times": times})
  return rows
