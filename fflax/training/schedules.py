"""Schedules: which layers learn when."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from fflax.types import Array, Schedule


def simultaneous() -> Schedule:
  """One forward pass; every layer updates from it; the next layer sees the pre-update output."""
  return Schedule("simultaneous")


def interleaved() -> Schedule:
  """Within a step, layer l is updated first and layer l + 1 sees its new output (one more pass)."""
  return Schedule("interleaved", reforward=True)


def greedy(steps_per_layer: int) -> Schedule:
  """Layer 1 learns for `steps_per_layer` steps, then layer 2, and so on; the last one goes on.

  Layers that are not learning keep every bit of their parameters, optimiser state and statistics.

  Raises:
    ValueError: `steps_per_layer` is not positive.
  """
  if steps_per_layer < 1:
    raise ValueError(f"schedule greedy needs steps_per_layer >= 1, not {steps_per_layer}")

  def active(step: Array, num_layers: int) -> Array:
    return jnp.arange(num_layers) == jnp.minimum(step // steps_per_layer, num_layers - 1)

  return Schedule("greedy", active=active)


SCHEDULES: Mapping[str, Callable[[int], Schedule]] = {
  "simultaneous": lambda _: simultaneous(),
  "interleaved": lambda _: interleaved(),
  "greedy": greedy,
}


def make_schedule(name: str, steps_per_layer: int) -> Schedule:
  """The registered schedule `name`; only "greedy" reads `steps_per_layer`.

  Raises:
    ValueError: unknown name, or a bad number of steps.
  """
  if name not in SCHEDULES:
    raise ValueError(f"unknown schedule {name!r}; there are {', '.join(SCHEDULES)}")
  return SCHEDULES[name](steps_per_layer)
