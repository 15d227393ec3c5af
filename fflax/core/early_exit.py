"""Early exit: every layer is a classifier, so a prediction may stop at the first that is sure.

After each layer with class scores a readout answers from the layers so far; the first of these
answers whose confidence is above a threshold stands, and no layer above needs to be run.

Papers: S. Teerapittayanon, B. McDanel, H. T. Kung, BranchyNet, ICPR 2016, arXiv 1709.01686, where
branches stop by their entropy; temperatures as in C. Guo et al., On Calibration of Modern Neural
Networks, ICML 2017, arXiv 1706.04599.

Deviations: no branches are trained for it. Confidence is the largest probability or the margin to
the second, not the entropy; one threshold for all depths, after one temperature a depth, for scores
that are summed over layers grow with the depth.

Shape letters: E depths at which a prediction may stop, N examples, K classes.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fflax.core.losses import cross_entropy
from fflax.types import Array, Readout

Confidence = Literal["softmax", "margin"]

_TEMPERATURES = np.float32(2.0) ** (np.arange(80, -81, -1, dtype=np.float32) / 8)
"""Tried ones, `[161]`: from 1,024 down to 1/1,024 by eighths of an octave."""


class ExitRule(NamedTuple):
  """When a prediction stops.

  Attributes:
    threshold: `[]`; an answer stands if its confidence is above: 1 never stops before the last
      depth, 0 stops at the first (a margin of exactly 0 alone goes on).
    temperature: `[E]`, by which the answers at each depth are divided before their softmax.
    confidence: "softmax" (the largest probability) or "margin" (its lead over the second).
  """

  threshold: Array | float
  temperature: Array
  confidence: Confidence = "softmax"


def answers_by_depth(
  readout: Readout, scores: Sequence[Array | None]
) -> tuple[tuple[int, ...], Array]:
  """What a readout answers from the first layers alone, however many there are.

  Args:
    readout: of class scores ("score_sum", "mean_probability", "last_layer", "vote").
    scores: `[N, K]` of every layer, or None.

  Returns:
    The layers (from 0) after which it answers anew, E of them, and its answers `[E, N, K]`; the
    last is the readout's own.

  Raises:
    ValueError: the readout reads features, or no layer gives it scores.
  """
  if readout.view != "scores":
    raise ValueError(
      f"early exit needs a readout of class scores, such as 'score_sum': {readout.name!r} reads "
      "features"
    )
  layers, answers = [], []
  for i, own in enumerate(scores):
    if own is None:
      continue
    try:
      answers.append(readout.predict({}, {}, tuple(scores[: i + 1]), ()))
    except ValueError:  # all layers so far stand before the readout's first
      continue
    layers.append(i)
  if not layers:
    raise ValueError(f"early exit found no layer that gives readout {readout.name!r} class scores")
  return tuple(layers), jnp.stack(answers).astype(jnp.float32)


def confidences(rule: ExitRule, answers: Array) -> Array:
  """How sure each answer `[E, N, K]` is, `[E, N]` in [0, 1]; NaN where the answer is.

  Raises:
    ValueError: the rule's confidence is unknown.
  """
  if rule.confidence not in get_args(Confidence):
    raise ValueError(f"confidence must be softmax or margin, not {rule.confidence!r}")
  chances = jax.nn.softmax(answers / rule.temperature[:, None, None], axis=-1)
  if rule.confidence == "softmax":
    return jnp.max(chances, axis=-1)
  best = lax.top_k(chances, 2)[0]
  return best[..., 0] - best[..., 1]


def stops(confidence: Array, threshold: Array | float) -> Array:
  """The depth (0 to E - 1) at which each example stops, `[N]` int32, by confidences `[E, N]`."""
  sure = (confidence > threshold).at[-1].set(True)
  return jnp.argmax(sure, axis=0).astype(jnp.int32)


def stop(rule: ExitRule, answers: Array) -> tuple[Array, Array]:
  """Where each example stops, `[N]` int32 from 0 to E - 1, and what stands there, `[N, K]`."""
  depth = stops(confidences(rule, answers), rule.threshold)
  return depth, jnp.take_along_axis(answers, depth[None, :, None], axis=0)[0]


def fit_temperature(answers: Array, label: Array, smoothing: float = 0.0) -> Array:
  """The temperature of each depth with the least cross-entropy on `[E, N, K]` and `[N]`; `[E]`.

  The best of 161 from 1/1,024 to 1,024, the higher of equals. `smoothing` of the labels keeps it
  from vanishing where every answer is right, as on examples that the layers were trained on.
  """

  def surprise(temperature: Array) -> Array:
    rows = [cross_entropy(one / temperature, label, smoothing) for one in answers]
    return jnp.mean(jnp.stack(rows), axis=-1)

  tried = jnp.asarray(_TEMPERATURES)
  return tried[jnp.argmin(lax.map(surprise, tried), axis=0)]


def by_threshold(confidence: Array, values: Array) -> tuple[Array, Array]:
  """The sum of a quantity over all examples, for every threshold that makes a difference.

  Args:
    confidence: `[E, N]`.
    values: `[E, N]`, what each example would count if it stopped there: right or wrong, or a cost.

  Returns:
    Ascending thresholds `[M]`, 0 first, the last of which stops nothing early, and the sums `[M]`
    in the dtype of `values`; M = (E - 1) N + 1.
  """
  # An example has passed depth e once the threshold reaches its best confidence up to there.
  best = lax.cummax(jnp.nan_to_num(confidence), axis=0)[:-1].reshape(-1)
  order = jnp.argsort(best)
  passed, change = best[order], (values[1:] - values[:-1]).reshape(-1)[order]
  thresholds = jnp.concatenate([jnp.zeros(1, best.dtype), passed])
  changes = jnp.concatenate([jnp.zeros(1, change.dtype), jnp.cumsum(change)])
  so_far = jnp.searchsorted(passed, thresholds, side="right")
  return thresholds, jnp.sum(values[0]) + changes[so_far]


def fit(
  answers: Array, label: Array, epsilon: float, confidence: Confidence = "softmax"
) -> ExitRule:
  """The rule that stops as early as it may, on examples that no layer was trained on.

  Temperatures first (`fit_temperature`), then the smallest threshold at which at most a fraction
  `epsilon` of the examples is lost against the full depth.

  Args:
    answers: `[E, N, K]`.
    label: `[N]`.
    epsilon: in [0, 1).
    confidence: see `ExitRule`.

  Raises:
    ValueError: `epsilon` or `confidence` is impossible.
  """
  if not 0 <= epsilon < 1:
    raise ValueError(f"epsilon must be in [0, 1), not {epsilon}")
  rule = ExitRule(1.0, fit_temperature(answers, label), confidence)
  right = (jnp.argmax(answers, axis=-1) == label[None]).astype(jnp.int32)
  thresholds, sums = by_threshold(confidences(rule, answers), right)
  # The share of examples as a number of them, which rounding must not make one less.
  enough = sums >= jnp.sum(right[-1]) - jnp.floor(epsilon * len(label) + 1e-3)
  return rule._replace(threshold=thresholds[jnp.argmax(enough)])
