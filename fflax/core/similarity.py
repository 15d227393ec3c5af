"""Similarity matching: examples of one class should look alike to a layer, and others should not.

A. Nokland, L. Eidnes, "Training Neural Networks with Local Error Signals", ICML 2019, arXiv
1901.06656, and its released code. Functions take a batch: what is compared are its examples.
"""

import chex
import jax.numpy as jnp
from jax import lax

from fflax.types import Array


def _sqrt(x: Array) -> Array:
  """The root of `x >= 0`, with gradient zero at zero, as in PyTorch; the root's own is infinite."""
  positive = x > 0
  return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def channel_deviations(x: Array) -> Array:
  """Each channel's standard deviation over space, unbiased: `[B, H, W, C]` to `[B, C]`, float32."""
  x = x.astype(jnp.float32)
  places = x.shape[1] * x.shape[2]
  centred = x - jnp.mean(x, axis=(1, 2), keepdims=True)
  return _sqrt(jnp.sum(jnp.square(centred), axis=(1, 2)) / (places - 1))


def similarity_matrix(x: Array) -> Array:
  """Cosines between the centred features of a batch's examples, `[B, B]` float32 in [-1, 1].

  Equation 1 of the paper: `S_ij = cos(f_i - mean(f_i), f_j - mean(f_j))`. Maps `[B, H, W, C]` of
  more than three channels and one row stand for themselves by their `channel_deviations`; all else
  is flattened. An example whose features are all equal has similarity 0 with every other.
  """
  if x.ndim == 4 and x.shape[-1] > 3 and x.shape[1] > 1:
    x = channel_deviations(x)
  x = x.astype(jnp.float32).reshape(x.shape[0], -1)
  x = x - jnp.mean(x, axis=1, keepdims=True)
  x = x / (1e-8 + _sqrt(jnp.sum(jnp.square(x), axis=1, keepdims=True)))
  return jnp.clip(jnp.matmul(x, x.T, precision=lax.Precision.HIGHEST), -1.0, 1.0)


def similarity_loss(features: Array, target: Array) -> Array:
  """`mean_ij (S(features)_ij - S(target)_ij)**2`, the diagonal included; a scalar (equation 2).

  Args:
    features: of a batch, `[B, ...]`.
    target: what similarities are matched to, `[B, ...]`: labels as one-hot rows. No gradient.
  """
  chex.assert_equal_shape_prefix([features, target], 1)
  wanted = lax.stop_gradient(similarity_matrix(target))
  return jnp.mean(jnp.square(similarity_matrix(features) - wanted))
