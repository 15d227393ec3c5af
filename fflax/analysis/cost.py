"""Counts the operations of any function from its trace, without running it.

Products carry their kind as a name: `jax.named_scope("fflax.product:<kind>")`, because a dtype
cannot say that an int8 array holds bits. The innermost name wins and survives differentiation.
A scope `fflax.core.tags.counts` around products makes `real`, `int8` and `integer` those of counts,
stored in as many bits as the largest count needs. The input gradient of such a product, which
strict methods do not have, is a product of reals, but counted as if it were one of counts. Under
`fflax.core.tags.SAMPLES` each comparison is one sample of a stochastic bit, all else is free.

A scope holds the product alone, no scaling: if it is written as element-wise multiplications (as
depthwise convolutions may be), each is one MAC, and additions within are free.

| kind | operands |
|---|---|
| `real` (untagged floats), or tagged with a dtype, such as `bfloat16` | float x float |
| `int8` (untagged 8-bit integers) | int8 x int8, summed in int32 |
| `integer` (other untagged integers) | integers |
| `count_real`, `count_int8`, `count_int` | counts x weights, or x small integers: additions only |
| `binary_binary` | bit x bit |
| `fixed` | a projection that is never trained |

Counts are algorithmic, as traced: the compiler may do less (fusion, padding) or more.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import Jaxpr, JaxprEqn

from fflax.analysis.counts import Counts, Key, unique
from fflax.analysis.elementwise import elementwise_ops
from fflax.analysis.liveness import called_jaxpr, live_equations, open_jaxpr, scan_body_live
from fflax.analysis.products import Macs, conv_macs, dot_macs
from fflax.core import tags

TAG = tags.PRODUCT
"""What the name of a product's scope starts with."""

INDEXED = ("count_real", "count_int8", "count_int")
"""Kinds whose MACs are index additions, as many as the counts say."""

_KIND = re.compile(re.escape(TAG) + r"(\w+)")
_COUNTS = re.compile(re.escape(tags.COUNTS) + r"(\d+):(\d+)")
_OF_COUNTS = {"real": "count_real", "int8": "count_int8", "integer": "count_int"}
_DTYPES = ("float32", "float16", "bfloat16")
_STORED_BITS = {"int8": 8, "count_int8": 8, "binary_binary": 1}


def count(fn: Callable, *args: Any, while_trips: int | None = None) -> Counts:
  """Counts what `fn(*args)` computes towards its results.

  Equations that no result needs are not counted; loops count as often as they turn, and a
  conditional as its dearest branch. Memory traffic is compulsory only: every operand and result of
  a product once, at its storage width (accumulators of int8 products are not stored).

  Args:
    fn: any traceable function.
    *args: arrays, or `jax.ShapeDtypeStruct`s in their place.
    while_trips: turns of every `while` loop without a static length.

  Returns:
    Whole numbers: "macs", "macs_valid", "ops" and "bits" of kind "products"; see `Key`.

  Raises:
    ValueError: the trace holds a `while` loop and `while_trips` is None, or a kernel without a
      `cost_estimate`.

  Example:
    A product of [8, 16] and [16, 4].
    >>> import jax.numpy as jnp
    >>> counts = count(jnp.dot, jnp.zeros((8, 16)), jnp.zeros((16, 4)))
    >>> counts.total("macs") == 8 * 16 * 4
    True
  """
  closed = jax.make_jaxpr(fn)(*args)
  return _Walk(while_trips).jaxpr(closed.jaxpr, (True,) * len(closed.jaxpr.outvars), "")


class _Walk:
  """One walk over a trace; `path` is the name stack of the equations around."""

  def __init__(self, while_trips: int | None):
    self._while_trips = while_trips

  def jaxpr(self, jaxpr: Jaxpr, live_out: Sequence[bool], path: str) -> Counts:
    items: Counter[Key] = Counter()
    notes: list[str] = []
    for eqn, live in live_equations(jaxpr, live_out)[0]:
      found = self._equation(eqn, live, f"{path}/{eqn.source_info.name_stack}")
      for key, n in found.items.items():
        items[key] += n  # type: ignore[assignment]
      notes += found.notes
    return Counts(dict(items), unique(notes))

  def _equation(self, eqn: JaxprEqn, live: tuple[bool, ...], path: str) -> Counts:
    name = eqn.primitive.name
    if name == "dot_general":
      return _product(eqn, dot_macs(eqn), path)
    if name == "conv_general_dilated":
      return _product(eqn, conv_macs(eqn), path)
    if name == "scan":
      body_live, _ = scan_body_live(eqn, live)
      return eqn.params["length"] * self.jaxpr(open_jaxpr(eqn.params["jaxpr"]), body_live, path)
    if name == "cond":
      return self._cond(eqn, live, path)
    if name == "while":
      return self._while(eqn, path)
    if name == "pallas_call":
      return _kernel(eqn, path)
    body = called_jaxpr(eqn)
    if body is not None:
      counts = self.jaxpr(body, live, path)
      return _shards(eqn) * counts if name == "shard_map" else counts
    return _elementwise(eqn, path)

  def _cond(self, eqn: JaxprEqn, live: tuple[bool, ...], path: str) -> Counts:
    branches = [self.jaxpr(open_jaxpr(b), live, path) for b in eqn.params["branches"]]
    weights = ("macs", "ops", "bits", "pbits")
    dearest = max(branches, key=lambda c: tuple(map(c.total, weights)))
    if all(b.items == dearest.items for b in branches):
      return dearest
    note = "conditionals count as their dearest branch"
    return Counts(dearest.items, unique([*dearest.notes, note]))

  def _while(self, eqn: JaxprEqn, path: str) -> Counts:
    if self._while_trips is None:
      raise ValueError(
        "the trace holds a while loop, whose number of turns it does not say: pass while_trips"
      )
    parts = [open_jaxpr(eqn.params[name]) for name in ("cond_jaxpr", "body_jaxpr")]
    turn = sum((self.jaxpr(p, (True,) * len(p.outvars), path) for p in parts), start=Counts({}))
    turns = self._while_trips
    return turns * turn + Counts({}, (f"while loops count as {turns} turns",))


def _avals(*variables: Any) -> list[Any]:
  return [v.aval for v in variables]


def _phase(path: str) -> str:
  if "rematted_computation" in path:
    return "recompute"
  return "backward" if "transpose(" in path else "forward"


def _tag(path: str) -> str | None:
  tags = _KIND.findall(path)
  return tags[-1] if tags else None


def counts_of(path: str) -> tuple[int, int]:
  """What a product under this name stack reads and emits, see `fflax.core.tags.counts`."""
  found = _COUNTS.findall(path)
  return (int(found[-1][0]), int(found[-1][1])) if found else (0, 0)


def _kind_and_dtype(path: str, *operands: Any) -> tuple[str, str]:
  """From the innermost tag; from the operands' dtypes where there is none."""
  kind, dtype = _own_kind_and_dtype(path, *operands)
  return (_OF_COUNTS.get(kind, kind) if counts_of(path)[0] else kind), dtype


def _own_kind_and_dtype(path: str, *operands: Any) -> tuple[str, str]:
  dtype, tag = jnp.result_type(*(a.dtype for a in operands)), _tag(path)
  if tag in _DTYPES:
    return "real", tag
  if tag == "int8":
    return tag, tag
  if tag is not None:
    return tag, str(dtype)
  if not jnp.issubdtype(dtype, jnp.integer):
    return "real", str(dtype)
  if all(a.dtype.itemsize == 1 for a in operands):
    return "int8", "int8"
  return "integer", str(dtype)


def _product(eqn: JaxprEqn, macs: Macs, path: str) -> Counts:
  """A product's MACs and bits."""
  left, right, out = _avals(*eqn.invars[:2], eqn.outvars[0])
  kind, dtype = _kind_and_dtype(path, left, right)
  phase, (reads, emits) = _phase(path), counts_of(path)

  def operand_bits(aval: Any) -> int:
    width = aval.dtype.itemsize * 8
    if kind in ("real", "count_real"):  # a tag may know better than the trace
      width = min(width, jnp.dtype(dtype).itemsize * 8)
    return aval.size * _STORED_BITS.get(kind, width)

  # Counts are the left operand as the network multiplies; who transposes may bring them elsewhere.
  left_bits = left.size * reads.bit_length() if reads and phase == "forward" else operand_bits(left)
  width = 8 if kind in ("int8", "count_int8") else out.dtype.itemsize * 8
  out_bits = out.size * (emits.bit_length() if emits and phase == "forward" else width)
  return Counts(
    {
      Key("macs", kind, dtype, phase): macs.dense,
      Key("macs_valid", kind, dtype, phase): macs.valid,
      Key("bits", "products", dtype, phase): left_bits + operand_bits(right) + out_bits,
    }
  )


def _elementwise(eqn: JaxprEqn, path: str) -> Counts:
  name = eqn.primitive.name
  if not eqn.outvars:  # an effect only
    return Counts({})
  if tags.SAMPLES in path:
    # The unit draws by itself: neither its sigmoid nor its noise is computed.
    samples = _avals(eqn.outvars[0])[0].size if name == "lt" else 0
    return Counts({Key("pbits", phase=_phase(path)): samples} if samples else {})
  ops = elementwise_ops(eqn)
  if ops is None:
    if any(hasattr(open_jaxpr(p), "eqns") for p in eqn.params.values()):
      raise ValueError(f"it is not known how often primitive {name!r} runs its body")
    return Counts({}, (f"not counted: {name}",))
  if not ops.number or (_tag(path) and ops.kind in ("add", "reduce")):
    return Counts({})
  if _tag(path) and ops.kind == "mul":
    fields = (*_kind_and_dtype(path, *_avals(*eqn.invars)), _phase(path))
    return Counts({Key("macs", *fields): ops.number, Key("macs_valid", *fields): ops.number})
  return Counts({Key("ops", ops.kind, ops.dtype, _phase(path)): ops.number})


def _kernel(eqn: JaxprEqn, path: str) -> Counts:
  """A Pallas kernel is what it says of itself."""
  cost = eqn.params.get("cost_estimate")
  if cost is None:
    raise ValueError(
      f"kernel {eqn.params.get('name') or '(without a name)'} has no cost_estimate: give "
      "pallas_call one"
    )
  phase, dtype = _phase(path), str(_avals(eqn.invars[0])[0].dtype)
  kind = _tag(path) or "real"
  if kind in _DTYPES:
    kind, dtype = "real", kind
  macs = cost.flops // 2
  items = {
    Key("macs", kind, dtype, phase): macs,
    Key("macs_valid", kind, dtype, phase): macs,
    Key("ops", "special", dtype, phase): cost.transcendentals,
    Key("bits", "products", dtype, phase): 8 * cost.bytes_accessed,
  }
  note = "kernels count as their cost_estimate, 2 flops a MAC"
  return Counts({key: n for key, n in items.items() if n}, (note,))


def _shards(eqn: JaxprEqn) -> int:
  """Over how many devices a `shard_map` runs its body: the size of its axes."""
  mesh = eqn.params["mesh"]
  axes = eqn.params.get("newly_manual_axes") or eqn.params.get("manual_axes") or mesh.axis_names
  shards = 1
  for axis in axes:
    shards *= mesh.shape[axis]
  return shards
