"""Several runs as one classifier: the mean of their probabilities."""

from collections.abc import Sequence

import jax
import numpy as np

from experiments.assembly import Experiment
from fflax.types import TrainState

Member = tuple[Experiment, TrainState]


def probabilities(member: Member) -> np.ndarray:
  """The softmax of the answers of a run's first readout to the test split, `[N, K]`."""
  experiment, state = member
  name, size = experiment.readouts[0].name, experiment.config.eval_batch_size

  @jax.jit
  def answer(state: TrainState, image: jax.Array) -> jax.Array:
    return jax.nn.softmax(
      experiment.trainer.answer(state, experiment.preprocess(None, image)).readouts[name]
    )

  images = experiment.dataset.test.image
  parts = [answer(state, images[i : i + size]) for i in range(0, len(images), size)]
  return np.concatenate([np.asarray(part) for part in parts])


def accuracies(members: Sequence[Member]) -> tuple[list[float], float]:
  """Test accuracy (fractions) of each member, and of the mean of their probabilities.

  Raises:
    ValueError: there are fewer than two, or they do not share a test split.
  """
  if len(members) < 2:
    raise ValueError(f"an ensemble has two runs or more, not {len(members)}")
  label = members[0][0].dataset.test.label
  for experiment, _ in members[1:]:
    if not np.array_equal(experiment.dataset.test.label, label):
      raise ValueError("the runs of an ensemble must share their test split")
  chances = np.stack([probabilities(member) for member in members])
  right = lambda p: float(np.mean(np.argmax(p, axis=-1) == label))  # noqa: E731
  return [right(p) for p in chances], right(chances.mean(axis=0))
