"""Key derivation: root -> step -> role -> layer.

Every random number of a run is a pure function of the root key and of where it is used, so a run
cut anywhere and resumed equals the uncut run, and layers may be reordered, stacked or pipelined.
"""

import enum

import jax

from fflax.types import Array, Key

_ROLES_START = 1 << 31  # above every step number, so that no role's key is a step's key


class Role(enum.IntEnum):
  """What a key is for. Numbers are part of a run's identity: append, never renumber."""

  PARAMS = 0
  EXTRAS = 1
  READOUT = 2
  BATCH = 3
  AUGMENT = 4
  VIEWS = 5
  FORWARD = 6
  LOSS = 7
  HAND_ON = 8
  PROBE = 9
  STORE = 10
  ANSWER = 11
  TIME = 12


def role_key(key: Key, role: Role) -> Key:
  """The key for one role."""
  return jax.random.fold_in(key, _ROLES_START + int(role))


def step_key(root: Key, step: Array | int) -> Key:
  """The key of one training step, counted from 0 and below 2**31."""
  return jax.random.fold_in(root, step)


def layer_key(key: Key, layer: Array | int, role: Role) -> Key:
  """The key of one layer (counted from 0) for one role."""
  return jax.random.fold_in(role_key(key, role), layer)
