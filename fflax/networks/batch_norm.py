"""Batch norm of the networks with batch norm: over the whole batch, or over equal parts of it.

The driver stacks a method's views along the batch. Over the whole batch they share statistics
("bn_joint"); with as many parts as views each view has its own ("bn_separate").
"""

import flax.linen as nn
import jax.numpy as jnp
from jax import lax

from fflax.types import Array

_MOMENTUM, _EPSILON = 0.9, 1e-5


def batch_norm(x: Array, train: bool, groups: int = 1) -> Array:
  """Normalises `x` `[B, ..., C]`, inside a compact method, by a submodule named "norm".

  Running averages with momentum 0.9, epsilon 1e-5, learned scale and shift.

  Args:
    x: pre-activations.
    train: whether statistics are the batch's, and the running averages move.
    groups: equal parts of the batch that are normalised apart, see `GroupedBatchNorm`.

  Raises:
    ValueError: in training, if the batch cannot be parted so.
  """
  if groups > 1:
    return GroupedBatchNorm(groups, name="norm")(x, train)
  norm = nn.BatchNorm(
    use_running_average=not train, momentum=_MOMENTUM, epsilon=_EPSILON, name="norm"
  )
  return norm(x)


class GroupedBatchNorm(nn.Module):
  """Batch norm in which each of `groups` equal parts of the batch has statistics of its own.

  Variables are those of `nn.BatchNorm`: parts share scale and shift, and the running averages, by
  which evaluation normalises, are of the mean of the parts' statistics.
  """

  groups: int

  @nn.compact
  def __call__(self, x: Array, train: bool = False) -> Array:
    """The normalised `x` `[B, ..., C]`.

    Raises:
      ValueError: in training, if the batch cannot be parted so.
    """
    channels = x.shape[-1:]
    mean_average = self.variable("batch_stats", "mean", jnp.zeros, channels)
    var_average = self.variable("batch_stats", "var", jnp.ones, channels)
    scale = self.param("scale", nn.initializers.ones, channels)
    shift = self.param("bias", nn.initializers.zeros, channels)
    shape = x.shape
    if train:
      if shape[0] % self.groups:
        raise ValueError(
          f"Got a batch of {shape[0]}, which norm_groups={self.groups} cannot part equally."
        )
      x = x.reshape(self.groups, shape[0] // self.groups, *shape[1:])
      axes = tuple(range(1, x.ndim - 1))
      mean, var = jnp.mean(x, axis=axes), jnp.var(x, axis=axes)
      if not self.is_initializing():
        for average, new in ((mean_average, mean), (var_average, var)):
          average.value = _MOMENTUM * average.value + (1 - _MOMENTUM) * jnp.mean(new, axis=0)
    else:
      x, mean, var = x[None], mean_average.value[None], var_average.value[None]
    each = (len(mean), *(1,) * (x.ndim - 2), *channels)
    factor = lax.rsqrt(var + _EPSILON) * scale[None]
    y = (x - mean.reshape(each)) * factor.reshape(each)
    return (y + shift.reshape((1, *each[1:]))).reshape(shape)


def check_norm_groups(norm_groups: int, batch_norm: bool) -> None:
  """Raises ValueError unless `norm_groups` is a positive integer that batch norm can use."""
  if type(norm_groups) is not int or norm_groups < 1:
    raise ValueError(f"Got norm_groups={norm_groups!r}, but it must be an integer of at least 1.")
  if norm_groups > 1 and not batch_norm:
    raise ValueError(f"Got norm_groups={norm_groups}, but without batch_norm there is no norm.")
