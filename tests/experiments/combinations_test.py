"""What combines: a sample of the product is tried, and the committed tables know all names."""

import itertools
import json
import re

import jax
import pytest

from experiments import combination_table, combinations, marked, product, trial, workdir
from experiments.product import FACTORS, Point
from experiments.trial import Outcome

MARKS = marked.marks("combinations")


def test_every_allowed_pair_stands_in_a_row_and_no_forbidden_one():
  factors = {"a": tuple("pqrs"), "b": tuple("tuv"), "c": tuple("wxyz"), "d": tuple("kl")}
  forbidden = {frozenset({("a", "p"), ("b", "t")})}
  possible = lambda row: not (row["c"] == "w" and row["d"] == "k")  # noqa: E731
  rows = product.covering(factors, forbidden, possible)
  pairs = {frozenset(p) for row in rows for p in itertools.combinations(row.items(), 2)}
  values = [(name, value) for name in factors for value in factors[name]]
  every = {frozenset((a, b)) for a, b in itertools.combinations(values, 2) if a[0] != b[0]}
  assert every - pairs == {*forbidden, frozenset({("c", "w"), ("d", "k")})}
  assert all(possible(row) for row in rows)
  assert len(rows) < 24  # 16 hold the largest two factors; the whole product has 96
  assert rows == product.covering(factors, forbidden, possible)


def test_the_committed_tables_know_all_names(repo_root):
  """A name that is registered or dropped without `make combinations` shows here."""
  page = (repo_root / "docs" / "combinations.md").read_text()
  readme = (repo_root / "README.md").read_text()
  inside = [text.partition(MARKS[0])[2].partition(MARKS[1])[0] for text in (page, readme)]
  tables = re.findall(r"^\| method \|.*(?:\n\|.*)*", inside[0], flags=re.MULTILINE)
  assert len(tables) == len(combination_table.PARTNERS)
  for partner, table in zip(combination_table.PARTNERS, tables, strict=True):
    rows = [[c.strip() for c in line.strip("|").split("|")] for line in table.splitlines()]
    assert rows[0] == ["method", *FACTORS[partner]]
    assert [row[0] for row in rows[2:]] == list(FACTORS["method"])
    assert all(len(row) == len(rows[0]) and all(row) for row in rows)
  assert [line.split("|")[1].strip() for line in inside[1].strip().splitlines()[2:]] == list(
    FACTORS["method"]
  )


def outcomes(works) -> dict[Point, Outcome]:
  """As of a whole walk in which `works(point)` gives "" or the reason of a refusal."""
  every = {p: works(p) for p in product.points()}
  return {p: Outcome(p, "refused" if why else "works", why) for p, why in every.items()}


def test_tables_say_what_was_found(tmp_path):
  def works(point: Point) -> str:
    if point.method == "backprop" and point.schedule == "greedy":
      return "backprop is global"
    if point.method == "recurrent" and point.network != "mlp":
      return "no two-way layers"
    return "odd" if (point.network, point.readout) == ("vit", "vote") else ""

  done = outcomes(works)
  assert not combination_table.table_groups(done)
  table = combination_table.pair_table(done, "network", combination_table.Footnotes())
  row = next(line for line in table if line.startswith("| recurrent"))
  assert row == "| recurrent | yes |" + " [1] |" * (len(FACTORS["network"]) - 1)
  summary = "\n".join(combination_table.summary_table(done))
  assert "| recurrent | mlp |" in summary
  assert "| all but greedy |" in summary
  pairs = combination_table.refused_pairs(done)
  assert frozenset({("method", "backprop"), ("schedule", "greedy")}) in pairs
  odd = combination_table.unexplained(done)
  assert odd and {o.reason for o in odd} == {"odd"}
  page = combination_table.page(done)
  assert "1. no two-way layers" in page and "2. backprop is global" in page
  target = tmp_path / "page.md"
  target.write_text(f"before\n{MARKS[0]}\nold\n{MARKS[1]}\nafter\n")
  marked.write_between(target, "combinations", page)
  assert target.read_text() == f"before\n{MARKS[0]}\n{page}\n{MARKS[1]}\nafter\n"
  for text in ("no marks", f"{MARKS[1]}\n{MARKS[0]}\nafter\n", MARKS[0] * 2 + MARKS[1]):
    target.write_text(text)
    with pytest.raises(ValueError, match="once each"):
      marked.write_between(target, "combinations", page)
    assert target.read_text() == text


def test_bad_refusals_are_failures(monkeypatch):
  """Were the judge blind, the walk would pass on any code."""
  assert "TypeError" in trial.refusal_fault(TypeError("x"))
  assert "one sentence" in trial.refusal_fault(ValueError("two\nlines"))
  assert "one sentence" in trial.refusal_fault(ValueError(""))
  with pytest.raises(ValueError, match="unknown readout") as error:
    product.configuration(Point("mlp", "float32", "backprop", "simultaneous", "magic"))
  assert trial.refusal_fault(error.value) is None
  with pytest.raises(ValueError, match="at least one") as error:
    jax.numpy.concatenate([])
  assert "not by a check of ours" in trial.refusal_fault(error.value)
  point = Point("mlp", "float32", "backprop", "simultaneous", "score_sum")

  def broken(*_: object) -> None:
    raise TypeError("a fault")

  monkeypatch.setattr(trial, "two_steps", lambda experiment: broken)
  (outcome,) = trial.attempt([point])
  assert outcome.verdict == "fails" and "a fault" in outcome.reason


ROWS = product.covering({n: v for n, v in FACTORS.items() if n not in ("network", "extra")})


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_points_are_traced_or_refused(every):
  """Rows that hold every pair of numerics, method, schedule and readout, or an eighth of them."""
  found = [trial.attempt([Point("mlp", **row)])[0] for row in ROWS[::every]]
  assert [o for o in found if o.verdict == "fails"] == []
  assert sum(o.verdict == "works" for o in found) > len(found) / 4


TRAINED = (
  Point("mlp", "int8", "forward_forward", "greedy", "norm_head", "look-ahead, exact"),
  Point("mlp", "int8_nearest", "recurrent", "simultaneous", "vote"),
  Point("mlp", "bfloat16", "collaborative", "alternating", "last_layer", "int8 weights"),
  Point("mlp", "int8_ui8", "dtg_mlp", "simultaneous", "softmax_last", "accumulated updates"),
  Point("small_cnn", "int8_counts", "channelwise", "interleaved", "score_sum", "p-bits"),
  Point("mlp", "int8_dai8", "local_losses", "staggered", "mean_probability", "sampled answers"),
)


@pytest.mark.parametrize("number", [3, pytest.param(6, marks=pytest.mark.slow)])
def test_points_train(number):
  found = [trial.attempt([point], train=True)[0] for point in TRAINED[:number]]
  assert [o.verdict for o in found] == ["refused", *["works"] * (number - 1)], found


def test_a_walk_goes_on_where_it_was(tmp_path):
  point = TRAINED[0]
  row = Outcome(point, "works")._asdict()
  file = tmp_path / "out.jsonl"
  lines = [{**row, "commit": workdir.commit()}, {**row, "trained": True, "commit": "another"}]
  file.write_text("\n".join(map(json.dumps, lines)) + '\n{"point": ["ml')
  assert list(combinations.read(file)) == [(point, False)]
