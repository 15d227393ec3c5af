"""What may stand in the place of a batch norm where no batch is at hand, as on analog hardware.

An affine map of each channel, `y = A x + B`, whose constants do not depend on the examples that are
being computed: a wire's gain and an offset, and both can be absorbed into the next kernel.

The papers on binary stochastic FF leave open how to do without batch norm; these are ours.
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from fflax.networks.units import Normed, affine_square
from fflax.types import Array


class SubstituteNorm(nn.Module):
  """A gain and an offset of each channel of `x` `[..., C]`.

  The gain holds the running root mean square of `x`: the statistics move in training, but the batch
  never meets its own, and no gradient passes them.

  Attributes:
    gain: whether `x` is divided by `sqrt(mean_square + epsilon)`, a running average that starts at
      1.
    scale: whether there is a learned factor, too.
    bias: whether there is a learned offset.
    momentum: of the running average.
    epsilon: see `gain`.
  """

  gain: bool = True
  scale: bool = True
  bias: bool = False
  momentum: float = 0.9
  epsilon: float = 1e-4

  @nn.compact
  def __call__(self, x: Array, square: Array | None = None, train: bool = False) -> Normed:
    """The `y` of `x`, and its square if `square` is that of `x` with a gradient of its own."""
    channels = (x.shape[-1],)
    factor = jnp.ones(channels)
    if self.gain:
      average = self.variable("batch_stats", "mean_square", jnp.ones, channels)
      factor = lax.rsqrt(average.value + self.epsilon)
      if train and not self.is_initializing():
        found = jnp.mean(x * x if square is None else square, axis=tuple(range(x.ndim - 1)))
        average.value = self.momentum * average.value + (1 - self.momentum) * found
    if self.scale:
      factor = factor * self.param("scale", nn.initializers.ones, channels)
    shape = (1,) * (x.ndim - 1) + channels
    scale, shift = factor, jnp.zeros(channels)
    factor = factor.reshape(shape)
    y = x * factor
    if self.bias:
      shift = self.param("bias", nn.initializers.zeros, channels)
      y = y + shift.reshape(shape)
    own = None if square is None else affine_square(y, factor, x, square)
    return Normed(y, own, scale, shift)
