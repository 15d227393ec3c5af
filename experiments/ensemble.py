"""Several runs as one classifier: `python -m experiments.ensemble --workdirs=runs/a,runs/b`.

The runs' probabilities (softmax of what each one's own readout answers) are averaged: BP-Ensemble,
if they are nets of backprop that differ in their seeds alone. Prints the test accuracy of each and
of the mean; changes nothing in the folders.
"""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments import cli, console
from experiments.assembly import Experiment
from experiments.running import reopened
from fflax.types import TrainState

_WORKDIRS = flags.DEFINE_list("workdirs", [], "folders of the runs")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "where sets lie here, if not where they lay")

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


def main(argv: list[str]) -> int:
  del argv
  folders = [pathlib.Path(name).expanduser() for name in _WORKDIRS.value]
  with cli.checking():
    alone, together = accuracies([reopened(folder, _DATA_DIR.value) for folder in folders])
  for folder, accuracy in zip(folders, alone, strict=True):
    console.console.print(f"{100 * accuracy:6.2f} %  {folder}")
  console.console.print(f"{100 * together:6.2f} %  mean probability of {len(folders)} runs")
  return 0


if __name__ == "__main__":
  cli.run(main)
