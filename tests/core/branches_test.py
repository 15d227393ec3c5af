"""Values that XLA may not compute again in every consumer."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.branches import computed_once, in_branch, in_loop, surely
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbits import pbit

ON_CPUS = pytest.mark.skipif(jax.default_backend() != "cpu", reason="loops stand on CPUs alone")
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


@ON_CPUS
@pytest.mark.parametrize("way", [in_branch, in_loop])
def test_what_is_always_taken_is_taken(way):
  def learn(state, x):
    return state + x.T @ (x @ state), jnp.sum(x)

  state, x, i = jnp.ones((256, 256)), jnp.eye(8, 256), jnp.arange(3)
  alone = jax.jit(lambda state, x, i: way(surely(i), learn, state, x), donate_argnums=0)
  program = alone.lower(state, x, i).compile()
  # The product that is added. Until jaxlib 0.12 a branch holds the new state, too, to copy it.
  if way is in_loop:
    assert program.memory_analysis().temp_size_in_bytes < 1.5 * state.nbytes
  new, total = program(jnp.copy(state), x, i)
  np.testing.assert_array_equal(new, state + x.T @ (x @ state))
  assert total == 8


@ON_CPUS
def test_nothing_is_taken_out_of_a_loop():
  """Of arguments that do not change, neither."""

  def learn(state, x):
    return state + jnp.sum(jnp.tanh(x)), ()

  args = jnp.ones(()), jnp.ones(1000), jnp.arange(3)
  program = jax.jit(lambda s, x, i: in_loop(surely(i), learn, s, x)).lower(*args).compile()
  text = program.as_text()
  assert " while(" in text and "tanh" in text and "tanh" not in text.split("ENTRY")[1]


@ON_CPUS
def test_a_loop_refuses_a_state_of_another_kind():
  with pytest.raises(TypeError, match="float32"):
    in_loop(jnp.array(True), lambda s: (s.astype(jnp.int32),), jnp.ones(3))
