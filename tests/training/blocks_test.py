"""Blocks: which neighbours are stacked, and that nothing is lost by it."""

import itertools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from fflax.training.blocks import find_blocks, stack_states, unstack_states
from fflax.types import Layer, LayerState


def layer(spec) -> Layer:
  return Layer("layer", lambda key, x: ({}, {}), lambda *_, **__: None, spec)


def state(shape=(2, 3), dtype=jnp.float32, head=False) -> LayerState:
  params = {"layer": {"kernel": jnp.zeros(shape, dtype)}, "method": {}}
  if head:
    params["method"] = {"head": jnp.zeros(shape)}
  return LayerState(params, (), {"layer": {}, "method": {}})


def image(shape=(5, 4), dtype=jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(shape, dtype)


PLAIN = ("a", image(), state())
KINDS = {
  "plain": PLAIN,
  "other spec": ("b", image(), state()),
  "other input shape": ("a", image((5, 7)), state()),
  "other input dtype": ("a", image(dtype=jnp.int32), state()),
  "other parameter shape": ("a", image(), state((3, 3))),
  "other parameter dtype": ("a", image(), state(dtype=jnp.bfloat16)),
  "with a head": ("a", image(), state(head=True)),
}


@pytest.mark.parametrize("name", [n for n in KINDS if n != "plain"])
def test_layers_that_differ_are_not_stacked(name):
  """One parameter of one shape too many in a stack would be broadcast or refused far from here."""
  kinds = [PLAIN, PLAIN, KINDS[name], KINDS[name], PLAIN]
  specs, inputs, states = zip(*kinds, strict=True)
  assert find_blocks([layer(s) for s in specs], inputs, states) == (2, 2, 1)


@hypothesis.given(st.lists(st.sampled_from(sorted(KINDS)), max_size=9), st.integers(2, 4))
def test_blocks_are_the_maximal_runs(names, smallest):
  """Oracle: run lengths by itertools; those that are too short fall apart into single layers."""
  kinds = [KINDS[name] for name in names]
  specs, inputs, states = ([k[i] for k in kinds] for i in range(3))
  found = find_blocks([layer(s) for s in specs], inputs, states, smallest)
  expected = []
  for _, run in itertools.groupby(names):
    length = len(list(run))
    expected += [length] if length >= smallest else [1] * length
  assert found == tuple(expected)


@pytest.mark.parametrize("blocks", [(1, 1, 1, 1), (1, 3), (2, 2), (4,)])
def test_unstacking_gives_back_every_bit_in_order(blocks):
  rng = np.random.default_rng(0)

  def random_state() -> LayerState:
    number = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return LayerState(
      {"layer": {"w": number(2, 3)}, "method": {}},
      (jnp.asarray(rng.integers(9), jnp.int32), {"w": number(2, 3)}),
      {"layer": {}, "method": {"mean": number()}},
    )

  states = [random_state() for _ in range(4)]
  stacked = stack_states(states, blocks)
  assert len(stacked) == len(blocks)
  for block, s in zip(blocks, stacked, strict=True):
    shape = (2, 3) if block == 1 else (block, 2, 3)
    assert s.params["layer"]["w"].shape == shape
  for before, after in zip(states, unstack_states(stacked, blocks), strict=True):
    assert jax.tree.structure(before) == jax.tree.structure(after)
    jax.tree.map(np.testing.assert_array_equal, before, after)


def test_no_layers():
  assert find_blocks([], [], []) == ()
  assert stack_states([], ()) == unstack_states((), ()) == ()
