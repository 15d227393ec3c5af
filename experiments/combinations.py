"""Tries the product of choices and writes the table of what combines.

  python -m experiments.combinations [--walk=table,extras,pairs,all] [--jobs=2] [--write]

Walks: "table" traces what the tables of README.md and docs/combinations.md show; "extras" traces
every method with look-ahead, weights at rest, p-bits and so on, on two networks; "pairs" trains two
steps of points that hold every pair of names of two choices that go together; "all" traces the
whole product, which takes hours. Outcomes are appended to `--outcomes`, so a walk that was cut goes
on where it was; those of another commit do not count. Exit code 1 if any point fails.
"""

import concurrent.futures
import json
import multiprocessing
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence

from absl import flags

from experiments import cli, combination_table, marked, product, workdir
from experiments.assembly import check
from experiments.console import console
from experiments.product import EXTRAS, FACTORS, Point
from experiments.trial import Outcome, attempt

_WALK = flags.DEFINE_list("walk", ["table", "extras", "pairs"], "table, extras, pairs or all")
_JOBS = flags.DEFINE_integer("jobs", os.cpu_count() or 1, "processes", lower_bound=1)
_OUTCOMES = flags.DEFINE_string("outcomes", "runs/combinations.jsonl", "file of the outcomes")
_WRITE = flags.DEFINE_bool("write", False, "write the tables")

WALKS = ("table", "extras", "pairs", "all")
_ROOT = pathlib.Path(__file__).resolve().parents[1]

Work = tuple[tuple[Point, ...], bool]
"""Points of one group, and whether they are trained."""


def with_readouts(point: Point) -> tuple[Point, ...]:
  """The group of a point: it with every readout."""
  return tuple(point._replace(readout=name) for name in FACTORS["readout"])


def extra_groups() -> Iterator[Point]:
  """Every extra with every method, on the first network and on the first with convolutions."""
  first = FACTORS["readout"][0]
  for extra in EXTRAS:
    for network in FACTORS["network"][:2]:
      for method in FACTORS["method"]:
        if extra != "none":
          yield Point(network, "float32", method, "simultaneous", first, extra)


def sample(done: combination_table.Outcomes) -> list[Point]:
  """Points that hold every pair of names that goes together, as far as `done` knows."""

  def possible(row: dict[str, str]) -> bool:
    try:
      check(product.configuration(Point(**row)))
    except ValueError:
      return False
    return True

  rows = product.covering(FACTORS, combination_table.refused_pairs(done), possible)
  return [Point(**row) for row in rows]


def work_of(walk: str, done: combination_table.Outcomes) -> list[Work]:
  """What a walk still has to do."""
  if walk == "pairs":
    return [((point,), True) for point in sample(done)]
  first = FACTORS["readout"][0]
  found: Iterable[Point] = {
    "table": lambda: combination_table.table_groups(done),
    "extras": extra_groups,
    "all": lambda: (p for p in product.points() if p.readout == first),
  }[walk]()
  return [(with_readouts(point), False) for point in found]


def left(walk: str, done: Mapping[tuple[Point, bool], Outcome]) -> list[Work]:
  """The groups of a walk that hold a point which was not tried in its way."""
  traced = {point: o for (point, trained), o in done.items() if not trained}
  works = work_of(walk, traced)
  return [(group, train) for group, train in works if any((p, train) not in done for p in group)]


def _start() -> None:
  os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _try(work: Work) -> list[Outcome]:
  import jax

  jax.config.update("jax_numpy_rank_promotion", "raise")
  outcomes = attempt(*work)
  jax.clear_caches()  # no two groups share a program
  return outcomes


def read(path: pathlib.Path) -> dict[tuple[Point, bool], Outcome]:
  """Outcomes of this commit by point and kind; lines that a kill left unfinished do not count."""
  found: dict[tuple[Point, bool], Outcome] = {}
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
    except json.JSONDecodeError:
      continue
    if row.pop("commit") == workdir.commit():
      outcome = Outcome(**{**row, "point": Point(*row["point"])})
      found[outcome.point, outcome.trained] = outcome
  return found


def tried(works: Sequence[Work], jobs: int) -> Iterator[list[Outcome]]:
  """The outcomes of all groups as they come."""
  spawn = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(jobs, spawn, _start) as pool:
    futures = [pool.submit(_try, work) for work in works]
    for future in concurrent.futures.as_completed(futures):
      yield future.result()


def main(argv: list[str]) -> int:
  del argv
  path = pathlib.Path(_OUTCOMES.value).expanduser()
  with cli.checking():
    for name in _WALK.value:
      if name not in WALKS:
        raise ValueError(f"unknown walk {name!r}; there are {', '.join(WALKS)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = read(path)
  with path.open("a") as file:
    file.write("\n")  # behind a line that was cut
    for walk in _WALK.value:
      while works := left(walk, done):  # what a table needs may show only when a part is done
        console.print(f"{walk:9} {len(works)} groups to try")
        for outcomes in tried(works, _JOBS.value):
          for outcome in outcomes:
            done[outcome.point, outcome.trained] = outcome
            file.write(json.dumps({**outcome._asdict(), "commit": workdir.commit()}) + "\n")
            if outcome.verdict == "fails":
              console.print(f"FAILS     {outcome.point}: {outcome.reason}")
          file.flush()
  for trained in (False, True):
    own = [o for (_, kind), o in done.items() if kind is trained]
    console.print(f"{'trained' if trained else 'traced':9} {combination_table.counts(own)}")
  if _WRITE.value:
    traced = {point: o for (point, trained), o in done.items() if not trained}
    trained_ones = [o for (_, trained), o in done.items() if trained]
    pages = {
      "README.md": "\n".join(combination_table.summary_table(traced)),
      "docs/combinations.md": combination_table.page(traced, trained_ones),
    }
    with cli.checking():
      for name, text in pages.items():
        marked.write_between(_ROOT / name, "combinations", text)
        console.print(f"wrote     {name}")
  return 1 if any(o.verdict == "fails" for o in done.values()) else 0


if __name__ == "__main__":
  cli.run(main)
