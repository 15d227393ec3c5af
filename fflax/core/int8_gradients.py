"""How int8 training quantises its gradients: the largest value, and three published rivals' ways.

Every quantiser is `(g, state, for_weights, for_inputs) -> (parts, parts, new state)`. The two
functions round a gradient to int8, `(g, axis, scale) -> Quantized`, each with its own noise; the
parts, whose sum is the quantised gradient, enter the products for the gradient of the weights and
of the inputs. A state is float32 of one axis, laid out as the function's docstring says.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

import jax.numpy as jnp
from jax import lax

from fflax.core.quantize import Quantized, dequantize, quantize, scale_of
from fflax.types import Array

Gradient = Literal["absmax", "ui8", "dai8", "gdai8_approximation"]
Parts = tuple[Quantized, ...]

PERIOD = 100
"""Steps from one search of UI8 and of the approximation of GDAI8 to the next."""

UI8_PHI = 2
"""Where in the state of UI8 the factor of the layer's learning rate stands."""

_UI8_FRACTIONS = tuple(k / 20 for k in range(20, 0, -1))  # a tie goes to the least clipping
_GDAI8_EXPONENTS = tuple(range(8))
_TIE = 1e-9  # errors that differ by rounding alone
_DAI8_DECAY, _DAI8_RATE = 1.0, 0.8  # k and A of the paper


class Rival(NamedTuple):
  """A published way to quantise gradients.

  Attributes:
    paper: where it was published.
    initial_state: of the state, for a right operand (kernel) of a given shape.
    quantize: see the module.
  """

  paper: str
  initial_state: Callable[[tuple[int, ...]], Array]
  quantize: Callable[..., tuple[Parts, Parts, Array]]


def direction_error(g: Array, estimate: Array) -> Array:
  """`1 - cos` of the angle between a gradient and its estimate, `[]`; 0 if either is zero."""

  def unit(x: Array) -> tuple[Array, Array]:
    length = jnp.sqrt(jnp.sum(x**2))
    return x / jnp.where(length == 0, 1, length), length

  (u, length), (v, estimated) = unit(g), unit(estimate)
  # Half the squared distance of the unit vectors: `1 - u.v` would be lost in rounding.
  return jnp.where(length * estimated == 0, 0.0, jnp.sum((u - v) ** 2) / 2)


def ui8_phi(error: Array) -> Array:
  """The factor of a layer's learning rate for a direction error: `max(exp(-20 d), 0.1)`."""
  return jnp.maximum(jnp.exp(-20 * error), 0.1)


def dai8_is_gaussian(g: Array) -> Array:
  """Which channels (last axis) are bell-shaped: more than 0.3 of `|g|` beyond one deviation, `[N]`.

  The others are "inverted T": a sharp peak with long tails.
  """
  axes = tuple(range(g.ndim - 1))
  deviation = jnp.std(g, axis=axes, keepdims=True)
  return jnp.mean(jnp.abs(g) > deviation, axis=axes) > 0.3


def _normalized(g: Array) -> tuple[Array, Array]:
  """A gradient divided by its largest magnitude, so that squares cannot vanish; and the latter."""
  largest = jnp.max(jnp.abs(g), initial=0.0)
  return g / jnp.where(largest > 0, largest, 1.0), largest


def _best(candidates: tuple[float, ...], error: Callable[[Array], Array]) -> tuple[Array, Array]:
  """The candidate of the least error, the first of several, and its error."""
  values = jnp.asarray(candidates, jnp.float32)
  errors = lax.map(error, values)
  best = jnp.argmax(errors <= jnp.min(errors) + _TIE)
  return values[best], errors[best]


def _ui8(g: Array, state: Array, for_weights: Callable, _: Callable) -> tuple[Parts, Parts, Array]:
  """Clips at a fraction of the largest magnitude that is searched for periodically.

  State `[3]`: steps since the last search, the fraction, phi of the error found by that search.
  """
  v, largest = _normalized(g)

  def search() -> Array:
    def error(fraction: Array) -> Array:
      return direction_error(v, dequantize(quantize(v, scale=scale_of(fraction))))

    fraction, least = _best(_UI8_FRACTIONS, error)
    return jnp.stack([fraction, ui8_phi(least)])

  found = lax.cond(state[0] == 0, search, lambda: state[1:])
  parts = (for_weights(g, None, scale_of(found[0] * largest)),)
  return parts, parts, jnp.concatenate([_next(state[0]), found])


def _dai8(
  g: Array, state: Array, for_weights: Callable, for_inputs: Callable
) -> tuple[Parts, Parts, Array]:
  """Per output channel for the weights, clipped by a moving average where it is an inverted T.

  State `[1 + N]`: 0 before the first step, then 1; the clipping value of each channel.
  """
  largest = jnp.max(jnp.abs(g), axis=tuple(range(g.ndim - 1)), initial=0.0)
  previous = jnp.where(state[0] == 0, largest, state[1:])
  moved = (1 - _DAI8_DECAY * _DAI8_RATE) * previous + _DAI8_RATE * largest
  clip = jnp.where(dai8_is_gaussian(g), largest, moved)
  scale = scale_of(clip).reshape((1,) * (g.ndim - 1) + (-1,))
  new_state = jnp.concatenate([jnp.ones(1, jnp.float32), clip])
  return (for_weights(g, None, scale),), (for_inputs(g, None, None),), new_state


def _gdai8_approximation(
  g: Array, state: Array, for_weights: Callable, _: Callable
) -> tuple[Parts, Parts, Array]:
  """Two segments with a scale each, parted at a power of two of the largest magnitude.

  State `[2]`: steps since the last search, the exponent `e` of the boundary `2^-e * max|g|`.
  """
  v, largest = _normalized(g)

  def search() -> Array:
    def error(exponent: Array) -> Array:
      boundary = jnp.exp2(-exponent)
      fine, rest = _segments(
        v, boundary, jnp.ones(()), lambda x, _, scale: quantize(x, scale=scale)
      )
      return direction_error(v, dequantize(fine) + dequantize(rest))

    return _best(_GDAI8_EXPONENTS, error)[0]

  exponent = lax.cond(state[0] == 0, search, lambda: state[1])
  parts = _segments(g, jnp.exp2(-exponent) * largest, largest, for_weights)
  return parts, parts, jnp.concatenate([_next(state[0]), exponent[None]])


def _segments(g: Array, boundary: Array, largest: Array, rounded: Callable) -> Parts:
  """What is up to the boundary, with a scale for the boundary; the rest, with one for `largest`."""
  fine = jnp.abs(g) <= boundary
  return (
    rounded(jnp.where(fine, g, 0), None, scale_of(boundary)),
    rounded(jnp.where(fine, 0, g), None, scale_of(largest)),
  )


def _next(steps: Array) -> Array:
  return jnp.where(steps + 1 >= PERIOD, 0, steps + 1)[None]


RIVALS: Mapping[str, Rival] = MappingProxyType(
  {
    "ui8": Rival(
      "Zhu et al., Towards Unified INT8 Training for Convolutional Neural Network, CVPR 2020, "
      "arXiv 1912.12607",
      lambda _: jnp.asarray([0.0, 1.0, 1.0]),
      _ui8,
    ),
    "dai8": Rival(
      "Zhao et al., Distribution Adaptive INT8 Quantization for Training CNNs, AAAI 2021, "
      "arXiv 2102.04782",
      lambda shape: jnp.zeros(1 + shape[-1]),
      _dai8,
    ),
    "gdai8_approximation": Rival(
      "our approximation of Wang, Kang, Gradient distribution-aware INT8 training for neural "
      "networks, Neurocomputing 541:126269, 2023, whose formulas are not openly available",
      lambda _: jnp.zeros(2),
      _gdai8_approximation,
    ),
  }
)
"""Gradient quantisers with a state, by name."""
