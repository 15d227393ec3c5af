"""An ensemble of runs against the mean of what its members answer."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments.assembly import build
from experiments.config import DataConfig, ExperimentConfig
from experiments.ensembles import accuracies, probabilities


def member(seed, experiment):
  return experiment, jax.jit(experiment.trainer.init)(jax.random.key(seed), experiment.example())


def test_the_mean_of_the_members_probabilities():
  config = ExperimentConfig(
    method="backprop", networks={"mlp": {"sizes": (8,)}}, eval_batch_size=100
  )
  experiment = build(config)
  members = [member(seed, experiment) for seed in range(3)]
  test = experiment.dataset.test
  image = experiment.preprocess(None, test.image)
  total, want = 0.0, []
  for (_, state), found in zip(members, map(probabilities, members), strict=True):
    logits = np.asarray(experiment.trainer.answer(state, image).readouts["score_sum"], np.float64)
    powers = np.exp(logits)
    p = powers / powers.sum(-1, keepdims=True)
    np.testing.assert_allclose(found, p, atol=1e-5)
    total, want = total + p, [*want, np.mean(p.argmax(-1) == test.label)]
  alone, together = accuracies(members)
  assert alone == pytest.approx(want)
  assert together == pytest.approx(np.mean(total.argmax(-1) == test.label))
  with pytest.raises(ValueError, match="two runs or more, not 1"):
    accuracies(members[:1])
  fewer = dataclasses.replace(config, data=DataConfig("synthetic"))
  with pytest.raises(ValueError, match="share their test split"):
    accuracies([members[0], (build(fewer), None)])


def test_probabilities_stay_as_they_are_and_votes_are_refused():
  config = ExperimentConfig(
    method="backprop", networks={"mlp": {"sizes": (8,)}}, readouts=("mean_probability",)
  )
  one = member(0, build(config))
  np.testing.assert_allclose(probabilities(one).sum(-1), 1, atol=1e-5)
  image = one[0].preprocess(None, one[0].dataset.test.image)
  want = one[0].trainer.answer(one[1], image).readouts["mean_probability"]
  np.testing.assert_allclose(probabilities(one), want, atol=1e-6)
  with pytest.raises(ValueError, match="^votes are no probabilities"):
    probabilities(member(0, build(dataclasses.replace(config, readouts=("vote",)))))
