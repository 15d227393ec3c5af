"""What the units of a layer do with their pre-activation: they fire, and are pooled."""

import functools
from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from fflax.core.pooling import max_pool_2x2
from fflax.networks.activations import Activation, Pbits
from fflax.types import Array, LayerOut

Pool = Literal["max", "avg"]
POOLS: Mapping[str, Callable[[Array], Array]] = {
  "max": max_pool_2x2,
  "avg": functools.partial(nn.avg_pool, window_shape=(2, 2), strides=(2, 2)),
}

SAMPLING = "sampling"
"""The stream of keys that p-bits draw from; modules without it emit their mean field."""


def activate(
  module: nn.Module, activation: Activation, pre: Array, pool: Pool | None = None
) -> LayerOut:
  """What the units of a layer do with their pre-activation.

  Args:
    module: whose stream of keys stochastic units draw from; must be inside a compact method.
    activation: elementwise.
    pre: `[B, ...]`; `[B, H, W, C]` if it is pooled.
    pool: 2x2 with stride 2 after the activation; an odd last row or column is dropped.

  Returns:
    What the layer computes, if nothing follows. Pooled p-bits take the pool of their own settings
    for "max"; their average has no `square`.
  """
  if isinstance(activation, Pbits):
    return _activate_pbits(module, activation, pre, pool)
  act = activation(pre)
  return LayerOut(pre, act, _pooled(act, pool))


def _activate_pbits(
  module: nn.Module, activation: Pbits, pre: Array, pool: Pool | None
) -> LayerOut:
  key = module.make_rng(SAMPLING) if module.has_rng(SAMPLING) else None
  act, act_square = activation.emit(key, pre)
  log_prob = None
  if key is not None and activation.config.estimator == "score":
    log_prob = activation.log_prob(key, pre)
  if pool == "max":
    out, square = activation.emit(key, pre, 2)
  elif pool == "avg":
    out, square = _pooled(act, pool), None
  else:
    out, square = act, act_square
  counts = None if key is None or pool == "avg" else out
  return LayerOut(pre, act, out, square, log_prob, counts, act_square)


def _pooled(act: Array, pool: Pool | None) -> Array:
  return act if pool is None else POOLS[pool](act)


class Normed(NamedTuple):
  """What a norm of `x` `[..., C]` makes of it.

  Attributes:
    out: `scale * x + shift`.
    square: its square, with a gradient of its own if that of `x` has one; None if it was not given.
    scale, shift: `[C]`; None if the norm does not tell.
  """

  out: Array
  square: Array | None
  scale: Array | None = None
  shift: Array | None = None


class SquareNorm(nn.Module):
  """Batch norm of `x` `[..., C]` that carries the square of `x`, with its own gradient, along.

  Variables, running averages and values are those of `nn.BatchNorm`; the batch's variance is taken
  from the given square, so that it has that square's gradient, too.

  Deviations:
    The gradient through the batch's variance is by flips, too: taken in the middle between a unit's
    two states, not at the state that was drawn.

  Attributes:
    momentum: of the running averages.
    epsilon: added to the variance.
    affine: whether there are a learned scale and shift.
    frozen: whether the batch's statistics count as constants in the gradient.
  """

  momentum: float = 0.9
  epsilon: float = 1e-5
  affine: bool = True
  frozen: bool = False

  @nn.compact
  def __call__(self, x: Array, square: Array, train: bool = False) -> Normed:
    """The normalised `x`, and its square."""
    channels = (x.shape[-1],)
    mean_average = self.variable("batch_stats", "mean", jnp.zeros, channels)
    var_average = self.variable("batch_stats", "var", jnp.ones, channels)
    if train:
      axes = tuple(range(x.ndim - 1))
      mean = jnp.mean(x, axis=axes)
      var = jnp.maximum(jnp.mean(square, axis=axes) - jnp.square(mean), 0)
      if self.frozen:
        mean, var = lax.stop_gradient((mean, var))
      if not self.is_initializing():
        m = self.momentum
        mean_average.value = m * mean_average.value + (1 - m) * mean
        var_average.value = m * var_average.value + (1 - m) * var
    else:
      mean, var = mean_average.value, var_average.value
    factor = lax.rsqrt(var + self.epsilon)
    if self.affine:
      factor = factor * self.param("scale", nn.initializers.ones, channels)
    shape = (1,) * (x.ndim - 1) + channels
    scale, shift = factor, -mean * factor
    factor = factor.reshape(shape)
    y = (x - mean.reshape(shape)) * factor
    if self.affine:
      bias = self.param("bias", nn.initializers.zeros, channels)
      y, shift = y + bias.reshape(shape), shift + bias
    return Normed(y, affine_square(y, factor, x, square), scale, shift)


def affine_square(y: Array, factor: Array, x: Array, square: Array) -> Array:
  """The square of `y = factor * x + B`, with the gradient that the square of `x` has."""
  # A^2 square + 2 A B x + B^2, without its cancellation: the second term is 0, or a variance, but
  # has a gradient.
  return jnp.square(y) + jnp.square(factor) * (square - jnp.square(x))
