"""Several processes that train one run together (`jax.distributed`): who writes, what all know.

Every process runs the same program on its own devices, in the same order; only the first one writes
metrics. In a process that is alone, all of this is nothing.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from fflax.types import PyTree

_LONGEST = 64


def is_first() -> bool:
  """Whether this process is the one that writes."""
  return jax.process_index() == 0


def wait_for_all(name: str) -> None:
  """Waits until all processes have come here."""
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(name)


def texts_of_all(text: str) -> list[str]:
  """What each process gives, the same list in all.

  Raises:
    ValueError: it is longer than 64 bytes.
  """
  own = text.encode()
  if len(own) > _LONGEST:
    raise ValueError(f"processes tell each other at most {_LONGEST} bytes, not {len(own)}")
  if jax.process_count() == 1:
    return [text]
  rows = multihost_utils.process_allgather(np.frombuffer(own.ljust(_LONGEST, b"\0"), np.uint8))
  return [row.tobytes().rstrip(b"\0").decode() for row in rows]


def spread(arrays: PyTree) -> PyTree:
  """Host arrays that all processes have, as arrays that they hold together: whole in each.

  Raises:
    AssertionError: the processes have different values.
  """
  everyone: dict[int, jax.Device] = {}
  for device in jax.devices():
    everyone.setdefault(device.process_index, device)
  mesh = Mesh(np.array(list(everyone.values())), ("process",))
  return jax.device_put(arrays, NamedSharding(mesh, PartitionSpec()))
