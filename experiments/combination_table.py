"""The table of what combines, in Markdown, from the outcomes of points; never written by hand."""

import collections
from collections.abc import Iterable, Mapping, Sequence

from experiments.product import FACTORS, Point
from experiments.trial import Outcome

PARTNERS = ("network", "numerics", "schedule", "readout")
"""Each has a table against the methods."""
UNTRIED = "?"

Outcomes = Mapping[Point, Outcome]


class Footnotes:
  """Numbers the reasons of refusals in the order in which they are met."""

  def __init__(self) -> None:
    self._number: dict[str, int] = {}

  def mark(self, reason: str) -> str:
    """`[n]`, the same for the same reason."""
    return f"[{self._number.setdefault(reason, len(self._number) + 1)}]"

  def lines(self) -> list[str]:
    """One line a reason."""
    return [f"{number}. {reason}" for reason, number in self._number.items()]


def table_groups(done: Outcomes) -> list[Point]:
  """The points that the tables need and `done` has not, one a group (any readout).

  Numerics and schedules are tried on the method's first network that works, so there may be more
  once these are done. Deep networks, which take longest, come last.
  """
  first = FACTORS["readout"][0]
  methods, networks = FACTORS["method"], FACTORS["network"]
  wanted = [Point(networks[0], "float32", m, "simultaneous", first) for m in methods]
  for method in methods:
    base = home(done, method)
    if base is not None:
      wanted += [Point(base, n, method, "simultaneous", first) for n in FACTORS["numerics"]]
      wanted += [Point(base, "float32", method, s, first) for s in FACTORS["schedule"]]
  wanted += [Point(n, "float32", m, "simultaneous", first) for n in networks for m in methods]
  return [point for point in dict.fromkeys(wanted) if point not in done]


def home(done: Outcomes, method: str) -> str | None:
  """The first network that the method trains, in the order of the registry."""
  for network in FACTORS["network"]:
    if any(o.verdict == "works" for o in _pair(done, method, network=network)):
      return network
  return None


def _pair(done: Outcomes, method: str, **fixed: str) -> list[Outcome]:
  """Outcomes of a method with one other choice: the others at their plainest, any readout."""
  plain = {"numerics": "float32", "schedule": "simultaneous", "extra": "none"} | fixed
  names = FACTORS["readout"] if "readout" not in fixed else (fixed["readout"],)
  networks = FACTORS["network"] if "network" not in fixed else (fixed["network"],)
  choice = {k: v for k, v in plain.items() if k not in ("readout", "network")}
  points = (Point(network=n, method=method, readout=r, **choice) for n in networks for r in names)
  return [done[point] for point in points if point in done]


def cell_outcomes(done: Outcomes, method: str, partner: str, name: str) -> list[Outcome]:
  """What a cell stands for; readouts that never work are no reason in the other tables."""
  if partner == "readout":
    return _pair(done, method, readout=name)
  fixed = {partner: name}
  if partner not in ("network", "extra"):
    base = home(done, method)
    if base is None:
      return []
    fixed["network"] = base
  fit = {o.point.readout for o in _pair(done, method) if o.verdict == "works"}
  found = _pair(done, method, **fixed)
  return [o for o in found if o.point.readout in fit] or found


def _reason(outcomes: Sequence[Outcome]) -> str | None:
  """None if a point works; else the reason that most of them give; "" if none was tried."""
  if any(o.verdict == "works" for o in outcomes):
    return None
  if not outcomes:
    return ""
  return collections.Counter(o.reason for o in outcomes).most_common(1)[0][0]


def pair_table(done: Outcomes, partner: str, notes: Footnotes) -> list[str]:
  """Methods down, the names of one other choice across."""
  names = FACTORS[partner]
  lines = [f"| method | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
  for method in FACTORS["method"]:
    reasons = [_reason(cell_outcomes(done, method, partner, name)) for name in names]
    cells = ["yes" if r is None else notes.mark(r) if r else UNTRIED for r in reasons]
    lines.append(f"| {method} | {' | '.join(cells)} |")
  return lines


def summary_table(done: Outcomes) -> list[str]:
  """The same in one table: what each method combines with."""
  lines = [f"| method | {' | '.join(PARTNERS)} |", "|---" * (len(PARTNERS) + 1) + "|"]
  for method in FACTORS["method"]:
    cells = []
    for partner in PARTNERS:
      names = FACTORS[partner]
      reasons = {n: _reason(cell_outcomes(done, method, partner, n)) for n in names}
      tried = [n for n in names if reasons[n] != ""]
      untried = f" ({len(names) - len(tried)} untried)" if len(tried) < len(names) else ""
      works = [n for n in tried if reasons[n] is None]
      cells.append(_in_words(works, tried) + untried)
    lines.append(f"| {method} | {' | '.join(cells)} |")
  return lines


def _in_words(works: Sequence[str], names: Sequence[str]) -> str:
  missing = [n for n in names if n not in works]
  if not missing:
    return f"all {len(names)}"
  if len(missing) < len(works):
    return f"all but {', '.join(missing)}"
  return ", ".join(works) or "none"


def counts(done: Iterable[Outcome]) -> str:
  """How many points of which verdict, in words."""
  every = list(done)
  number = collections.Counter(o.verdict for o in every)
  return (
    f"{len(every):,} points: {number['works']:,} work, {number['refused']:,} are refused in one "
    f"sentence, {number['fails']:,} fail"
  )


Pair = frozenset[tuple[str, str]]


def pair_of(point: Point, partner: str) -> Pair:
  """The point's method and one other choice, as `product.covering` writes pairs."""
  return frozenset({("method", point.method), (partner, getattr(point, partner))})


def refused_pairs(done: Outcomes) -> set[Pair]:
  """The pairs that the tables, and the extras as far as they were tried, refuse."""
  found = set()
  for method in FACTORS["method"]:
    for partner in (*PARTNERS, "extra"):
      for name in FACTORS[partner]:
        outcomes = cell_outcomes(done, method, partner, name)
        if outcomes and _reason(outcomes) is not None:
          found.add(frozenset({("method", method), (partner, name)}))
  return found


def unexplained(done: Outcomes) -> list[Outcome]:
  """Points without extras that are refused although every pair with their method works."""
  pairs = refused_pairs(done)
  return [
    o
    for o in done.values()
    if o.verdict == "refused"
    and o.point.extra == "none"
    and not any(pair_of(o.point, partner) in pairs for partner in PARTNERS)
  ]


def page(done: Outcomes, trained: Sequence[Outcome] = ()) -> str:
  """The long tables, the reasons and the counts of traced points and of trained ones."""
  notes = Footnotes()
  parts: list[str] = []
  for partner in PARTNERS:
    parts += [f"## method x {partner}", *pair_table(done, partner, notes), ""]
  parts += ["## Why not", *notes.lines(), ""]
  parts += ["## Tried", f"- Traced, two steps and an answer by shape: {counts(done.values())}."]
  if trained:
    parts.append(f"- Trained for two steps, every pair of names: {counts(trained)}.")
  odd = unexplained(done)
  if odd:
    parts.append(
      f"- {len(odd):,} refused points are made of pairs that all work in the tables; their reasons:"
    )
    for reason, number in collections.Counter(o.reason for o in odd).most_common():
      parts.append(f"  - {number:,}: {reason}")
  return "\n".join(parts)
