"""End-to-end gradients without kept activations: the same numbers in less memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.analysis.cost import count
from fflax.analysis.memory import memory_of
from fflax.training import lookahead
from fflax.types import Batch
from tests.training.tiny_layers import METHOD, dense, network, trainer

GLOBAL = METHOD._replace(locality="global")
DEPTH, WIDTH, ROWS = 6, 32, 2048


def bumpy(name):
  """A layer whose gradient wants several of its intermediate values."""
  layer = dense(name, WIDTH)

  def apply(params, stats, x, *, train, key=None):
    out, stats = layer.apply(params, stats, x, train=train, key=key)
    act = jnp.tanh(out.pre) * jnp.exp(-jnp.square(jnp.sin(out.pre)))
    return out._replace(act=act, out=act), stats

  return layer._replace(apply=apply)


def make(rematerialize, look):
  layers = network(DEPTH, bumpy)
  return trainer(
    METHOD if look else GLOBAL,
    layers,
    image_shape=(WIDTH,),
    rematerialize=rematerialize,
    lookahead=lookahead.constant(0.7, look) if look else None,
  )


@pytest.mark.parametrize("look", [None, "exact"])
def test_the_same_step_in_less_memory_for_a_forward_pass_more(look):
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.normal(size=(ROWS, WIDTH)), jnp.float32)
  batch = Batch(image, jnp.asarray(rng.integers(0, 3, ROWS), jnp.int32))
  plain, slim = make(False, look), make(True, look)
  state = plain.init(jax.random.key(0), Batch(image[:2], batch.label[:2]))
  after = [jax.jit(t.step)(state, batch) for t in (plain, slim)]
  for a, b in zip(*map(jax.tree.leaves, (after[0][0].layers, after[1][0].layers)), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(after[0][1]["loss"], after[1][1]["loss"], rtol=1e-6)

  held = [memory_of(t.step, state, batch).temporaries for t in (plain, slim)]
  activation = 4 * ROWS * WIDTH
  assert held[0] > DEPTH * activation  # what backprop keeps
  assert held[1] < 0.6 * held[0], f"{held[1] / activation} of {held[0] / activation} activations"

  macs = [count(t.step, state, batch).total("macs") for t in (plain, slim)]
  # Exact look-ahead asks for what a layer's weights hear and, above the first layer, for what it
  # tells the one below: once more for each.
  runs = 2 * DEPTH - 1 if look else DEPTH
  assert macs[1] - macs[0] == runs * ROWS * WIDTH**2


def test_local_rules_have_nothing_to_rematerialize():
  with pytest.raises(ValueError, match="'tiny' is strict, and its layers keep no activations"):
    trainer(METHOD, rematerialize=True)
