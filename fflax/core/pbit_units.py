"""Tied p-bits: M binary units with one pre-activation, their samples and their expectations.

Unit m = 1..M is on with probability `sigmoid(v - (m - 1/2))`. The count of units that are on is a
stochastic softplus, clipped at M: its mean is within 0.0106 of `log(1 + e^v)` for large M, and with
independent noise its variance is the derivative of its mean.

The bits of a site are one word, bit m - 1 for unit m, so that nothing has an axis of length M.

Papers: Jaiswal, Datta, Makin, "Energy-Efficient Supervised Learning with a Binary Stochastic
Forward-Forward Algorithm", 2025, arXiv 2507.06461; Nair, Hinton, "Rectified Linear Units Improve
Restricted Boltzmann Machines", 2010, for the offsets.

Deviations: the paper's offsets are not public; those of Nair and Hinton are ours. With M = 1 the
offset 1/2 stays, where a bias could absorb it.
"""

import functools
import math
import operator
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core import tags
from fflax.core.pbit_config import PbitConfig
from fflax.core.quantize import flat_index, hash_words
from fflax.types import Array


def probability(v: Array, unit: int) -> Array:
  """`sigmoid(v - (unit - 1/2))`, float32: how likely unit 1, 2, ... is on."""
  return jax.nn.sigmoid(v.astype(jnp.float32) - (unit - 0.5))


def probabilities(v: Array, config: PbitConfig) -> list[Array]:
  """Of every unit, from the first to the last: falling."""
  return [probability(v, unit) for unit in range(1, config.units + 1)]


def expected_count(v: Array, config: PbitConfig) -> Array:
  """The mean of the count, float32 of the shape of `v`, the same for both kinds of noise."""
  return _sum(probabilities(v, config))


def count_variance(v: Array, config: PbitConfig) -> Array:
  """The variance of the count, float32 of the shape of `v`."""
  if config.noise == "independent":
    return _sum([p * (1 - p) for p in probabilities(v, config)])
  mean, square = mean_field(v, config)
  return square - jnp.square(mean)


def expected_max(v: Array, config: PbitConfig, window: int = 2) -> Array:
  """The mean of the pooled count: not the pooled mean, which is far too small.

  Args:
    v: `[..., H, W, C]`, or any shape with `window` 1.
    config: of the units.
    window: 1, or 2 for 2x2 pooling; an odd last row or column is dropped.

  Returns:
    float32 `[..., H / window, W / window, C]`.
  """
  return mean_field(v, config, window)[0]


def mean_field(v: Array, config: PbitConfig, window: int = 1) -> tuple[Array, Array]:
  """The means of the pooled count and of its square, exact for given `v`.

  Arguments and shapes as `expected_max`. The largest of independent counts is at most k where all
  of them are: the product of the sites' distribution functions, each Poisson-binomial.
  """
  units = probabilities(to_windows(v, window), config)
  if window == 1 and config.noise == "independent":
    mean = _sum(units)
    return mean, jnp.square(mean) + _sum([p * (1 - p) for p in units])
  if config.noise == "shared":  # more than k units are on just where unit k + 1 is
    above = [1 - product_over_window(1 - p, window) for p in units]
  elif config.pool == "bitwise":
    units = [1 - product_over_window(1 - p, window) for p in units]
    above = [1 - f for f in _distribution(units)]
  else:
    above = [1 - product_over_window(f, window) for f in _distribution(units)]
  return _sum(above), _sum([(2 * k + 1) * a for k, a in enumerate(above)])


def _distribution(units: list[Array]) -> list[Array]:
  """`P(count <= k)` for k = 0..M-1, where the units are independent."""
  chances = [jnp.ones_like(units[0])]
  for p in units:
    on, off = [c * p for c in chances], [c * (1 - p) for c in chances]
    chances = [off[0], *map(operator.add, on[:-1], off[1:]), on[-1]]
  sums = [chances[0]]
  for chance in chances[1:-1]:
    sums.append(sums[-1] + chance)
  return sums


def slopes(v: Array, config: PbitConfig) -> list[Array]:
  """`p (1 - p)` of every unit, by one exponential for all."""
  chances = [1 / (1 + odds) for odds in _odds_against(v, config)]
  return [p * (1 - p) for p in chances]


@jax.named_scope(tags.SAMPLES)
def draw(seeds: Array, v: Array, config: PbitConfig) -> Array:
  """Samples all units, with 16 random bits each.

  Args:
    seeds: `[S, 2]` uint32, S `seeds_per_sample`, see `fflax.core.quantize.seed_words`.
    v: pre-activation of any shape.
    config: of the units.

  Returns:
    uint16 of the shape of `v`: bit m - 1 tells whether unit m is on.
  """
  word = jnp.zeros(v.shape, jnp.uint32)
  for unit, on in enumerate(draw_units(seeds, v, flat_index(v.shape), config)):
    word |= on.astype(jnp.uint32) << unit
  return word.astype(jnp.uint16)


def draw_units(seeds: Any, v: Array, index: Array, config: PbitConfig) -> Iterator[Array]:
  """Whether each unit is on, bool of the shape of `v`, from the first unit to the last.

  Unit m is on where a number r, uniform on the middles of 2^16 intervals, is below its probability
  p: where `r (1 - p) / p < 1 - r`, for which one exponential serves all units. One random word
  serves two of them.

  Args:
    seeds: pairs of uint32, as many as `seeds_per_sample`.
    v: pre-activation.
    index: uint32, the number of each element of `v` in the array that it is a part of.
    config: of the units.
  """
  words = index
  for unit, odds in enumerate(_odds_against(v, config)):
    source = 0 if config.noise == "shared" else unit
    if source % 2 == 0:
      words = hash_words(seeds[source // 2], index)
    bits = words & jnp.uint32(0xFFFF) if source % 2 == 0 else words >> jnp.uint32(16)
    # By way of int32, because not every machine converts unsigned integers.
    r = (bits.astype(jnp.int32).astype(jnp.float32) + 0.5) * jnp.float32(2**-16)
    yield r * odds < 1 - r


def seeds_per_sample(config: PbitConfig) -> int:
  """How many seeds `draw` takes."""
  return -(-config.units // 2)


def _odds_against(v: Array, config: PbitConfig) -> list[Array]:
  """`(1 - p) / p` of every unit; infinite where p is 0."""
  odds = jnp.exp(-v.astype(jnp.float32))
  return [odds * jnp.float32(math.exp(unit - 0.5)) for unit in range(1, config.units + 1)]


def log_probability(word: Array, v: Array, config: PbitConfig) -> Array:
  """The log-probability of each site's bits, as `draw` has them: float32 of the shape of `v`."""
  terms = []
  for unit in range(1, config.units + 1):
    x = v.astype(jnp.float32) - (unit - 0.5)
    on, off = jax.nn.log_sigmoid(x), jax.nn.log_sigmoid(-x)
    if config.noise == "independent":
      terms.append(jnp.where(is_on(word, unit), on, off))
      continue
    # P(k on) = sigmoid(v - o_k) - sigmoid(v - o_k - 1), in factors: only units k and k + 1 count.
    k = count(word)
    terms.append(jnp.where(k == unit, on, 0) + jnp.where(k == unit - 1, off, 0))
    if unit < config.units:
      terms.append(jnp.where(k == unit, math.log1p(-math.exp(-1)), 0))
  return _sum(terms)


def count(word: Array) -> Array:
  """How many units are on, float32."""
  return lax.population_count(word).astype(jnp.float32)


def is_on(word: Array, unit: int) -> Array:
  """Whether unit 1, 2, ... is on, bool."""
  return (word >> (unit - 1)) & 1 == 1


def pooled_count(word: Array, config: PbitConfig, window: int) -> Array:
  """The count of every pooling window of a windowed `word`, see `to_windows`."""
  if window == 1:
    return count(word)
  if config.pool == "count":
    return over_window(count(word), jnp.maximum)
  return count(over_window(word, jnp.bitwise_or))


def to_windows(x: Array, window: int) -> Array:
  """`[..., H, W, C]` to `[..., h, window, w, window, C]`, whole windows only; `x` if `window` is 1.

  Raises:
    ValueError: if `window` is neither 1 nor 2, or `x` is smaller than a window.
  """
  if window not in (1, 2):
    raise ValueError(f"p-bits are pooled over windows of 1 or 2, not {window!r}")
  if window == 1:
    return x
  if x.ndim < 3 or min(x.shape[-3:-1]) < 2:
    raise ValueError(f"2x2 pooling takes [..., H, W, C] of at least 2x2, not {x.shape}")
  h, w = x.shape[-3] // 2, x.shape[-2] // 2
  return x[..., : 2 * h, : 2 * w, :].reshape(*x.shape[:-3], h, 2, w, 2, x.shape[-1])


def over_window(x: Array, combine) -> Array:
  """Combines the four sites of each window of a windowed `x`: `[..., h, w, C]`."""
  x = combine(x[..., 0, :, :, :], x[..., 1, :, :, :])
  return combine(x[..., 0, :], x[..., 1, :])


def product_over_window(x: Array, window: int) -> Array:
  """The product of the sites of each window."""
  return x if window == 1 else over_window(x, operator.mul)


def _sum(terms: list[Array]) -> Array:
  return functools.reduce(operator.add, terms)
