"""Look-ahead: a layer also learns from the losses of the layers above it, with weight lambda.

Paper: Ma, Panda, Reda, "FF-INT8", DAC 2025, arXiv 2506.22771:
`L_new_l = L_l + lambda * (L_{l+1} + ... + L_L)`. It writes that sum and says that no chain of
gradients is needed; both cannot hold, so there are two readings:

- "exact": the gradient of the sum as written. With J the sum of all losses, it is
  `(1 - lambda) * (local gradient) + lambda * (gradient of J)`: lambda = 0 is the strict rule,
  lambda = 1 is deep-supervised backprop. One reverse sweep: the gradient c that arrives from above
  enters the layer's own weights as `lambda * c`, and the layer below as c.
- "scalar": no chain. Only numbers go down: the slope a_l = dL_l/dG_l of each example becomes
  `a_l + lambda * sum_{k > l} a_k`. It changes the length of an example's gradient, never its
  direction, and stays zero where the goodness is.

Taken literally, without a chain the later losses are constants of a layer's weights: mode "none",
the strict rule.

Lambda follows the epoch (from 0) or, layer by layer, the run itself; see `COEFFICIENTS`.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from fflax.types import Array, PyTree

_EMA = 0.99
_LARGEST = 3e38


@dataclasses.dataclass(frozen=True)
class LookaheadConfig:
  """Whether and how layers look ahead.

  Attributes:
    mode: "none", "exact" or "scalar".
    schedule: of lambda: "linear" (`slope * epoch`), "constant" (`start`), "exponential"
      (`maximum * (1 - exp(-epoch / tau))`), "geometric" (`start * rate**epoch`), "adaptive_ready"
      (how many examples the layers above tell apart), "adaptive_norm" (`rho` times the ratio of the
      two gradients' norms) or "adaptive_cos" (their cosine).
    slope: per epoch; 0 reaches `maximum` at the end of the run. The paper takes 0.001.
    start, rate, tau, rho: see `schedule`; tau 0 is a third of the epochs.
    maximum: upper bound of lambda. The paper has none: take a large number.
    per_step: lambda moves every step, not only every epoch.
  """

  mode: str = "none"
  schedule: str = "linear"
  slope: float = 0.0
  start: float = 0.1
  rate: float = 1.05
  tau: float = 0.0
  rho: float = 1.0
  maximum: float = 1.0
  per_step: bool = False

  def __post_init__(self) -> None:
    """Refuses unknown names and impossible numbers with one sentence."""
    if self.mode not in ("none", "exact", "scalar"):
      raise ValueError(f"lookahead.mode must be 'none', 'exact' or 'scalar', not {self.mode!r}")
    if self.schedule not in COEFFICIENTS:
      raise ValueError(
        f"unknown lookahead.schedule {self.schedule!r}; there are {', '.join(COEFFICIENTS)}"
      )
    for field in ("slope", "start", "tau", "rho", "maximum"):
      if not 0 <= getattr(self, field) < math.inf:
        raise ValueError(f"lookahead.{field} must be 0 or more, not {getattr(self, field)}")
    if not 1 <= self.rate < math.inf:
      raise ValueError(f"lookahead.rate must be 1 or more, not {self.rate}")
    if self.mode == "scalar" and self.schedule in _FROM_GRADIENTS:
      raise ValueError(
        f"lookahead.schedule {self.schedule!r} compares gradients, which mode 'scalar' has not"
      )


class Lookahead(NamedTuple):
  """Look-ahead as the driver uses it; `state` is `TrainState.coupling`.

  Attributes:
    mode: "exact" or "scalar".
    init: `(num_layers) -> state`.
    coefficients: `(state, step, num_layers) -> [L]`, the lambdas of a step before its gradients.
    from_gradients: None, or `(lambda of the last step, local, later) -> lambda` for one layer, from
      the gradient of its own loss and the sum of those of the later losses.
    observe: None, or `(state, goodness [L] of [V, B]) -> state`.
    remember: `(state, lambdas [L]) -> state`, once the step's lambdas are known.
  """

  mode: str
  init: Callable[[int], PyTree]
  coefficients: Callable[[PyTree, Array, int], Array]
  from_gradients: Callable[[Array, PyTree, PyTree], Array] | None = None
  observe: Callable[[PyTree, Sequence[Array]], PyTree] | None = None
  remember: Callable[[PyTree, Array], PyTree] = lambda state, _: state


Coefficient = Callable[[LookaheadConfig, Array, int], Array]


def _linear(config: LookaheadConfig, epoch: Array, epochs: int) -> Array:
  slope = config.slope or config.maximum / epochs
  return slope * epoch


def _constant(config: LookaheadConfig, epoch: Array, epochs: int) -> Array:
  del epochs
  return jnp.full_like(epoch, config.start)


def _exponential(config: LookaheadConfig, epoch: Array, epochs: int) -> Array:
  return config.maximum * -jnp.expm1(-epoch / (config.tau or epochs / 3))


def _geometric(config: LookaheadConfig, epoch: Array, epochs: int) -> Array:
  del epochs
  # A run without end must not end in `0 * inf`.
  return config.start * jnp.minimum(jnp.power(config.rate, epoch), _LARGEST)


_FROM_GRADIENTS = ("adaptive_norm", "adaptive_cos")
COEFFICIENTS: Mapping[str, Coefficient | None] = MappingProxyType(
  {
    "linear": _linear,
    "constant": _constant,
    "exponential": _exponential,
    "geometric": _geometric,
    "adaptive_ready": None,
    "adaptive_norm": None,
    "adaptive_cos": None,
  }
)
"""Schedules of lambda: `(config, epoch, epochs) -> lambda` before its bound; None: from the run."""


def constant(value: float, mode: str = "exact") -> Lookahead:
  """Look-ahead with one lambda for all layers and steps."""
  return Lookahead(mode, lambda _: (), lambda state, step, n: jnp.full((n,), value, jnp.float32))


def make_lookahead(config: LookaheadConfig, epochs: int, steps_per_epoch: int) -> Lookahead | None:
  """What the driver needs to look ahead; None if the mode is "none".

  Args:
    config: which mode and schedule.
    epochs: of the whole run.
    steps_per_epoch: of the run, at least 1.
  """
  if config.mode == "none":
    return None
  rule = COEFFICIENTS[config.schedule]
  if rule is not None:

    def scheduled(state: PyTree, step: Array, num_layers: int) -> Array:
      del state
      epoch = step / steps_per_epoch if config.per_step else step // steps_per_epoch
      value = rule(config, jnp.asarray(epoch, jnp.float32), epochs)
      return jnp.full((num_layers,), jnp.minimum(value, config.maximum))

    return Lookahead(config.mode, lambda _: (), scheduled)
  if config.schedule == "adaptive_ready":
    return Lookahead(
      config.mode,
      # Half of all pairs in order is chance.
      lambda num_layers: {"ordered": jnp.full((num_layers,), 0.5)},
      lambda state, step, num_layers: config.maximum * _readiness_above(state["ordered"]),
      observe=_observe_order,
    )

  def compare(previous: Array, local: PyTree, later: PyTree) -> Array:
    if config.schedule == "adaptive_cos":
      total = jax.tree.map(jnp.add, local, later)
      product = optax.tree.vdot(local, total)
      norms = optax.tree.norm(local) * optax.tree.norm(total)
      return config.maximum * jnp.maximum(product / jnp.maximum(norms, 1e-30), 0.0)
    ratio = optax.tree.norm(local) / jnp.maximum(optax.tree.norm(later), 1e-30)
    now = jnp.minimum(config.rho * ratio, config.maximum)
    return _EMA * previous + (1 - _EMA) * now

  return Lookahead(
    config.mode,
    lambda num_layers: {"lambda": jnp.zeros((num_layers,))},
    lambda state, step, num_layers: state["lambda"],
    from_gradients=compare,
    remember=lambda state, lambdas: {"lambda": lambdas},
  )


def _readiness_above(ordered: Array) -> Array:
  """Mean of `max(0, 2 p_k - 1)` over the layers k above each layer; 0 for the last. `[L]`."""
  ready = jnp.maximum(2 * ordered - 1, 0.0)
  above = jnp.cumsum(ready[::-1])[::-1] - ready
  return above / jnp.maximum(jnp.arange(len(ordered))[::-1], 1)


def _observe_order(state: PyTree, goodness: Sequence[Array]) -> PyTree:
  """Moves the running fraction of pairs whose positive view has the higher goodness."""
  now = jnp.stack([jnp.mean((g[0] > g[1]).astype(jnp.float32)) for g in goodness])
  return {"ordered": _EMA * state["ordered"] + (1 - _EMA) * now}
