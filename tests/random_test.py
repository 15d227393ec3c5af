"""Keys: equal uses give equal bits, different uses different ones.

If two uses shared a key, noise would be correlated between layers, steps or roles and nothing else
would show it.
"""

import itertools

import jax
import numpy as np

from fflax.random import Role, layer_key, role_key, step_key


def bits(key):
  return tuple(np.ravel(jax.random.key_data(key)).tolist())


def test_every_use_has_its_own_key():
  """Root, steps, roles and layers, in the order of a run: no two uses share a key."""
  root = jax.random.key(3)
  keys = [root]
  keys += [role_key(root, role) for role in Role]
  for step in range(4):
    at_step = step_key(root, step)
    keys.append(at_step)
    keys += [role_key(at_step, role) for role in Role]
    keys += [layer_key(at_step, i, role) for i, role in itertools.product(range(3), Role)]
  assert len({bits(key) for key in keys}) == len(keys)


def test_same_use_same_key_traced_or_not():
  """A step or layer number that is traced (scan, vmap) gives the key of the plain integer."""
  root = jax.random.key(3)
  plain = [bits(layer_key(step_key(root, 7), i, Role.LOSS)) for i in range(3)]

  @jax.jit
  def traced(step):
    at_step = step_key(root, step)
    keys = jax.vmap(lambda i: layer_key(at_step, i, Role.LOSS))(jax.numpy.arange(3))
    return jax.random.key_data(keys)

  assert [tuple(row) for row in np.asarray(traced(7)).tolist()] == plain


def test_keys_depend_on_the_root():
  first, second = (layer_key(step_key(jax.random.key(i), 0), 0, Role.VIEWS) for i in range(2))
  assert bits(first) != bits(second)
