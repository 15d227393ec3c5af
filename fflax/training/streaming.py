"""Training on a set that does not fit on the device: windows of batches pass through it.

The host takes the batches of a few steps from a stream, sends them as one window and lets the
ordinary chunk run over it, while it takes the next ones. The steps are the same program on the same
examples as if the set lay on the device, so a streamed run equals that one bit for bit.
Devices that share a batch (`mesh.data`) may round the two differently: equal up to rounding there.

At most three windows are under way: the one that is taken and two that are dispatched. A window has
one batch at least, so in a deep pipeline whose batches are larger than `WINDOW`, three batches are
in flight, however many stages wait for one.
"""

import collections
import dataclasses
from collections.abc import Callable, Generator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fflax.random import Role, role_key
from fflax.types import Array, Key, TrainState

WINDOW = 64 * 2**20
"""Bytes of images that are sent at once; three windows are on the device at a time."""

_DEPTH = 2
"""Windows that are dispatched and not known to be done."""

Batches = Generator[tuple[np.ndarray, np.ndarray], None, None]


@dataclasses.dataclass(frozen=True)
class Stream:
  """Where the batches of a run come from, step by step.

  Attributes:
    open: `(key, first_step) -> images [B, ...] as stored, labels [B]` of each step from the first
      one on; pure but for reading. The key is that of `Feed.indices`.
    batch_size: B.
    batch_bytes: of the images of a batch.
  """

  open: Callable[[Key, int], Batches]
  batch_size: int
  batch_bytes: int

  def batches(self, state: TrainState) -> Batches:
    """From the state's step on; to be closed."""
    return self.open(role_key(state.key, Role.BATCH), int(state.step))

  def window(self, capacity: int) -> int:
    """The steps of a window, in a run whose chunks have at most `capacity`."""
    return int(np.clip(WINDOW // self.batch_bytes, 1, capacity))

  def indices(self, key: Key, first_step: Array, num_steps: int) -> Array:
    """In the place of `Feed.indices`: where the examples of a window's steps stand in it."""
    del key, first_step
    place = jnp.arange(num_steps * self.batch_size, dtype=jnp.int32)
    return place.reshape(num_steps, self.batch_size)


def beside(state: TrainState) -> Callable[[Any], Any]:
  """Sends host arrays to where the state is: its device, or whole to each of its devices.

  A state that is not bound to a device stays unbound beside them: a program is compiled anew for
  arguments that are.
  """
  where = state.step.sharding if state.step.committed else None
  if where is None or where.is_fully_addressable:
    return lambda arrays: jax.device_put(arrays, where)

  def one(x: np.ndarray) -> Array:  # `device_put` would have the processes compare every window
    return jax.make_array_from_callback(x.shape, where, x.__getitem__)

  return lambda arrays: jax.tree.map(one, arrays)


def feed_chunk(
  chunk: Callable[..., tuple[Any, Any]], batches: Batches, state: TrainState, window: int
) -> Callable[..., tuple[Any, Any]]:
  """A chunk of any length that takes its batches from a stream, one after the other.

  Of several processes that share a batch, each reads all of it.

  Args:
    chunk: `(held, images, labels, num_steps) -> (held, results)`, of at most `window` steps, made
      with `Stream.indices`.
    batches: of the run's stream, from the state's step on.
    state: where the run stands now; its device, or devices, get the windows.
    window: the steps of a window.

  Returns:
    The same function for any number of steps, to be called for one chunk after the other; the
    arrays in the place of images and labels are not looked at.
  """
  put = beside(state)
  under_way: collections.deque[Any] = collections.deque()

  def take(num_steps: int) -> tuple[np.ndarray, np.ndarray]:
    """The next batches, one behind the other; what is left of the window stays zero."""
    image, label = next(batches)
    size = len(label)
    images = np.zeros((window * size, *image.shape[1:]), image.dtype)
    labels = np.zeros(window * size, label.dtype)
    for first in range(0, num_steps * size, size):
      if first:
        image, label = next(batches)
      images[first : first + size], labels[first : first + size] = image, label
    return images, labels

  def run(held: Any, images: Any, labels: Any, num_steps: int) -> tuple[Any, Any]:
    del images, labels
    found = []
    for first in range(0, num_steps, window):
      steps = min(window, num_steps - first)
      held, results = chunk(held, *put(take(steps)), steps)
      found.append(results)
      # The host must not pile up windows that the device has not come to.
      under_way.append(results)
      if len(under_way) > _DEPTH:
        jax.block_until_ready(under_way.popleft())
    return held, jax.tree.map(lambda *rows: jnp.concatenate(rows), *found)

  return run
