"""Values that XLA may not compute again in every consumer."""

import re

import jax
import jax.numpy as jnp
import numpy as np

from fflax.core.branches import computed_once
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbits import pbit

_MIX = str(0x7FEB352D)  # a constant of the hash that no other code has


def computations_with(text: str, constant: str) -> int:
  """How many of a compiled program's computations hold a constant."""
  return sum(f"constant({constant})" in c for c in re.split(r"^}", text, flags=re.M))


def test_pbits_are_drawn_once_for_their_answer_and_their_gradient():
  config = PbitConfig(units=3)

  def loss(v, key):
    z, square = pbit(key, v, config, window=2)
    return jnp.sum(square.mean((1, 2)).reshape(2, 3, 2).sum(-1)[:, 0]) + jnp.sum(z[..., :3] * 0.1)

  args = jax.ShapeDtypeStruct((2, 4, 4, 6), jnp.float32), jax.eval_shape(jax.random.key, 0)
  program = jax.jit(jax.value_and_grad(loss)).lower(*args).compile()
  assert computations_with(program.as_text(), _MIX) == 1


def test_trees_pass_whole():
  x = jnp.arange(3.0)
  found = jax.jit(lambda x: computed_once(lambda: (x + 1, {"y": x * 2}), x < -1))(x)
  np.testing.assert_array_equal(found[0], [1, 2, 3])
  np.testing.assert_array_equal(found[1]["y"], [0, 2, 4])
