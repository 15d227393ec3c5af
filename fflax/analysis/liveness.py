"""Which equations of a traced computation matter for its results."""

from collections.abc import Sequence
from typing import Any

from jax.extend.core import Jaxpr, JaxprEqn, Literal

Live = tuple[bool, ...]


def open_jaxpr(jaxpr: Any) -> Jaxpr:
  """The `Jaxpr` inside a `ClosedJaxpr`, or itself."""
  return getattr(jaxpr, "jaxpr", jaxpr)


def called_jaxpr(eqn: JaxprEqn) -> Jaxpr | None:
  """The body of an equation that calls one jaxpr once, argument by argument; None for others.

  These are jit, custom_jvp, custom_vjp, remat, closed calls and shard_map.
  """
  if eqn.primitive.name in ("scan", "while", "cond", "pallas_call"):
    return None
  for name in ("jaxpr", "call_jaxpr", "fun_jaxpr"):
    body = eqn.params.get(name)
    if body is not None:
      body = open_jaxpr(body)
      if len(body.invars) == len(eqn.invars) and len(body.outvars) == len(eqn.outvars):
        return body
  return None


def live_equations(jaxpr: Jaxpr, live_out: Sequence[bool]) -> tuple[list, Live]:
  """Backward liveness.

  Args:
    jaxpr: the computation.
    live_out: which of its results matter.

  Returns:
    `(equation, which of its results matter)` of every live equation, in order, and which of the
    arguments matter. Equations with side effects are live.
  """
  needed = {v for v, live in zip(jaxpr.outvars, live_out, strict=True) if live and _is_var(v)}
  kept = []
  for eqn in reversed(jaxpr.eqns):
    live = tuple(v in needed for v in eqn.outvars)
    if any(live) or eqn.effects:
      kept.append((eqn, live))
      used = _live_inputs(eqn, live)
      needed |= {v for v, u in zip(eqn.invars, used, strict=True) if u and _is_var(v)}
  return kept[::-1], tuple(v in needed for v in jaxpr.invars)


def scan_body_live(eqn: JaxprEqn, live: Live) -> tuple[Live, Live]:
  """What of a scan's body matters when `live` of its results do: `(body's results, arguments)`.

  A carry matters if it does at the end, or if the next turn reads it.
  """
  constants, carries = _constants_and_carries(eqn)
  body = open_jaxpr(eqn.params["jaxpr"])
  while True:
    _, used = live_equations(body, live)
    read = used[constants : constants + carries]
    new = tuple(a or b for a, b in zip(live, read, strict=False)) + live[carries:]
    if new == live:
      return live, used
    live = new


def _constants_and_carries(eqn: JaxprEqn) -> tuple[int, int]:
  """How many of a scan's arguments, the first and the next, are constants and carries."""
  if "num_consts" in eqn.params:
    return eqn.params["num_consts"], eqn.params["num_carry"]
  constants, carries, _ = eqn.params["ft_in"].unpack()  # from jax 0.12 on
  return len(list(constants)), len(list(carries))


def _is_var(v: Any) -> bool:
  return not isinstance(v, Literal)


def _live_inputs(eqn: JaxprEqn, live: Live) -> Live:
  if eqn.primitive.name == "scan":
    constants, carries = _constants_and_carries(eqn)
    live, used = scan_body_live(eqn, live)
    carried = used[constants : constants + carries]
    final = tuple(a or b for a, b in zip(live, carried, strict=False))
    return used[:constants] + final + used[constants + carries :]
  if eqn.primitive.name == "cond":
    branches = [live_equations(open_jaxpr(b), live)[1] for b in eqn.params["branches"]]
    return (True, *(any(column) for column in zip(*branches, strict=True)))
  body = called_jaxpr(eqn)
  if body is not None:
    return live_equations(body, live)[1]
  # Everything else, `while` included, is taken to read all of its arguments.
  return (True,) * len(eqn.invars)
