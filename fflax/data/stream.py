"""Which examples a step sees: a pure function of a key and the step's number, so nothing to save.

A split that fits lives on the device as it is stored (uint8); batches are gathered there.
"""

import jax
import jax.numpy as jnp

from fflax.data.permutation import ROUNDS, permute
from fflax.types import Array, Key


def steps_per_epoch(num_examples: int, batch_size: int) -> int:
  """Full batches in an epoch; the remainder is dropped (another one each epoch, if shuffled).

  Raises:
    ValueError: if there is not one full batch.
  """
  if not 1 <= batch_size <= num_examples:
    raise ValueError(
      f"batch_size {batch_size} must be in [1, {num_examples}], the examples there are"
    )
  return num_examples // batch_size


def batch_indices(
  key: Key,
  first_step: Array | int,
  num_steps: int,
  num_examples: int,
  batch_size: int,
  shuffle: bool = True,
) -> Array:
  """The examples of steps `first_step ... first_step + num_steps - 1`.

  Every epoch is a new permutation of the examples, drawn from `fold_in(key, epoch)`, cut into
  batches; the remainder is dropped. The batch of a step depends on the key and on the step's number
  alone, not on how steps are grouped into calls. May be vmapped over keys and over `first_step`.

  Args:
    key: of the run's batches; not folded with the step.
    first_step: `[]` integer in `[0, 2**31)`, may be traced.
    num_steps: static.
    num_examples: N, static.
    batch_size: B, static.
    shuffle: False: every epoch is in the stored order.

  Returns:
    `[num_steps, B]` int32 in `[0, N)`.

  Raises:
    ValueError: if there is not one full batch.

  Deviations: a keyed bijection in place of `jax.random.permutation`, whose sort would cost as much
  as many training steps; see `fflax.data.permutation`.
  """
  per_epoch = steps_per_epoch(num_examples, batch_size)
  step = jnp.asarray(first_step, jnp.int32) + jnp.arange(num_steps, dtype=jnp.int32)
  start = (step % per_epoch) * batch_size
  position = start[:, None] + jnp.arange(batch_size, dtype=jnp.int32)[None, :]
  if not shuffle:
    return position
  epoch_key = jax.vmap(lambda epoch: jax.random.fold_in(key, epoch))(step // per_epoch)
  round_keys = jax.vmap(lambda k: jax.random.bits(k, (ROUNDS,), jnp.uint32))(epoch_key)
  round_keys = jnp.broadcast_to(round_keys[:, None, :], (num_steps, batch_size, ROUNDS))
  return permute(position, round_keys, num_examples)
