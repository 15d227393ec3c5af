"""Data: sources on the host, batches and augmentation on the device."""

from fflax.data.augment import AugmentConfig, make_preprocess
from fflax.data.dataset import DataError, Dataset, Split
from fflax.data.normalize import normalization, statistics
from fflax.data.sources import load
from fflax.data.stream import (
  DeviceSplit,
  batch_indices,
  eval_batches,
  steps_per_epoch,
  take,
  to_device,
)

__all__ = [
  "AugmentConfig",
  "DataError",
  "Dataset",
  "DeviceSplit",
  "Split",
  "batch_indices",
  "eval_batches",
  "load",
  "make_preprocess",
  "normalization",
  "statistics",
  "steps_per_epoch",
  "take",
  "to_device",
]
