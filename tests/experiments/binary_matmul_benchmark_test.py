"""The benchmark of the products with counts, at sizes that take no time: it runs, and it notices
a wrong product. What it measures is not tested.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import binary_matmul as benchmark
from fflax.kernels.binary_matmul import reference


@pytest.mark.parametrize(("groups", "repeats"), [(1, 3), (2, 1)])
def test_smoke(groups, repeats):
  rows = benchmark.compare("tiny", (groups, 24, 40, 7), units=2, rounds=3, repeats=repeats)
  times = {row["preset"] for row in rows if row["metric"] == "product_ms"}
  assert {benchmark.DENSE, benchmark.DRAWN_BF16, "reference: packing, packed x int8"} <= times
  speedups = [row for row in rows if row["metric"] == "speedup"]
  # Two rivals each, but for the four dense ones, which have one.
  assert len(speedups) == 2 * len(times) - 4
  for row in speedups:
    assert benchmark.is_drawn(row["preset"]) == benchmark.is_drawn(row["rival"])
    assert len(row["values"]) == 3 and min(row["values"]) > 0


def test_a_wrong_product_is_an_error(monkeypatch):
  right = reference.matmul

  def wrong(x, w):
    out = right(x, w)
    return out.at[0, 0].add(jnp.ones((), out.dtype))

  monkeypatch.setattr(reference, "matmul", wrong)
  with pytest.raises(AssertionError, match="reference: counts x float32"):
    benchmark.compare("tiny", (1, 24, 40, 7), units=2, rounds=3, repeats=1)


def test_repeats_are_as_many_as_they_say():
  def step(x):
    calls.append(1)
    return x * 2

  calls = []
  # Every turn starts from the same argument: the result is that of one product.
  assert float(benchmark.repeated(step, 5)(jnp.float32(3))) == 6
  assert len(calls) == 2  # traced before the loop, and in it
  np.testing.assert_array_equal(benchmark.repeated(step, 1)(jnp.arange(3)), [0, 2, 4])
