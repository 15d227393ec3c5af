"""Blocks: runs of equal neighbouring layers, whose states are stacked on a leading axis."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from fflax.types import Layer, LayerState


def find_blocks(
  layers: Sequence[Layer],
  inputs: Sequence[jax.ShapeDtypeStruct],
  states: Sequence[LayerState],
  smallest: int = 2,
) -> tuple[int, ...]:
  """The lengths of the maximal runs of layers that one `lax.scan` can drive.

  Runs shorter than `smallest` are given as layers that stand alone, blocks of 1.

  Neighbours are equal if they have the same `spec`, see inputs of the same shape and carry states
  of the same structure (so a last layer with a head of its own stands alone).
  """

  def kind(i: int) -> tuple:
    shapes = jax.tree.map(lambda a: (a.shape, str(a.dtype)), states[i])
    leaves, tree = jax.tree.flatten(shapes, is_leaf=lambda a: isinstance(a, tuple))
    return layers[i].spec, inputs[i].shape, str(inputs[i].dtype), tuple(leaves), tree

  blocks: list[int] = []
  for i in range(len(layers)):
    if i and kind(i) == kind(i - 1):
      blocks[-1] += 1
    else:
      blocks.append(1)
  kept = ((n,) if n >= smallest else (1,) * n for n in blocks)
  return tuple(n for run in kept for n in run)


def stack_states(states: Sequence[LayerState], blocks: Sequence[int]) -> tuple[LayerState, ...]:
  """One `LayerState` per block; blocks longer than one layer get a leading axis."""
  stacked, first = [], 0
  for n in blocks:
    run = states[first : first + n]
    stacked.append(run[0] if n == 1 else jax.tree.map(lambda *a: jnp.stack(a), *run))
    first += n
  return tuple(stacked)


def unstack_states(states: Sequence[LayerState], blocks: Sequence[int]) -> tuple[LayerState, ...]:
  """One `LayerState` per layer: the inverse of `stack_states`."""
  layers: list[LayerState] = []
  for n, state in zip(blocks, states, strict=True):
    if n == 1:
      layers.append(state)
    else:
      layers += [jax.tree.map(lambda a, j=j: a[j], state) for j in range(n)]
  return tuple(layers)
