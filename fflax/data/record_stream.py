"""Batches of a streamed set: read ahead by Grain's threads, in the order of a pure function.

Grain's position is the number of the step, so a checkpoint's own count of steps is all that there
is to save: a stream opened at that step goes on as if it had never stopped. Extra `stream`.
"""

import functools
import os
from collections.abc import Callable, Generator

import jax
import jax.numpy as jnp
import numpy as np

from fflax.data.dataset import Split
from fflax.data.stream import batch_indices
from fflax.types import Key

AHEAD = 256 * 2**20
"""Bytes of images that are read ahead; at least two batches are."""

_BLOCK = 256  # steps whose indices are computed at once


def step_rows(
  key: Key, num_examples: int, batch_size: int, shuffle: bool = True
) -> Callable[[int], np.ndarray]:
  """`step -> [B]`, the examples of that step: those of `batch_indices`, on the host.

  Computed on the CPU, so that reading ahead does not wait for the device that trains.
  """
  try:
    cpu = jax.local_devices(backend="cpu")[0]
  except RuntimeError:  # JAX was started without it
    cpu = jax.local_devices()[0]
  # By way of the host: a key that several processes hold together is put on no single device.
  bits, impl = np.asarray(jax.random.key_data(key)), jax.random.key_impl(key)
  with jax.default_device(cpu):
    key = jax.random.wrap_key_data(jnp.asarray(bits), impl=impl)
  indices = jax.jit(batch_indices, static_argnums=(2, 3, 4, 5))

  @functools.lru_cache(maxsize=4)
  def block(number: int) -> np.ndarray:
    with jax.default_device(cpu):
      rows = indices(key, number * _BLOCK, _BLOCK, num_examples, batch_size, shuffle)
    return np.asarray(rows)

  return lambda step: block(step // _BLOCK)[step % _BLOCK]


class _Steps:
  """What Grain reads: item `step` is the batch of that step."""

  def __init__(self, split: Split, rows: Callable[[int], np.ndarray], num_steps: int):
    self._split, self._rows, self._num_steps = split, rows, num_steps

  def __len__(self) -> int:
    return self._num_steps

  def __getitem__(self, step: int) -> tuple[np.ndarray, np.ndarray]:
    rows = self._rows(step)
    return self._split.image[rows], self._split.label[rows]


def batches(
  split: Split, rows: Callable[[int], np.ndarray], num_steps: int, first_step: int = 0
) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
  """Images `[B, H, W, C]` and labels `[B]` of the steps `first_step ... num_steps - 1`.

  Args:
    split: of a streamed set.
    rows: the examples of each step, a pure function; called from several threads.
    num_steps: where the stream ends.
    first_step: where it begins.

  Returns:
    A generator; its `close` ends the threads that read ahead.

  Raises:
    DataError: a record cannot be read.
  """
  import grain

  if first_step >= num_steps:
    return
  each = len(rows(first_step)) * (split.image.size // len(split.image))
  ahead = int(np.clip(AHEAD // each, 2, 64))
  options = grain.ReadOptions(
    num_threads=min(ahead, max(2, os.cpu_count() or 1)), prefetch_buffer_size=ahead
  )
  steps = grain.MapDataset.source(_Steps(split, rows, num_steps))
  iterator = iter(steps.to_iter_dataset(options))
  iterator.set_state({"next_index": first_step})
  try:
    yield from iterator
  finally:
    iterator.close()
