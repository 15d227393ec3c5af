"""How a gradient passes sampled p-bits: by the effect of switching each unit on.

With `a` the count at a site, `a_m` the count without unit m, and `r` the largest count among the
other sites of the pooling window, switching unit m on moves the pooled count z by `[a_m >= r]` and
its square by `[a_m >= r] (2 a_m + 1)`: exact integers. So cotangents g of z and q of z^2 give

  dL/dv = sum_m slope_m [a_m >= r] (g + q (2 a_m + 1)),   slope_m = p_m (1 - p_m) or an estimate,

which is exact in expectation where the loss is linear in z and z^2, and of first order in one
unit's share of them elsewhere. The derivative 2z of the sample's square, in contrast, teaches units
that are off nothing, and a max-pooling's derivative teaches one of several tied sites only.

Paper: Jaiswal, Datta, Makin, 2025, arXiv 2507.06461, whose equations are not public.

Deviations: estimators are our reconstruction. Units that share one random number do not switch one
by one: where unit m is about to switch, the units before it are on and the others off, so that
`a_m = m - 1`; the gradient is then exact in expectation, too.
"""

import functools
import operator

import jax
import jax.numpy as jnp

from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import (
  count,
  draw,
  is_on,
  over_window,
  pooled_count,
  probabilities,
  slopes,
  to_windows,
)
from fflax.types import Array


def flip_gradient(
  v: Array,
  word: Array,
  slope_seeds: Array,
  g: Array,
  q: Array,
  config: PbitConfig,
  window: int,
) -> Array:
  """The gradient with respect to the pre-activation.

  Args:
    v: float32, in the form of `to_windows`.
    word: uint16, the bits that were drawn for `v`.
    slope_seeds: `[2, S, 2]` uint32, S `seeds_per_sample`, for the fresh samples of "binary_slope".
    g: float32, cotangent of the pooled count.
    q: float32, cotangent of its square.
    config: of the units.
    window: 1 or 2.

  Returns:
    float32 of the shape of `v`.
  """
  if config.estimator == "score":
    return jnp.zeros_like(v)
  if config.estimator == "ste_autodiff":
    return _autodiff(v, word, g, q, config, window)
  estimates = _slopes(v, word, slope_seeds, config)
  if config.noise == "independent" and (config.pool == "count" or window == 1):
    return _of_two_kinds(word, estimates, g, q, window)
  g, q = _spread(g, window), _spread(q, window)
  return _sum(
    [
      jnp.where(changes, slope * (g + q * (2 * others + 1)), 0)
      for slope, (changes, others) in zip(estimates, flips(word, config, window), strict=True)
    ]
  )


def _of_two_kinds(word: Array, estimates: list[Array], g: Array, q: Array, window: int) -> Array:
  """The gradient where a unit's flip depends on no more than whether the unit is on.

  Without a unit that is off, the count is a, without one that is on, a - 1; so it raises the pooled
  count z where a = z, or where, besides, no other site of the window has as many. The sum over the
  units is thus that of two sums of slopes.
  """
  bits = word.astype(jnp.uint32)
  on = _sum([s * ((bits >> i) & 1).astype(jnp.float32) for i, s in enumerate(estimates)])
  off = _sum(estimates) - on
  total = count(word)
  if window == 1:
    return (g + q * (2 * total + 1)) * off + (g + q * (2 * total - 1)) * on
  pooled = over_window(total, jnp.maximum)
  largest = total == _spread(pooled, window)
  alone = over_window(largest.astype(jnp.int32), jnp.add) == 1
  if_off = _spread(g + q * (2 * pooled + 1), window)
  if_on = _spread(jnp.where(alone, g + q * (2 * pooled - 1), 0), window)
  return jnp.where(largest, if_off * off + if_on * on, 0)


def flips(word: Array, config: PbitConfig, window: int) -> list[tuple[Array, Array]]:
  """For every unit: whether switching it on raises the pooled count, and the count without it.

  Args:
    word: uint16, in the form of `to_windows`.
    config: of the units.
    window: 1 or 2.

  Returns:
    For each unit a bool and a float32 of the shape of `word`; the second counts where the first.
  """
  bitwise = config.pool == "bitwise" and config.noise == "independent" and window == 2
  if bitwise:
    rival = _other_sites(word, jnp.bitwise_or)
    total = _spread(pooled_count(word, config, window), window)
  else:
    total = count(word)
    rival = jnp.zeros_like(total) if window == 1 else _other_sites(total, jnp.maximum)
  found = []
  for unit in range(1, config.units + 1):
    if config.noise == "shared":
      others = jnp.full(word.shape, unit - 1, jnp.float32)
    else:
      others = total - is_on(word, unit)
    found.append((~is_on(rival, unit) if bitwise else others >= rival, others))
  return found


def local_expectation(
  v: Array,
  word: Array,
  label: Array,
  num_classes: int,
  config: PbitConfig,
  window: int = 1,
  scale: Array | float = 1.0,
  shift: Array | float = 0.0,
) -> Array:
  """The gradient of the expected surprisal, estimated without bias from one sample.

  The surprisal is the cross-entropy with the channel-wise goodness as logits, the mean over class
  j's channels and over space of `(scale * z + shift)^2`, z the pooled count. Unit by unit, with the
  others as they were drawn, both outcomes are summed: no other pass, only elementwise work.

  Args:
    v: `[N, H, W, C]` pre-activation, C a multiple of K.
    word: uint16 `[N, H, W, C]`, its sample, see `draw`.
    label: `[N]` int32.
    num_classes: K.
    config: of the units, with independent noise.
    window: 1, or 2 for 2x2 pooling.
    scale: `[C]` or a number, as of a batch norm that is held fixed.
    shift: likewise.

  Returns:
    `[N, H, W, C]` float32: the gradient of the mean surprisal of the examples.

  Raises:
    ValueError: if the noise is shared, or if K does not divide C.
  """
  if config.noise == "shared":
    raise ValueError("local_expectation needs units with independent noise, not 'shared'")
  size, channels = v.shape[0], v.shape[-1]
  if channels % num_classes:
    raise ValueError(f"{num_classes} classes do not divide {channels} channels")
  a, b = (jnp.broadcast_to(jnp.asarray(x, jnp.float32), (channels,)) for x in (scale, shift))
  windows, word = to_windows(v, window), to_windows(word, window)
  a, b = (x.reshape((1,) * (windows.ndim - 1) + (channels,)) for x in (a, b))

  pooled = _spread(pooled_count(word, config, window), window)
  squares = jnp.square(a * pooled + b).reshape(size, -1, num_classes, channels // num_classes)
  share = 1 / (squares.shape[1] * squares.shape[3])
  goodness = jnp.sum(squares, axis=(1, 3)) * share
  shape = (size, *(1,) * (windows.ndim - 2), channels)

  def per_channel(x: Array) -> Array:
    return jnp.repeat(x, channels // num_classes, axis=1).reshape(shape)

  predicted = per_channel(jax.nn.softmax(goodness))
  own = per_channel(jax.nn.one_hot(label, num_classes))
  terms = []
  for unit, (p, (changes, others)) in enumerate(
    zip(probabilities(windows, config), flips(word, config, window), strict=True), start=1
  ):
    effect = jnp.where(changes, share * (2 * a * a * others + a * a + 2 * a * b), 0)
    removed = jnp.where(is_on(word, unit), -effect, 0)
    without = predicted * jnp.exp(removed) / (1 + predicted * jnp.expm1(removed))
    terms.append(p * (1 - p) * (jnp.log1p(without * jnp.expm1(effect)) - effect * own))
  gradient = _sum(terms) / size
  if window == 1:
    return gradient
  h, w = (2 * windows.shape[1], 2 * windows.shape[3])
  rest = ((0, 0), (0, v.shape[1] - h), (0, v.shape[2] - w), (0, 0))
  return jnp.pad(gradient.reshape(size, h, w, channels), rest)


def _slopes(v: Array, word: Array, seeds: Array, config: PbitConfig) -> list[Array]:
  """For each unit an estimate of `p(1 - p)`, or the 1 of the plain straight-through estimator."""
  if config.estimator == "ste_identity":
    return [jnp.ones_like(v)] * config.units
  if config.estimator == "surprisal":
    return slopes(v, config)
  first = word if config.reuse_forward else draw(seeds[0], v, config)
  second = draw(seeds[1], v, config)
  bits, step = (first ^ second, 0.5) if config.slope_sampler == "xor" else (first & ~second, 1.0)
  return [step * is_on(bits, unit) for unit in range(1, config.units + 1)]


def _autodiff(v: Array, word: Array, g: Array, q: Array, config: PbitConfig, window: int) -> Array:
  """What plain differentiation of the sample's square would give, at the window's first winner."""
  pooled = pooled_count(word, config, window)
  cotangent = _spread(g + 2 * pooled * q, window)
  if window == 1:
    return cotangent * _sum(slopes(v, config))
  if config.pool == "count":
    return jnp.where(_first_largest(count(word)), cotangent * _sum(slopes(v, config)), 0)
  return _sum(
    [
      jnp.where(_first_largest(is_on(word, unit).astype(jnp.float32)), cotangent * slope, 0)
      for unit, slope in enumerate(slopes(v, config), start=1)
    ]
  )


def _first_largest(x: Array) -> Array:
  """One site of each 2x2 window: the largest, the first of equal ones; bool, windowed."""
  site = 2 * jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 4)
  site += jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 2)
  winner = jnp.where(x == _spread(over_window(x, jnp.maximum), 2), site, 4)
  return winner == _spread(over_window(winner, jnp.minimum), 2)


def _spread(pooled: Array, window: int) -> Array:
  """`[..., h, w, C]` as it broadcasts over the sites of its windows."""
  return pooled if window == 1 else jnp.expand_dims(pooled, (-4, -2))


def _other_sites(x: Array, combine) -> Array:
  """Combines, for each site of a 2x2 window, the three others."""
  down, across = jnp.flip(x, -4), jnp.flip(x, -2)
  return combine(combine(down, across), jnp.flip(down, -2))


def _sum(terms: list[Array]) -> Array:
  return functools.reduce(operator.add, terms)
