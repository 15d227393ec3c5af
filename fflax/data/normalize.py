"""Means and standard deviations by which inputs are standardised, in units of `max_value`."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from fflax.data.dataset import Dataset

Normalization = Literal["none", "standard", "dataset", "half", "imagenet"]

STANDARD: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
  "mnist": ((0.1307,), (0.3081,)),
  "fashion_mnist": ((0.2860,), (0.3530,)),
  "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
  "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}
"""Per channel, of all training pixels, as the literature rounds them."""

FIXED: Mapping[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
  "half": ((0.5,), (0.5,)),
  "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Constants that recipes use for any set; one number stands for every channel."""

_BLOCK = 2**22  # pixels that are counted at once


def normalization(name: str) -> tuple[np.ndarray, np.ndarray]:
  """The usual `(mean, std)` of a data set, each `[C]` float32.

  Raises:
    ValueError: for a set without usual values.
  """
  if name not in STANDARD:
    raise ValueError(
      f"no standard normalization is known for {name!r}, only for {', '.join(STANDARD)}"
    )
  mean, std = STANDARD[name]
  return np.asarray(mean, np.float32), np.asarray(std, np.float32)


def statistics(dataset: Dataset, mode: Normalization) -> tuple[np.ndarray, np.ndarray]:
  """The `(mean, std)` to standardise a data set with, each `[C]` (`[D]` for features) float32.

  Args:
    dataset: of which only the training split is read.
    mode: "none": 0 and 1; "standard": see `normalization`; "half" and "imagenet": see `FIXED`;
      "dataset": computed here, a constant channel or feature getting std 1.

  Raises:
    ValueError: for another mode, and see `normalization`.
  """
  image = dataset.train.image
  if mode == "none":
    return np.zeros(image.shape[-1], np.float32), np.ones(image.shape[-1], np.float32)
  if mode == "standard":
    return normalization(dataset.name)
  if mode in FIXED:
    mean, std = (np.asarray(c, np.float32) for c in FIXED[mode])
    if mean.size not in (1, image.shape[-1]):
      raise ValueError(f"normalization {mode!r} is for {mean.size} channels, not {image.shape[-1]}")
    return np.resize(mean, image.shape[-1]), np.resize(std, image.shape[-1])
  if mode != "dataset":
    raise ValueError(f"normalization {mode!r} is none of none, standard, dataset, half, imagenet")
  if image.dtype == np.uint8:
    mean, std = _pixel_statistics(image)
  else:
    mean, std = image.mean(0, dtype=np.float64), image.std(0, dtype=np.float64)
  mean, std = mean / dataset.max_value, std / dataset.max_value
  return mean.astype(np.float32), np.where(std > 0, std, 1).astype(np.float32)


def count_pixels(image: np.ndarray) -> np.ndarray:
  """How often each value is there, `[C, 256]` int64, of images `[..., C]` uint8."""
  channels = (image[..., c].ravel() for c in range(image.shape[-1]))
  return np.stack([np.bincount(pixels, minlength=256) for pixels in channels])


def _pixel_statistics(image: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Mean and deviation by channel, each `[C]` float64, from counts of the 256 values.

  A block at a time, so that a streamed set is never held, and read only if it must be.
  """
  block = max(1, _BLOCK // (image.size // len(image)))
  counts = getattr(image, "pixel_counts", None)  # written down when the set was packed
  if counts is None:
    counts = np.zeros((image.shape[-1], 256), np.int64)
    for first in range(0, len(image), block):
      counts += count_pixels(image[first : first + block])
  values, share = np.arange(256.0), counts / counts[0].sum()
  mean = share @ values
  return mean, np.sqrt(np.sum(share * np.square(values[None] - mean[:, None]), axis=1))
