"""Heads against numpy and the moments of their distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import heads
from fflax.core.numerics_registry import NUMERICS
from fflax.core.pooling import adaptive_average_pool

KEY = jax.random.key(0)


def test_logits():
  rng = np.random.default_rng(0)
  x, kernel, bias = rng.normal(size=(5, 7)), rng.normal(size=(7, 3)), rng.normal(size=3)
  head = {"kernel": jnp.asarray(kernel, jnp.float32), "bias": jnp.asarray(bias, jnp.float32)}
  x32 = jnp.asarray(x, jnp.float32)
  np.testing.assert_allclose(heads.apply_head(head, x32), x @ kernel + bias, rtol=1e-4, atol=1e-5)
  del head["bias"]
  np.testing.assert_allclose(heads.apply_head(head, x32), x @ kernel, rtol=1e-4, atol=1e-5)
  coarse = heads.apply_head(head, x32, NUMERICS["int8"]())
  np.testing.assert_allclose(coarse, x @ kernel, atol=0.2)
  assert np.any(np.asarray(coarse) != np.asarray(heads.apply_head(head, x32)))


def test_float32_products_are_float32_on_every_machine():
  """By default GPUs and TPUs round the operands of a float32 product."""
  head = heads.random_head(KEY, 4, 3)
  for text in (
    jax.make_jaxpr(heads.apply_head)(head, jnp.ones((2, 4))),
    jax.make_jaxpr(lambda x: adaptive_average_pool(x, 2))(jnp.ones((2, 3, 3, 1))),
  ):
    products = [e for e in text.eqns if e.primitive.name == "dot_general"]
    products += [
      e
      for call in text.eqns
      for p in call.params.values()
      for e in getattr(getattr(p, "jaxpr", None), "eqns", ())
      if e.primitive.name == "dot_general"
    ]
    assert products
    assert all(e.params["precision"] == (jax.lax.Precision.HIGHEST,) * 2 for e in products)


@pytest.mark.parametrize(
  ("kind", "kernel_variance", "bias_variance"),
  [("random", 1 / 10, 1 / 10), ("uniform", 1 / 1200, 1 / 1200), ("zero", 0, 0)]
  + [("lecun", 1 / 400, 0)],
)
def test_variances(kind, kernel_variance, bias_variance):
  """A wrong one would only scale logits, and show as slower learning."""
  made = [heads.HEADS[kind](jax.random.fold_in(KEY, i), 400, 10) for i in range(30)]
  for part, variance in (("kernel", kernel_variance), ("bias", bias_variance)):
    values = np.stack([np.asarray(m[part]) for m in made])
    # The variance of a mean square of n normals is 2 / n of its own square.
    assert abs((values**2).mean() - variance) <= 4 * variance * np.sqrt(2 / values.size)
  assert made[0]["kernel"].shape == (400, 10) and made[0]["bias"].shape == (10,)


def test_rivals_of_int8_carry_a_state():
  head = heads.random_head(KEY, 4, 3)
  assert set(heads.with_gradient_state(head, NUMERICS["float32"]())) == {"kernel", "bias"}
  assert "product" in heads.with_gradient_state(head, NUMERICS["int8_ui8"]())
