"""Firing rates as measured, and the index additions that follow from them, exactly.

What p-bits cost depends on how often they are on, so it cannot be read from shapes. `find_readers`
finds in a trace the products that read a layer's counts, `measure` counts on real samples. Counts
are those that the next product reads, pooled; norms between them are absorbed, see
`fflax.core.tags.counts`.

Two readings of a count: "thermo" (each of M lines adds once) and "code" (each one in the count's
binary code adds once, shifted).
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from fflax.analysis.cost import counts_of
from fflax.analysis.liveness import called_jaxpr, live_equations
from fflax.analysis.products import conv_macs, dot_macs, shape_of
from fflax.analysis.traffic import code_ones, conv_touches
from fflax.types import Array

READINGS = ("thermo", "code")


class Reader(NamedTuple):
  """A product whose left operand are counts.

  Attributes:
    outputs: additions that one count of 1 causes, at each place of the output that it meets.
    fan_in: numbers that are summed for one output.
    macs: multiply-accumulates of the trace, padding not counted.
    conv: field, strides, padding and dilation of a convolution; None for a dense product, where
      every count meets every output.
  """

  outputs: int
  fan_in: int
  macs: int
  conv: tuple | None = None


def find_readers(fn: Callable, *args: Any) -> tuple[Reader, ...]:
  """The products of counts that `fn(*args)` needs, in the order of its trace.

  Args:
    fn: a function whose products are those of `jax.lax` (see `fflax.analysis.plain`), without
      loops.
    *args: arrays, or `jax.ShapeDtypeStruct`s in their place, of one example, so that `macs` are
      those of an example.

  Raises:
    ValueError: a product of counts whose layout is not known here.
  """
  found: list[Reader] = []
  jaxpr = jax.make_jaxpr(fn)(*args).jaxpr
  _walk(jaxpr, (True,) * len(jaxpr.outvars), "", found)
  return tuple(found)


def _walk(jaxpr: Jaxpr, live_out: Sequence[bool], path: str, found: list[Reader]) -> None:
  for eqn, live in live_equations(jaxpr, live_out)[0]:
    name, here = eqn.primitive.name, f"{path}/{eqn.source_info.name_stack}"
    if name in ("dot_general", "conv_general_dilated"):
      if counts_of(here)[0]:
        found.append(_dense(eqn) if name == "dot_general" else _conv(eqn))
    elif (body := called_jaxpr(eqn)) is not None:
      _walk(body, live, here, found)


def _dense(eqn: JaxprEqn) -> Reader:
  (left, _), (batch, _) = eqn.params["dimension_numbers"]
  lhs, rhs = (shape_of(v) for v in eqn.invars)
  if batch or tuple(left) != (len(lhs) - 1,):
    raise ValueError(f"a product of counts {lhs} with {rhs} that does not contract the last axis")
  fan_in = lhs[-1]
  return Reader(int(np.prod(rhs)) // fan_in, fan_in, dot_macs(eqn).valid)


def _conv(eqn: JaxprEqn) -> Reader:
  params = eqn.params
  numbers, lhs, rhs = params["dimension_numbers"], *(shape_of(v) for v in eqn.invars)
  if (tuple(numbers.lhs_spec), tuple(numbers.rhs_spec)) != ((0, 3, 1, 2), (3, 2, 0, 1)):
    raise ValueError(f"a convolution of counts {lhs} with {rhs} that is not NHWC, HWIO")
  height, width, inside, features = rhs
  conv = (
    (height, width),
    tuple(params["window_strides"]),
    tuple(tuple(pad) for pad in params["padding"]),
    tuple(params["rhs_dilation"]),
  )
  outputs = features // params["feature_group_count"]
  return Reader(outputs, height * width * inside, conv_macs(eqn).valid, conv)


@dataclasses.dataclass(frozen=True)
class Firing:
  """What a layer's counts were, as whole numbers summed over examples; `+` joins measurements.

  Attributes:
    units: M.
    examples: how many were measured.
    sites: counts of one example.
    on: the sum of all counts.
    ones: ones in their binary codes.
    nonzero: counts that are not 0.
    lines: how many counts are at least 1, 2, ..., M: what each line of a thermometer code carries.
      After a pool this is all that is left of single units.
    thermo, code: index additions of each reader.
  """

  units: int
  examples: int
  sites: int
  on: int
  ones: int
  nonzero: int
  lines: tuple[int, ...]
  thermo: tuple[int, ...]
  code: tuple[int, ...]

  def __add__(self, other: "Firing") -> "Firing":
    if (self.units, self.sites) != (other.units, other.sites):
      raise ValueError("only measurements of the same layer can be added")
    sums: dict[str, Any] = {"units": self.units, "sites": self.sites}
    for field in dataclasses.fields(self):
      a, b = getattr(self, field.name), getattr(other, field.name)
      if field.name not in sums:
        sums[field.name] = tuple(map(operator.add, a, b)) if isinstance(a, tuple) else a + b
    return Firing(**sums)

  @property
  def rates(self) -> dict[str, Any]:
    """Means of one count: "mean_count", "code_ones", "nonzero" and "lines", the list of M."""
    total = self.examples * self.sites
    return {
      "mean_count": self.on / total,
      "code_ones": self.ones / total,
      "nonzero": self.nonzero / total,
      "lines": [n / total for n in self.lines],
    }

  def index_adds(self, reading: str) -> list[float]:
    """Index additions of one example, by reader."""
    return [n / self.examples for n in (self.thermo if reading == "thermo" else self.code)]


def measure(counts: Array, units: int, readers: Sequence[Reader] = ()) -> Firing:
  """Counts a batch of samples.

  Args:
    counts: `[B, ...]`, whole numbers from 0 to M of any dtype; `[B, H, W, C]` if a reader is a
      convolution.
    units: M.
    readers: of these counts.
  """
  # Sums of one example fit into int32; those of a batch, times channels, need not.
  sums = [np.asarray(a).astype(np.int64).sum(0) for a in _tally(counts, units, tuple(readers))]
  outputs = np.array([reader.outputs for reader in readers], np.int64)
  on, ones, nonzero = (int(n) for n in sums[:3])
  lines, thermo, code = (
    tuple(map(int, row)) for row in (sums[3], outputs * sums[4], outputs * sums[5])
  )
  sites = int(np.prod(counts.shape[1:]))
  return Firing(units, len(counts), sites, on, ones, nonzero, lines, thermo, code)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _tally(counts: Array, units: int, readers: tuple[Reader, ...]) -> tuple[Array, ...]:
  """For each example, int32: on, ones, nonzero, lines, and what readers add for one output."""
  counts = jnp.round(counts).astype(jnp.int32)
  ones, size = code_ones(counts), len(counts)

  def total(x: Array) -> Array:
    return jnp.sum(x.reshape(size, -1).astype(jnp.int32), axis=1)

  def adds(x: Array) -> Array:
    rows = [total(x) if r.conv is None else conv_touches(x, *r.conv) for r in readers]
    return jnp.stack(rows, axis=1) if rows else jnp.zeros((size, 0), jnp.int32)

  lines = jnp.stack([total(counts >= m) for m in range(1, units + 1)], axis=1)
  return total(counts), total(ones), total(counts > 0), lines, adds(counts), adds(ones)
