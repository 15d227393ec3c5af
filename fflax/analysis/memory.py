"""Memory of a compiled function, as the compiler planned it."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax


class MemoryUse(NamedTuple):
  """Bytes on the device.

  Attributes:
    arguments, outputs: of the function.
    alias: of outputs that lie in the place of donated arguments.
    temporaries: all that lives in between, after the compiler has reused what it can.
    peak: `arguments + outputs - alias + temporaries`: what a call needs, its own data included.
  """

  arguments: int
  outputs: int
  alias: int
  temporaries: int
  peak: int


def compiled_memory(compiled: Any) -> MemoryUse:
  """The memory of a `jax.stages.Compiled`.

  Raises:
    ValueError: the backend's compiler does not say.
  """
  try:
    found = compiled.memory_analysis()
  except NotImplementedError:
    found = None
  if found is None:
    raise ValueError(f"the compiler of backend {jax.default_backend()!r} gives no memory analysis")
  arguments, outputs = found.argument_size_in_bytes, found.output_size_in_bytes
  alias, temporaries = found.alias_size_in_bytes, found.temp_size_in_bytes
  peak = arguments + outputs - alias + temporaries
  return MemoryUse(arguments, outputs, alias, temporaries, peak)


def memory_of(fn: Callable, *args: Any, donate: Sequence[int] = ()) -> MemoryUse:
  """Compiles `fn` for the default backend and reads its memory; nothing is computed.

  Args:
    fn: any traceable function.
    *args: arrays, or `jax.ShapeDtypeStruct`s in their place.
    donate: positions of the arguments whose memory the results may take.

  Raises:
    ValueError: see `compiled_memory`.

  Example:
    >>> import jax.numpy as jnp
    >>> memory_of(lambda x: x + 1, jnp.zeros((256,))).outputs
    1024
  """
  return compiled_memory(jax.jit(fn, donate_argnums=tuple(donate)).lower(*args).compile())
