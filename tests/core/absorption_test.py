"""Absorbing an affine map into a convolution, against a convolution in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.absorption import absorb


def conv64(x: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
  """Zero-padded 3x3 convolution `[N, H, W, C]`, in loops over taps and groups."""
  n, height, width, _ = x.shape
  inputs, outputs = w.shape[2], w.shape[3] // groups
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  out = np.zeros((n, height, width, w.shape[3]))
  for dy in range(3):
    for dx in range(3):
      seen = x[:, dy : dy + height, dx : dx + width]
      for g in range(groups):
        own = slice(g * outputs, (g + 1) * outputs)
        out[..., own] += seen[..., g * inputs : (g + 1) * inputs] @ w[dy, dx][:, own]
  return out


@pytest.mark.parametrize("groups", [1, 3])
def test_absorbed_convolution_is_the_same_borders_included(groups):
  rng = np.random.default_rng(groups)
  counts = rng.integers(0, 8, (2, 5, 4, 6)).astype(np.float64)
  w = rng.normal(size=(3, 3, 6 // groups, 9))
  a, b = rng.uniform(0.2, 2, 6), rng.normal(size=6)
  want = conv64(a * counts + b, w, groups)
  kernel, bias = (
    np.asarray(x, np.float64)
    for x in absorb(*(jnp.asarray(x, jnp.float32) for x in (w, a, b)), (5, 4), groups)
  )
  assert kernel.shape == w.shape
  assert bias.shape == (5, 4, 9)
  product = conv64(counts, kernel, groups)
  np.testing.assert_allclose(product + bias, want, rtol=1e-5, atol=1e-5)

  # One bias for all places is right inside, and nowhere on the border.
  plain = np.abs(product + bias[2, 2] - want).max(axis=(0, 3))
  assert plain[1:-1, 1:-1].max() < 1e-4
  plain[1:-1, 1:-1] = np.inf
  assert plain.min() > 0.1
