"""Several runs as one classifier: the mean of their probabilities."""

from collections.abc import Sequence

import jax
import numpy as np

from experiments.assembly import Experiment
from experiments.batches import in_batches
from fflax.data.dataset import Dataset
from fflax.types import TrainState

Member = tuple[Experiment, TrainState]


def probabilities(member: Member) -> np.ndarray:
  """What a run's first readout gives each class of the test split, `[N, K]`.

  Scores go through a softmax; answers that are probabilities already (of "mean_probability", of
  sampled passes) stay as they are.

  Raises:
    ValueError: the readout counts votes.
  """
  experiment, state = member
  name = experiment.readouts[0].name
  if name == "vote":
    raise ValueError("votes are no probabilities: name another readout first")
  scores = name != "mean_probability" and not experiment.config.eval_samples

  @jax.jit
  def answer(image: jax.Array) -> jax.Array:
    found = experiment.trainer.answer(state, experiment.preprocess(None, image)).readouts[name]
    return jax.nn.softmax(found) if scores else found

  return in_batches(answer, experiment.config.eval_batch_size, experiment.dataset.test.image)


def check_test_split(datasets: Sequence[Dataset], what: str, *, images: bool = False) -> None:
  """Refuses data sets whose test examples are not the same ones in the same order.

  Args:
    datasets: of the runs.
    what: they are, for the sentence.
    images: whether the images must be equal too, of the same size and range, not the labels alone.

  Raises:
    ValueError: one sentence.
  """
  first = datasets[0]
  for other in datasets[1:]:
    same = np.array_equal(other.test.label, first.test.label)
    if same and images:
      same = other.max_value == first.max_value
      same = same and np.array_equal(other.test.image, first.test.image)
    if not same:
      raise ValueError(f"{what} must share their test split")


def accuracies(members: Sequence[Member]) -> tuple[list[float], float]:
  """Test accuracy (fractions) of each member, and of the mean of their probabilities.

  Raises:
    ValueError: there are fewer than two, or they do not share a test split.
  """
  if len(members) < 2:
    raise ValueError(f"an ensemble has two runs or more, not {len(members)}")
  check_test_split([experiment.dataset for experiment, _ in members], "the runs of an ensemble")
  label = members[0][0].dataset.test.label
  chances = np.stack([probabilities(member) for member in members])
  right = lambda p: float(np.mean(np.argmax(p, axis=-1) == label))  # noqa: E731
  return [right(p) for p in chances], right(chances.mean(axis=0))
