"""The benchmark of one pass against a pass a label, at sizes that take no time: it runs, and it
notices a shared first layer that answers otherwise. What it measures is not tested.
"""

import jax
import pytest

from experiments.benchmarks import one_pass

SIZES, SHAPE = (16, 12), (6, 6, 1)


def test_smoke():
  """And the multiplications are those of the closed forms."""
  rows = one_pass.compare(5, SIZES, SHAPE, batch=3, rounds=3)
  macs = {(r["preset"], r["rival"]): r["mean"] for r in rows if r["metric"] == "macs_ratio"}
  trunk, first = 36 * 16 + 16 * 12, 36 * 16
  one = trunk + 5 * (16 + 12)
  names = {n: f"{n}, 5 classes" for n in (one_pass.ONE, one_pass.SHARED)}
  assert macs[names[one_pass.ONE], one_pass.EACH] == pytest.approx(5 * trunk / one, rel=1e-5)
  shared = first + 5 * (trunk - first)
  assert macs[names[one_pass.ONE], one_pass.SHARED] == pytest.approx(shared / one, rel=1e-5)
  speedups = [r for r in rows if r["metric"] == "speedup"]
  assert len(speedups) == 4  # of one pass over two, of two over each other
  for r in speedups:
    assert len(r["values"]) == 3 and min(r["values"]) > 0 and r["classes"] == 5


def test_a_wrong_short_cut_is_an_error(monkeypatch):
  right = one_pass.shared_answer
  monkeypatch.setattr(one_pass, "shared_answer", lambda *a: right(*a).at[0, 0].multiply(1.1))
  image = jax.random.uniform(jax.random.key(0), (4, *SHAPE))
  with pytest.raises(RuntimeError, match="answers otherwise"):
    one_pass.rivals(5, SIZES, image)
