"""The teacher-student task: Gaussian inputs labelled by a random network.

A task whose number of classes is a free choice, with exact labels and no image structure.
"""

import itertools
from typing import NamedTuple

import numpy as np

from fflax.data.dataset import DataError, Dataset, check_split, make_dataset

DIM = 50
HIDDEN = (128, 128)

# Roles of the random streams; each is drawn from (seed, role, ...), so that none shifts another.
_TEACHER, _TRAIN, _TEST = 0, 1, 2


class Teacher(NamedTuple):
  """A 50-128-128-K perceptron with ReLU after its first two layers, float64.

  Attributes:
    kernels: `[in, out]` of each layer.
    biases: `[out]` of each layer.
  """

  kernels: tuple[np.ndarray, ...]
  biases: tuple[np.ndarray, ...]

  def logits(self, x: np.ndarray) -> np.ndarray:
    """`[N, 50] -> [N, K]`, in float64 so that the label does not hang on float32 rounding."""
    x = np.asarray(x, np.float64)
    for kernel, bias in zip(self.kernels[:-1], self.biases[:-1], strict=True):
      x = np.maximum(x @ kernel + bias, 0)
    return x @ self.kernels[-1] + self.biases[-1]


def make_teacher(seed: int, num_classes: int) -> Teacher:
  """The teacher of one seed and number of classes: all weights from U(-1, 1) / sqrt(fan_in)."""
  rng = np.random.RandomState([seed, _TEACHER, num_classes])
  kernels, biases = [], []
  widths = (DIM, *HIDDEN, num_classes)
  for fan_in, fan_out in itertools.pairwise(widths):
    bound = 1 / np.sqrt(fan_in)
    kernels.append(rng.uniform(-bound, bound, (fan_in, fan_out)))
    biases.append(rng.uniform(-bound, bound, fan_out))
  return Teacher(tuple(kernels), tuple(biases))


def load(
  *, seed: int = 0, num_classes: int = 10, num_train: int = 20_000, num_test: int = 5_000
) -> Dataset:
  """Draws `x ~ N(0, I_50)` and labels it by the argmax of the seed's teacher.

  The seed is the task: it draws teacher, training and test inputs. Classes are as unequal as the
  teacher makes them; a class may be rare, or absent from a small split.

  Raises:
    DataError: for a seed outside 32 bits, fewer than 2 classes or an empty split.
  """
  if not 0 <= seed < 2**32:
    raise DataError(f"synthetic: seed {seed} must be in [0, 2**32)")
  for name, value, least in (
    ("num_classes", num_classes, 2),
    ("num_train", num_train, 1),
    ("num_test", num_test, 1),
  ):
    if value < least:
      raise DataError(f"synthetic: {name} {value} must be at least {least}")
  teacher = make_teacher(seed, num_classes)

  def draw(role: int, size: int, part: str):
    x = np.random.RandomState([seed, role]).randn(size, DIM).astype(np.float32)
    label = np.argmax(teacher.logits(x), axis=1)
    return check_split(x, label, f"synthetic ({part})")

  return make_dataset(
    "synthetic",
    draw(_TRAIN, num_train, "train"),
    draw(_TEST, num_test, "test"),
    num_classes=num_classes,
    where="synthetic",
  )
