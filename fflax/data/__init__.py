"""Data: sources on the host, batches and augmentation on the device."""

from fflax.data.augment import AugmentConfig, make_preprocess
from fflax.data.dataset import DataError, Dataset, Split
from fflax.data.normalize import normalization, statistics
from fflax.data.sources import load
from fflax.data.stream import (
  batch_indices,
  steps_per_epoch,
)

__all__ = [
  "AugmentConfig",
  "DataError",
  "Dataset",
  "Split",
  "batch_indices",
  "load",
  "make_preprocess",
  "normalization",
  "statistics",
  "steps_per_epoch",
]
