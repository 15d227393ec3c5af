"""Pooling against numpy, and the gradient of the max-pool against XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fflax.core.pooling import adaptive_average_pool, average_pool_to, max_pool_2x2
from tests.training.tiny_layers import jit


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


@pytest.mark.parametrize(("height", "width", "grid"), [(4, 6, 2), (5, 7, 3), (1, 3, 2), (7, 7, 7)])
def test_adaptive_pool_against_a_loop(height, width, grid):
  """Bins from floor(i H / n) to ceil((i + 1) H / n); overlapping bins, and maps below the grid."""
  x = np.random.default_rng(0).normal(size=(2, height, width, 3))
  rows, columns = min(grid, height), min(grid, width)
  want = np.zeros((2, rows, columns, 3))
  for i in range(rows):
    for j in range(columns):
      top, bottom = i * height // rows, -(-(i + 1) * height // rows)
      left, right = j * width // columns, -(-(j + 1) * width // columns)
      want[:, i, j] = x[:, top:bottom, left:right].mean((1, 2))
  got = jit(lambda x: adaptive_average_pool(x, grid))(jnp.asarray(x, jnp.float32))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
  ("most", "side", "grids"),
  [
    (2048, 32, ((4, 4), (2, 4), (2, 4), (2, 2), (2, 2), (2, 2))),
    (4096, 32, ((4, 8), (4, 4), (4, 4), (2, 4), (2, 4), (2, 4))),
    (1024, 28, ((2, 4), (2, 2), (2, 2), (1, 2), (1, 2), (1, 2))),
  ],
)
def test_the_grids_of_predsim(most, side, grids):
  """VGG8b's feature maps, as the released code pools them; where sizes divide, exactly `most`."""
  maps = [(128, 1), (256, 1), (256, 2), (512, 2), (512, 4), (512, 8)]
  for (channels, scale), grid in zip(maps, grids, strict=True):
    x = jax.ShapeDtypeStruct((1, side // scale, side // scale, channels), jnp.float32)
    assert jax.eval_shape(lambda x: average_pool_to(x, most), x).shape == (1, *grid, channels)
    assert side == 28 or channels * grid[0] * grid[1] == most


@pytest.mark.parametrize(("height", "width", "most"), [(4, 6, 18), (5, 7, 24), (3, 3, 1)])
def test_pooling_to_a_number_against_a_loop(height, width, most):
  """Windows that stick out take the mean of what they see."""
  x = np.random.default_rng(0).normal(size=(2, height, width, 3))
  got = np.asarray(jit(lambda x: average_pool_to(x, most))(jnp.asarray(x, jnp.float32)))
  window = {18: (2, 2), 24: (4, 2), 1: (4, 4)}[most]
  pads = []
  for size, w in zip((height, width), window, strict=True):
    total = (-(-size // w) - 1) * w + w - size
    pads.append((total // 2, total - total // 2))
  padded = np.pad(x, ((0, 0), *pads, (0, 0)), constant_values=np.nan)
  rows, columns = padded.shape[1] // window[0], padded.shape[2] // window[1]
  tiles = padded.reshape(2, rows, window[0], columns, window[1], 3)
  np.testing.assert_allclose(got, np.nanmean(tiles, axis=(2, 4)), rtol=1e-5, atol=1e-6)
