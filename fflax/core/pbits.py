"""Tied p-bits as one operation: pre-activation in, count and its square out, pooled or not.

The square is an output of its own, so that a loss which reads it where it squares has the exact
effect of every unit's flip as its gradient, see `fflax.core.pbit_gradients`. An affine map after it
keeps that: with `y = A z + B`, `y^2 = A^2 square + 2 A B count + B^2`.

Paper: Jaiswal, Datta, Makin, "Energy-Efficient Supervised Learning with a Binary Stochastic
Forward-Forward Algorithm", 2025, arXiv 2507.06461.
"""

import functools

import jax
import jax.numpy as jnp

from fflax.core.branches import computed_once
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_gradients import flip_gradient
from fflax.core.pbit_units import draw, log_probability, pooled_count, seeds_per_sample, to_windows
from fflax.core.quantize import seed_words
from fflax.types import Array, Key


def pbit(key: Key, v: Array, config: PbitConfig, window: int = 1) -> tuple[Array, Array]:
  """Samples p-bits. Reverse mode, `jit`, `vmap`, `scan`.

  The same key and `v` give the same bits, whatever the window and the estimator. Noise is a hash of
  each element's index, 16 bits a unit, never in memory.

  Args:
    key: a typed key.
    v: pre-activation `[..., H, W, C]`, or of any shape with `window` 1.
    config: of the units, assumed checked.
    window: 1, or 2 for 2x2 pooling; an odd last row or column is dropped.

  Returns:
    The count, float32 `[..., H / window, W / window, C]`, integers in [0, M], and its square.

  Raises:
    ValueError: if `v` cannot be pooled so.

  Example:
    >>> import jax
    >>> import jax.numpy as jnp
    >>> v = jnp.full((10_000,), 0.5 + jnp.log(3.0))  # unit 1 is on with probability 3 / 4
    >>> bits, squares = pbit(jax.random.key(0), v, PbitConfig(units=1))
    >>> sorted({float(b) for b in bits}), bool(abs(bits.mean() - 0.75) < 0.02)
    ([0.0, 1.0], True)
  """
  v = v.astype(jnp.float32)
  word, slope_seeds = _sample(key, v, config)
  return emit(config, window, to_windows(v, window), to_windows(word, window), slope_seeds)


def log_prob(key: Key, v: Array, config: PbitConfig) -> Array:
  """The log-probability of each site's bits that `pbit` draws, differentiable in `v`."""
  v = v.astype(jnp.float32)
  return log_probability(_sample(key, v, config)[0], v, config)


def _sample(key: Key, v: Array, config: PbitConfig) -> tuple[Array, Array]:
  # Always three samples' worth, so that another estimator has the same first sample.
  number = seeds_per_sample(config)
  seeds = seed_words(key, 3 * number).reshape(3, number, 2)
  v = jax.lax.stop_gradient(v)
  word = computed_once(lambda: draw(seeds[0], v, config), _never(seeds))
  return word, seeds[1:]


def _never(seeds: Array) -> Array:
  return seeds.astype(jnp.float32) < 0


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def emit(
  config: PbitConfig, window: int, v: Array, word: Array, slope_seeds: Array
) -> tuple[Array, Array]:
  """The pooled count and its square of bits drawn for `v`; arguments as `flip_gradient`."""
  del v, slope_seeds
  pooled = pooled_count(word, config, window)
  return pooled, jnp.square(pooled)


def _forward(
  config: PbitConfig, window: int, v: Array, word: Array, slope_seeds: Array
) -> tuple[tuple[Array, Array], tuple]:
  # Two bytes of bits a site are kept: cheaper than M sigmoids and hashes once more.
  return emit(config, window, v, word, slope_seeds), (v, word, slope_seeds)


def _backward(
  config: PbitConfig, window: int, residuals: tuple, cotangents: tuple[Array, Array]
) -> tuple[Array, None, None]:
  _, word, slope_seeds = residuals
  # Kept: else computed again for each site of a window; a loss that sums over blocks of channels
  # costs a division of indices there, which keeps a CPU from its vector units.
  v, g, q = computed_once(lambda: (residuals[0], *cotangents), _never(slope_seeds))
  return flip_gradient(v, word, slope_seeds, g, q, config, window), None, None


emit.defvjp(_forward, _backward)
