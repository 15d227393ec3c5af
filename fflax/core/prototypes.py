"""Class prototypes on the unit sphere (S. Sarode et al., 2026, arXiv 2605.00082).

`z` is one example's feature vector `[D]`; prototypes `p` are `[K, M, D]`, M per class.
"""

import chex
import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array, Key

_FLOOR = 1e-12  # under the root, so that a zero row has a finite gradient


def unit(v: Array) -> Array:
  """`v / |v|` along the last axis, float32; a zero vector stays zero."""
  v = v.astype(jnp.float32)
  return v * lax.rsqrt(jnp.sum(jnp.square(v), axis=-1, keepdims=True) + _FLOOR)


def cosines(z: Array, prototypes: Array) -> Array:
  """`cos(z, p_cm)`, `[K, M]`.

  They are float32 at full precision: a rounded cosine near 1 times a scale of 30 is a visible
  error.
  """
  chex.assert_rank([z, prototypes], [1, 3])
  return jnp.einsum("kmd,d->km", unit(prototypes), unit(z), precision=lax.Precision.HIGHEST)


def class_scores(z: Array, prototypes: Array, pooling: float) -> Array:
  """`S_c = (logsumexp_m(pooling * cos(z, p_cm)) - log M) / pooling`, `[K]` in [-1, 1].

  `pooling -> inf` takes the nearest prototype of a class, `-> 0` the mean over them.

  Example:
    Two classes, one prototype each; the answer lies on the first.
    >>> prototypes = jnp.array([[[1.0, 0.0]], [[0.0, 1.0]]])
    >>> class_scores(jnp.array([5.0, 0.0]), prototypes, pooling=10.0).tolist()
    [1.0, 0.0]
  """
  cosine = cosines(z, prototypes)
  count = prototypes.shape[1]
  if count == 1:
    return cosine[:, 0]
  return (jax.nn.logsumexp(pooling * cosine, axis=-1) - jnp.log(float(count))) / pooling


def random_prototypes(key: Key, num_classes: int, count: int, width: int) -> Array:
  """Gaussian directions `[K, M, D]`, not normalised (scores normalise)."""
  return jax.random.normal(key, (num_classes, count, width))


def orthogonal_prototypes(key: Key, num_classes: int, count: int, width: int) -> Array:
  """Rows of a random orthogonal matrix `[K, M, D]`; needs `K * M <= D`."""
  rows = num_classes * count
  if rows > width:
    raise ValueError(f"orthogonal prototypes need {rows} <= layer width, not {width}")
  return jax.random.orthogonal(key, width)[:rows].reshape(num_classes, count, width)


def etf_prototypes(key: Key, num_classes: int, count: int, width: int) -> Array:
  """A simplex equiangular tight frame `[K, 1, D]`: cosines -1/(K-1); needs M = 1 and `K <= D`."""
  if count != 1 or num_classes > width:
    raise ValueError(
      f"etf prototypes need one prototype a class and {num_classes} <= layer width, "
      f"not {count} a class and width {width}"
    )
  basis = jax.random.orthogonal(key, width)[:num_classes]
  frame = (num_classes / (num_classes - 1)) ** 0.5 * (basis - jnp.mean(basis, 0, keepdims=True))
  return frame[:, None, :]


def ema_prototypes(prototypes: Array, z: Array, label: Array, rho: float) -> Array:
  """Moves each class's nearest prototype towards its examples of the batch; for `z` `[B, D]`.

  `p <- unit(rho p + (1 - rho) mean of the unit features assigned to p)`; prototypes without an
  example in the batch keep their bits.
  """
  chex.assert_rank([prototypes, z, label], [3, 2, 1])
  num_classes, count, _ = prototypes.shape
  zh = unit(z)
  cosine = jnp.einsum("bd,kmd->bkm", zh, unit(prototypes))
  nearest = jnp.argmax(jnp.take_along_axis(cosine, label[:, None, None], axis=1)[:, 0], axis=-1)
  assigned = jax.nn.one_hot(label * count + nearest, num_classes * count)
  total = jnp.einsum("bp,bd->pd", assigned, zh).reshape(prototypes.shape)
  number = jnp.sum(assigned, axis=0).reshape(num_classes, count, 1)
  moved = unit(rho * unit(prototypes) + (1.0 - rho) * total / jnp.maximum(number, 1.0))
  return jnp.where((number > 0) & (rho < 1.0), moved, prototypes)
