"""Multiply-accumulates of the two product primitives, from shapes alone."""

import math
from typing import Any, NamedTuple

import numpy as np
from jax.extend.core import JaxprEqn


class Macs(NamedTuple):
  """Multiply-accumulates of one product.

  Attributes:
    dense: every tap of a convolution at every output, padding included.
    valid: taps that meet a real input only; half of the flops that XLA counts for it.
  """

  dense: int
  valid: int


def shape_of(variable: Any) -> tuple[int, ...]:
  """The shape of an equation's argument or result."""
  return variable.aval.shape


def dot_macs(eqn: JaxprEqn) -> Macs:
  """Of a `dot_general`: the size of the result times that of the contracted axes."""
  (contracted, _), _ = eqn.params["dimension_numbers"]
  left, out = shape_of(eqn.invars[0]), shape_of(eqn.outvars[0])
  macs = math.prod(out) * math.prod(left[axis] for axis in contracted)
  return Macs(macs, macs)


def conv_macs(eqn: JaxprEqn) -> Macs:
  """Of a `conv_general_dilated`, in whatever role: forward, weight or input gradient, grouped.

  Where the left operand is spread out (input gradients of strided layers), its elements are counted
  and not the zeros between them, so that a layer's input gradient counts as much as the layer.
  """
  params = eqn.params
  numbers = params["dimension_numbers"]
  lhs, rhs, out = (shape_of(v) for v in (*eqn.invars[:2], eqn.outvars[0]))
  channels = out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * rhs[numbers.rhs_spec[1]]
  dense = valid = channels
  axes = zip(
    numbers.lhs_spec[2:],
    numbers.rhs_spec[2:],
    numbers.out_spec[2:],
    params["window_strides"],
    params["padding"],
    params["lhs_dilation"],
    params["rhs_dilation"],
    strict=True,
  )
  for left, right, result, stride, (low, _), spread, dilation in axes:
    size, taps, outputs = lhs[left], rhs[right], out[result]
    dense *= taps * (outputs if spread == 1 else size)
    at = stride * np.arange(outputs)[:, None] + dilation * np.arange(taps)[None, :] - low
    valid *= int(np.sum((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)))
  return Macs(dense, valid)
