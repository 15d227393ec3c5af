"""Max-pooling against numpy, and its gradient against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fflax.core.pooling import max_pool_2x2


def xla_pool(x):
  lowest = -jnp.inf if jnp.issubdtype(x.dtype, jnp.floating) else jnp.iinfo(x.dtype).min
  shape = (1, 2, 2, 1)
  return lax.reduce_window(x, jnp.asarray(lowest, x.dtype), lax.max, shape, shape, "VALID")


@settings(max_examples=10)
@given(height=st.integers(2, 7), width=st.integers(2, 7), seed=st.integers(0, 100))
def test_few_values_many_ties(height, width, seed):
  """Value and gradient bit for bit: small integers tie in nearly every window."""
  rng = np.random.default_rng(seed)
  x = jnp.asarray(rng.integers(0, 3, (2, height, width, 3)), jnp.float32)
  want, pull = jax.vjp(xla_pool, x)
  got, our_pull = jax.vjp(max_pool_2x2, x)
  np.testing.assert_array_equal(got, want)
  g = jnp.asarray(rng.standard_normal(got.shape), jnp.float32)
  np.testing.assert_array_equal(our_pull(g)[0], pull(g)[0])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int8, jnp.int32])
def test_dtypes_and_leading_axes(dtype):
  """Counts of p-bits are int8; views add an axis in front."""
  x = np.random.default_rng(0).integers(-100, 100, (2, 3, 5, 4, 2))
  out = max_pool_2x2(jnp.asarray(x, dtype))
  assert (out.dtype, out.shape) == (dtype, (2, 3, 2, 2, 2))
  want = x[:, :, :4].reshape(2, 3, 2, 2, 2, 2, 2).max((3, 5))
  np.testing.assert_array_equal(np.asarray(out, np.float32), want)


@pytest.mark.parametrize("place", range(4))
def test_not_a_number_is_not_lost(place):
  """Divergence must show, whichever of the four it struck."""
  x = jnp.zeros(4).at[place].set(jnp.nan).reshape(1, 2, 2, 1)
  assert jnp.isnan(max_pool_2x2(x)).all()


def test_no_scatter_is_left():
  """The gradient in XLA's own form would be a naive loop on a CPU."""
  text = str(jax.make_jaxpr(jax.grad(lambda x: max_pool_2x2(x).sum()))(jnp.ones((1, 4, 4, 1))))
  assert "select_and" not in text and "scatter" not in text
