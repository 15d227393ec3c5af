"""What is read of the compiler's plan, on functions whose memory is known."""

import jax
import jax.numpy as jnp
import pytest

from fflax.analysis.memory import compiled_memory, memory_of

MATRIX = jax.ShapeDtypeStruct((64, 64), jnp.float32)
BYTES = 64 * 64 * 4


def test_arguments_outputs_and_what_is_donated():
  use = memory_of(lambda x, w: w * x[0, 0], MATRIX, MATRIX)
  assert (use.arguments, use.outputs, use.alias) == (2 * BYTES, BYTES, 0)
  assert use.peak == use.arguments + use.outputs + use.temporaries
  given = memory_of(lambda x, w: w * x[0, 0], MATRIX, MATRIX, donate=(1,))
  assert given.alias == BYTES
  assert given.peak == use.peak - BYTES


def test_backward_passes_hold_what_the_forward_pass_saved():
  def deep(x, w):
    for _ in range(8):
      x = jnp.tanh(x @ w)
    return jnp.sum(x)

  forward, backward = memory_of(deep, MATRIX, MATRIX), memory_of(jax.grad(deep), MATRIX, MATRIX)
  assert backward.temporaries >= forward.temporaries + 5 * BYTES


@pytest.mark.parametrize("answer", [None, NotImplementedError()])
def test_a_compiler_that_does_not_say_is_reported(answer):
  class Compiled:
    def memory_analysis(self):
      if answer is not None:
        raise answer

  with pytest.raises(ValueError, match="gives no memory analysis"):
    compiled_memory(Compiled())
