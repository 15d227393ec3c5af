"""Early exit: stops by hand, the limits of the threshold, thresholds against brute force."""

import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import early_exit
from fflax.core.early_exit import ExitRule
from fflax.core.readouts import last_layer, score_sum, softmax_head, vote

LOG = np.log(np.array([[0.5, 0.3, 0.2], [0.8, 0.1, 0.1], [0.2, 0.2, 0.6]]))


def made_up(seed=0, depths=3, size=40, classes=4):
  """Answers that improve with the depth, and the labels."""
  rng = np.random.default_rng(seed)
  label = rng.integers(0, classes, size)
  gain = np.arange(1, depths + 1)[:, None, None]
  answers = rng.normal(size=(depths, size, classes)) + gain * np.eye(classes)[label]
  return jnp.asarray(answers, jnp.float32), jnp.asarray(label, jnp.int32)


def stops(confidence, threshold):
  """By numpy: the first depth above the threshold, or the last."""
  above = np.asarray(confidence) > float(threshold)
  above[-1] = True
  return above.argmax(axis=0)


def test_answers_by_depth_are_the_readout_on_the_layers_so_far():
  first, second, third = (jnp.asarray(row)[None] for row in LOG)
  scores = (first, None, second, third)
  layers, answers = early_exit.answers_by_depth(score_sum(), scores)
  assert layers == (0, 2, 3)
  np.testing.assert_allclose(answers[:, 0], np.cumsum(LOG, axis=0), rtol=1e-6)
  layers, answers = early_exit.answers_by_depth(score_sum(first_layer=1), scores)
  assert layers == (2, 3)  # the first layer counts neither alone nor in sums
  np.testing.assert_allclose(answers[:, 0], [LOG[1], LOG[1] + LOG[2]], rtol=1e-6)
  layers, answers = early_exit.answers_by_depth(last_layer(), scores)
  assert layers == (0, 2, 3)
  np.testing.assert_allclose(answers[:, 0], LOG, rtol=1e-6)
  assert early_exit.answers_by_depth(vote(), scores)[1].shape == (3, 1, 3)
  with pytest.raises(ValueError, match="'softmax_head' reads features"):
    early_exit.answers_by_depth(softmax_head(3), scores)
  with pytest.raises(ValueError, match="no layer that gives readout 'score_sum' class scores"):
    early_exit.answers_by_depth(score_sum(first_layer=4), scores)


@pytest.mark.parametrize(
  ("confidence", "threshold", "depth"),
  [
    ("softmax", 0.4, 0),  # 0.5 is above
    ("softmax", 0.55, 1),  # 0.8 is the first above
    ("softmax", 0.85, 2),  # none is: the last
    ("margin", 0.15, 0),  # 0.5 - 0.3
    ("margin", 0.25, 1),  # 0.8 - 0.1
    ("margin", 0.75, 2),
  ],
)
def test_stops_by_hand(confidence, threshold, depth):
  answers = jnp.asarray(LOG)[:, None]
  rule = ExitRule(threshold, jnp.ones(3), confidence)
  found, scores = early_exit.stop(rule, answers)
  assert found.tolist() == [depth] and found.dtype == jnp.int32
  np.testing.assert_allclose(scores[0], LOG[depth], rtol=1e-6)


def test_a_temperature_is_of_its_depth():
  """At temperature 1/2 the first answer's probabilities are squared: 25/38 is above 0.6."""
  answers = jnp.asarray(LOG)[:, None]
  rule = ExitRule(0.6, jnp.array([0.5, 1.0, 1.0]))
  np.testing.assert_allclose(
    early_exit.confidences(rule, answers)[:, 0], [25 / 38, 0.8, 0.6], rtol=1e-5
  )
  assert early_exit.stop(rule, answers)[0].tolist() == [0]


def test_threshold_one_is_the_whole_depth_and_zero_the_first():
  answers, _ = made_up()
  answers = answers.at[0, :5].multiply(1e4)  # probabilities of exactly 1 do not stop at 1 either
  for threshold, depth, confidence in ((1.0, 2, "softmax"), (1.0, 2, "margin"), (0.0, 0, "margin")):
    rule = ExitRule(threshold, jnp.ones(3), confidence)
    found, scores = early_exit.stop(rule, answers)
    assert np.all(found == depth)
    np.testing.assert_array_equal(scores, answers[depth])


def test_what_is_not_a_number_goes_on_and_unknown_confidences_are_refused():
  answers = jnp.asarray(LOG)[:, None].at[0, 0, 1].set(jnp.nan)
  assert early_exit.stop(ExitRule(0.3, jnp.ones(3)), answers)[0].tolist() == [1]
  with pytest.raises(ValueError, match="softmax or margin, not 'entropy'"):
    early_exit.confidences(ExitRule(0.5, jnp.ones(3), "entropy"), answers)


def test_sums_by_threshold_are_those_of_stopping():
  answers, label = made_up()
  # Confidences that sink with the depth, and equal ones.
  sure = early_exit.confidences(ExitRule(0.0, jnp.ones(3)), answers).round(1)
  sure = sure.at[0, 0].set(jnp.nan)
  right = (answers.argmax(-1) == label[None]).astype(jnp.int32)
  thresholds, sums = early_exit.by_threshold(sure, right)
  assert thresholds.shape == sums.shape == (81,) and sums.dtype == jnp.int32
  assert thresholds[0] == 0 and np.all(np.diff(thresholds) >= 0)
  right = np.asarray(right)
  for threshold, total in zip(np.asarray(thresholds), np.asarray(sums), strict=True):
    assert total == right[stops(sure, threshold), np.arange(40)].sum()
  assert sums[-1] == right[-1].sum()
  np.testing.assert_array_equal(early_exit.stops(sure, thresholds[40]), stops(sure, thresholds[40]))


@pytest.mark.parametrize("epsilon", [0.0, 0.05])
def test_the_threshold_is_the_smallest_that_loses_no_more(epsilon):
  answers, label = made_up(seed=3)
  rule = early_exit.fit(answers, label, epsilon)
  sure = np.asarray(early_exit.confidences(rule, answers))
  right = np.asarray(answers.argmax(-1) == label[None])

  def hits(threshold):
    return right[stops(sure, threshold), np.arange(40)].sum()

  least = right[-1].sum() - round(40 * epsilon)
  assert hits(rule.threshold) >= least
  smaller = [t for t in {0.0, *sure.ravel().tolist()} if t < rule.threshold]
  assert all(hits(t) < least for t in smaller)
  assert len(smaller) > 3
  with pytest.raises(ValueError, match=r"epsilon must be in \[0, 1\), not 1"):
    early_exit.fit(answers, label, 1.0)


def test_temperatures_are_those_that_made_the_scores():
  """Labels drawn from softmax(scores / T): the fit finds T, at each depth its own."""
  rng = np.random.default_rng(0)
  logits = 2 * rng.normal(size=(4000, 5))
  powers = np.exp(logits - logits.max(-1, keepdims=True))
  draws = (powers / powers.sum(-1, keepdims=True)).cumsum(-1) > rng.uniform(size=(4000, 1))
  label = jnp.asarray(draws.argmax(-1))
  answers = jnp.asarray(np.stack([logits, 8 * logits, logits / 16]), jnp.float32)
  found = early_exit.fit_temperature(answers, label)
  np.testing.assert_allclose(found, [1, 8, 1 / 16], rtol=0.1)
  # Where all are right the coldest wins, unless labels are smoothed.
  sure = 4 * jnp.eye(5)[None]
  assert early_exit.fit_temperature(sure, jnp.arange(5))[0] < 0.3
  p = 1 - 0.1 * 4 / 5
  margin = 4 / np.log(p / (0.1 / 5))  # at which softmax gives the smoothed label itself
  np.testing.assert_allclose(
    early_exit.fit_temperature(sure, jnp.arange(5), 0.1), [margin], rtol=0.05
  )
