"""Robustness of class scores to noise and to adversarial perturbations of images in [0, 1].

`scores` is the deployed answer, `[B, ...] -> [B, K]` in evaluation mode. A `stop_gradient` within
would make every gradient attack look harmless; `spsa` asks for values alone and would tell.
Perturbations are bounded in L-infinity; every attacked image stays in [0, 1].
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from jax import lax

from fflax.core.losses import cross_entropy
from fflax.types import Array, Key

Scores = Callable[[Array], Array]


def margin(scores: Array, label: Array) -> Array:
  """`max_{c != y} S_c - S_y`, `[B]`: above 0 where the answer is wrong; it does not saturate."""
  own = jnp.take_along_axis(scores, label[:, None], axis=1)
  classes = jnp.arange(scores.shape[1])[None, :]
  others = jnp.where(classes == label[:, None], -jnp.inf, scores)
  return jnp.max(others, axis=1) - own[:, 0]


LOSSES: Mapping[str, Callable[[Array, Array], Array]] = {
  "margin": margin,
  "cross_entropy": cross_entropy,
}
"""What attacks raise, `[B, K], [B] -> [B]`. Where scores are large (goodness), the gradient of the
cross-entropy vanishes in float32; that of the margin does not."""


def gaussian(key: Key, image: Array, sigma: Array | float) -> Array:
  """`clip(x + sigma n, 0, 1)`, `n ~ N(0, 1)` for every pixel."""
  return jnp.clip(image + sigma * jax.random.normal(key, image.shape), 0.0, 1.0)


def fgsm(
  scores: Scores, image: Array, label: Array, radius: Array | float, loss: str = "margin"
) -> Array:
  """`clip(x + radius sign(dL/dx), 0, 1)` (I. Goodfellow et al., 2015, arXiv 1412.6572).

  Args:
    scores: see above.
    image: `[B, ...]` in [0, 1].
    label: `[B]`.
    radius: in pixel units.
    loss: in `LOSSES`.
  """
  gradient = jax.grad(lambda x: jnp.sum(LOSSES[loss](scores(x), label)))(image)
  return jnp.clip(image + radius * jnp.sign(gradient), 0.0, 1.0)


def pgd(
  scores: Scores,
  image: Array,
  label: Array,
  radius: Array | float,
  key: Key,
  *,
  steps: int = 40,
  step_size: Array | float | None = None,
  restarts: int = 1,
  loss: str = "margin",
  directions: int = 0,
) -> Array:
  """Projected gradient ascent from random starts (A. Madry et al., 2018, arXiv 1706.06083).

  `x <- clip(x + step_size sign(dL/dx))` onto the ball around the image and [0, 1]. Kept is, of all
  iterates and the image itself, the one with the greatest margin.

  Args:
    scores: see above.
    image: `[B, ...]` in [0, 1].
    label: `[B]`.
    radius: of the ball, in pixel units.
    key: of the starts, uniform in the ball, and of the directions.
    steps: of every start.
    step_size: in pixel units; None: `2.5 * radius / steps`.
    restarts: number of starts.
    loss: in `LOSSES`.
    directions: 0: the gradient; n: its estimate from the values at n random directions, see `spsa`.

  Returns:
    `[B, ...]`.

  Deviations: the paper keeps the last iterate; with the best one, more steps or starts never help
  the defender.
  """
  step_size = 2.5 * radius / steps if step_size is None else step_size
  low, high = jnp.maximum(image - radius, 0.0), jnp.minimum(image + radius, 1.0)

  def losses(x: Array) -> Array:
    return LOSSES[loss](scores(x), label)

  def gradient(key: Key, x: Array) -> Array:
    if directions:
      return spsa(key, losses, x, directions)
    return jax.grad(lambda v: jnp.sum(losses(v)))(x)

  def keep(best: tuple[Array, Array], x: Array) -> tuple[Array, Array]:
    found = margin(scores(x), label)
    better = (found > best[1]).reshape((-1,) + (1,) * (x.ndim - 1))
    return jnp.where(better, x, best[0]), jnp.maximum(found, best[1])

  def step(carry: tuple, key: Key) -> tuple[tuple, None]:
    x, best = carry
    x = jnp.clip(x + step_size * jnp.sign(gradient(key, x)), low, high)
    return (x, keep(best, x)), None

  def start(best: tuple[Array, Array], key: Key) -> tuple[tuple[Array, Array], None]:
    start_key, steps_key = jax.random.split(key)
    noise = jax.random.uniform(start_key, image.shape, minval=-1.0, maxval=1.0)
    x = jnp.clip(image + radius * noise, low, high)
    (_, best), _ = lax.scan(step, (x, keep(best, x)), jax.random.split(steps_key, steps))
    return best, None

  best = (image, margin(scores(image), label))
  best, _ = lax.scan(start, best, jax.random.split(key, restarts))
  return best[0]


def spsa(
  key: Key, losses: Callable[[Array], Array], x: Array, directions: int, width: float = 0.01
) -> Array:
  """A gradient's estimate from values alone, up to a factor (J. Spall, 1992; arXiv 1802.05666).

  The sum over random sign patterns v of `(L(x + width v) - L(x - width v)) v`: where gradients are
  masked, an attack with it gets further than one with the gradient.

  Args:
    key: of the patterns.
    losses: `[B, ...] -> [B]`.
    x: `[B, ...]`.
    directions: number of patterns.
    width: of the differences, in pixel units.
  """

  def add(total: Array, key: Key) -> tuple[Array, None]:
    v = jax.random.rademacher(key, x.shape, x.dtype)
    difference = losses(x + width * v) - losses(x - width * v)
    return total + difference.reshape((-1,) + (1,) * (x.ndim - 1)) * v, None

  total, _ = lax.scan(add, jnp.zeros_like(x), jax.random.split(key, directions))
  return total


def strongest(scores: Scores, label: Array, first: Array, *others: Array) -> Array:
  """Of several attacked images of each example, the one with the greatest margin."""
  best, found = first, margin(scores(first), label)
  for x in others:
    own = margin(scores(x), label)
    best = jnp.where((own > found).reshape((-1,) + (1,) * (x.ndim - 1)), x, best)
    found = jnp.maximum(own, found)
  return best
