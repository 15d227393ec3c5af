"""Collaborative Forward-Forward: layers add each other's goodness to their own before they judge.

Papers: G. Lorberbom et al., "Layer Collaboration in the Forward-Forward Algorithm", AAAI 2024,
arXiv 2305.12393; S. Beigzad, "NetworkFF", 2025, arXiv 2512.17531 (F-CFF: fixed gamma, A-CFF:
learned).

  Gc_l = G_l + gamma_l sum_{k != l} A_lk sg(G_k)

stands in the place of the goodness G_l in the layer's own loss. Numbers go from layer to layer, in
both directions; gradients do not.
"""

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.numerics import Numerics
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.types import Array, Broadcast, Key, LayerOut, Method, Metrics, Place, PyTree

GAMMA_RULES = ("fixed", "sgd", "sgd_clipped", "softplus", "oracle")
_BISECTIONS = 24


def _distance(depth: int) -> Array:
  place = jnp.arange(depth)
  return jnp.abs(place[:, None] - place[None, :])


STRUCTURES: Mapping[str, Callable[[int], Array]] = MappingProxyType(
  {
    "uniform": lambda depth: jnp.ones((depth, depth)) / max(1, depth - 1),
    "ones": lambda depth: jnp.ones((depth, depth)),
    "previous": lambda depth: jnp.tril(jnp.ones((depth, depth)), -1),
    "next": lambda depth: jnp.triu(jnp.ones((depth, depth)), 1),
    "neighbours": lambda depth: (_distance(depth) == 1).astype(jnp.float32),
    "distance": lambda depth: jnp.exp(-_distance(depth).astype(jnp.float32)),
    "none": lambda depth: jnp.zeros((depth, depth)),
    "learned_softmax": lambda depth: jnp.zeros((depth, depth)),
    "learned_free": lambda depth: jnp.ones((depth, depth)) / max(1, depth - 1),
  }
)
"""A `[L, L]` by name and depth, without regard to its diagonal, which never counts.

"uniform": 1 / (L - 1); "ones": 1 (Lorberbom's "all"); "previous" and "next": 1 for the layers below
or above; "neighbours": 1 for both neighbours; "distance": exp(-|l - k|); "none": plain FF; learned
ones start as uniform: "learned_softmax" holds the logits of each row, "learned_free" the entries.
"""


@dataclasses.dataclass(frozen=True)
class CollaborativeConfig(ForwardForwardConfig):
  """Hyper-parameters of collaborative FF: those of Forward-Forward, and how layers collaborate.

  Attributes:
    structure: which layers add to which, in `STRUCTURES`.
    gamma: its weight, or the start of it.
    gamma_rule: "fixed" (F-CFF); "sgd" (A-CFF: each layer's own loss moves its gamma);
      "sgd_clipped" (then clipped to [0, `gamma_max`]); "softplus" (gamma is the softplus of what
      SGD moves); "oracle" (the minimiser in [0, `gamma_max`] on each batch: the loss is convex in
      gamma).
    gamma_rate: learning rate of gamma and of learned structures.
    gamma_max: bound of "sgd_clipped" and "oracle".
    answer: whether layers score the classes by their "own" goodness G_l, as Forward-Forward does,
      or by the "collaborative" Gc_l. The sum of the latter is NetworkFF's collaborative sum; under
      "previous" with gamma 1 that of the last layer is the score that training sharpens.
  """

  structure: str = "uniform"
  gamma: float = 1.0
  gamma_rule: str = "fixed"
  gamma_rate: float = 0.01
  gamma_max: float = 2.0
  answer: str = "own"

  def check(self) -> None:
    """Raises ValueError with one sentence if a choice is unknown or a number impossible."""
    super().check()
    if self.structure not in STRUCTURES:
      raise ValueError(f"unknown structure {self.structure!r}; there are {', '.join(STRUCTURES)}")
    if self.gamma_rule not in GAMMA_RULES:
      raise ValueError(f"gamma_rule must be one of {GAMMA_RULES}, not {self.gamma_rule!r}")
    if self.answer not in ("own", "collaborative"):
      raise ValueError(f"answer must be 'own' or 'collaborative', not {self.answer!r}")
    if not abs(self.gamma) < float("inf"):
      raise ValueError(f"gamma must be finite, not {self.gamma}")
    for field in ("gamma_rate", "gamma_max"):
      if not 0 < getattr(self, field) < float("inf"):
        raise ValueError(f"{field} must be positive and finite, not {getattr(self, field)}")
    if self.gamma_rule == "softplus" and not self.gamma > 0:
      raise ValueError(f"gamma_rule 'softplus' needs a positive gamma, not {self.gamma}")
    if self.gamma_rule == "oracle" and self.loss == "swish":
      raise ValueError("gamma_rule 'oracle' needs a loss that is convex in gamma, not 'swish'")


def collaborative(
  config: CollaborativeConfig, num_classes: int, numerics: Numerics | None = None
) -> Method:
  """Collaborative FF as a `Method`, on any of Forward-Forward's losses, views and goodnesses.

  Locality: collaborative. A layer hears L - 1 numbers for every view and example; no gradient
  crosses, and gamma and the layer's row of A learn from the layer's own loss only. They are not
  among the parameters: plain SGD at `gamma_rate` moves them, whatever optimiser the layers have.
  Predictions are Forward-Forward's unless `answer` is "collaborative"; the collaborative sum
  `sum_l Gc_l` ranks the classes as the plain sum does wherever `sum_l gamma_l A_lk` is the same for
  every k, as with equal gammas under "uniform" and "ones".

  Deviations: NetworkFF's A and threshold are not public; A is "uniform" here, and the threshold is
  an option as in Forward-Forward. `oracle` solves on the present batch.

  Raises:
    ValueError: see `CollaborativeConfig.check`.
  """
  config.check()
  base = forward_forward(config, num_classes, numerics)
  learned = config.structure.startswith("learned")
  positive = config.gamma_rule == "softplus"

  def init_layer(key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    if place.depth < 2:
      raise ValueError("collaborative layers need others to hear from; this network has one layer")
    extras, stats = base.init_layer(key, out, place)
    gamma = jnp.float32(config.gamma)
    row = STRUCTURES[config.structure](place.depth)[place.position].astype(jnp.float32)
    held = {"gamma": _softplus_inverse(gamma) if positive else gamma, "row": row}
    return extras, {"base": stats, "collaboration": held}

  def weights(held: PyTree, heard: Broadcast) -> Array:
    """`gamma_l A_lk` for every layer k, `[L]`; 0 for the layer itself."""
    others = jnp.arange(heard.goodness.shape[0]) != heard.position
    row = held["row"]
    if config.structure == "learned_softmax":
      row = jax.nn.softmax(jnp.where(others, row, -jnp.inf))
    gamma = jax.nn.softplus(held["gamma"]) if positive else held["gamma"]
    return gamma * jnp.where(others, row, 0.0)

  def local_loss(
    params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    held, still = stats["collaboration"], lax.stop_gradient(out)

    def loss_of(held: PyTree, out: LayerOut) -> tuple[Array, tuple[PyTree, Metrics]]:
      added = jnp.sum(weights(held, context)[:, None, None] * context.goodness, axis=0)  # [V, B]
      return base.local_loss(params, stats["base"], out, label, added, key)

    if config.gamma_rule == "oracle":
      held = _minimise(lambda h: loss_of(h, still)[0], held, config.gamma_max)
    loss, (base_stats, metrics) = loss_of(lax.stop_gradient(held), out)
    slope = jax.grad(lambda h: loss_of(h, still)[0])(held)
    moved = dict(held)
    if config.gamma_rule in ("sgd", "sgd_clipped", "softplus"):
      moved["gamma"] = held["gamma"] - config.gamma_rate * slope["gamma"]
    if config.gamma_rule == "sgd_clipped":
      moved["gamma"] = jnp.clip(moved["gamma"], 0.0, config.gamma_max)
    if learned:
      moved["row"] = held["row"] - config.gamma_rate * slope["row"]
    gamma = jax.nn.softplus(moved["gamma"]) if positive else moved["gamma"]
    return loss, ({"base": base_stats, "collaboration": moved}, {**metrics, "gamma": gamma})

  def heard_scores(stats: PyTree, heard: Broadcast) -> Array:
    added = weights(stats["collaboration"], heard)[:, None, None] * heard.goodness  # [L, B, K]
    return heard.goodness[heard.position] + jnp.sum(added, axis=0)

  return base._replace(
    name="collaborative",
    paper="G. Lorberbom et al., AAAI 2024, arXiv 2305.12393; S. Beigzad, 2025, arXiv 2512.17531",
    locality="collaborative",
    init_layer=init_layer,
    local_loss=local_loss,
    class_scores=lambda params, stats, out: base.class_scores(params, stats["base"], out),
    goodness=lambda params, stats, out: base.goodness(params, stats["base"], out),  # type: ignore
    heard_scores=heard_scores if config.answer == "collaborative" else None,
  )


def _softplus_inverse(x: Array) -> Array:
  return x + jnp.log(-jnp.expm1(-x))


def _minimise(loss: Callable[[PyTree], Array], held: PyTree, bound: float) -> PyTree:
  """`held` with the gamma in [0, bound] that minimises a loss convex in it, by bisection.

  Not by Newton's method: a saturated start has hardly any curvature.
  """
  slope = jax.grad(lambda gamma: loss({**held, "gamma": gamma}))

  def halve(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
    low, high = ends
    middle = 0.5 * (low + high)
    rises = slope(middle) > 0
    return (jnp.where(rises, low, middle), jnp.where(rises, middle, high)), None

  (low, high), _ = lax.scan(halve, (jnp.float32(0.0), jnp.float32(bound)), None, length=_BISECTIONS)
  return {**held, "gamma": 0.5 * (low + high)}
