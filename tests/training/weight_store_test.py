"""Weights at rest in int8: unbiased moves, scales that follow, a step that computes with floats."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.analysis.memory import memory_of
from fflax.core import readouts
from fflax.core.numerics import float32
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.networks.registry import make_network
from fflax.training import weight_store
from fflax.training.step import make_trainer
from fflax.training.weight_store import Int8Weight, int8_store
from fflax.types import Batch
from tests.training.tiny_layers import jit

KEY = jax.random.key(0)
FF = forward_forward(ForwardForwardConfig(), 3)


def stored(values, scale) -> Int8Weight:
  return Int8Weight(jnp.asarray(values, jnp.int8), jnp.asarray(scale, jnp.float32)[None])


def test_packing_leaves_room_for_twice_the_largest_weight():
  weight = jnp.array([[1.0, -0.2, 0.0], [-0.5, 0.1, 0.0]])
  found = weight_store.pack(weight)
  np.testing.assert_allclose(found.scale, np.array([[2.0, 0.4, 2e-30]]) / 127, rtol=1e-6)
  # 63.5 is rounded half to even.
  np.testing.assert_array_equal(found.values, np.array([[64, -64, 0], [-32, 32, 0]]))
  error = jnp.abs(weight_store.unpack(found) - weight)
  assert (error <= found.scale / 2 * 1.0001).all()
  assert found.values.dtype == jnp.int8


def test_moves_are_unbiased_and_bounded():
  """A change of 0.3 steps moves 3 weights in 10 by one; nearest rounding would move none."""
  rows = 4000
  start = stored(np.full((rows, 2), 35), [0.1, 10.0])
  found = weight_store.move(start, jnp.full((rows, 2), 0.03), KEY).values
  assert set(np.unique(found[:, 0])) == {35, 36}
  deviation = np.sqrt(0.3 * 0.7 / rows)
  assert abs(float(found[:, 0].mean(dtype=jnp.float32)) - 35.3) < 4 * deviation
  assert abs(float(found[:, 1].mean(dtype=jnp.float32)) - 35.003) < 4 * np.sqrt(0.003 / rows)
  np.testing.assert_array_equal(weight_store.move(start, jnp.zeros((rows, 2)), KEY).values, 35)
  for change, bound in ((1e6, 127), (-1e6, -127)):
    far = weight_store.move(start, jnp.full((rows, 2), change), KEY)
    np.testing.assert_array_equal(far.values, bound)
    np.testing.assert_array_equal(far.scale, start.scale)
    np.testing.assert_allclose(
      weight_store.move(far, -change * far.scale, KEY).scale, 2 * far.scale
    )


def test_scales_follow_the_weights():
  """By channel: 2 % at the bound doubles, 1 % stays, all below 32 halves, one at 32 stays."""
  values = np.full((100, 5), 50)
  values[:2, 0], values[:1, 1] = 127, -127
  values[:, 2], values[:, 3], values[:, 4] = 31, 20, 0
  values[0, 3] = -32
  found = weight_store.move(stored(values, np.ones(5)), jnp.zeros((100, 5)), KEY)
  np.testing.assert_array_equal(found.scale[0], [2.0, 1.0, 0.5, 1.0, 1.0])
  np.testing.assert_array_equal(found.values[:, 1], values[:, 1])
  np.testing.assert_array_equal(found.values[:, 2], 62)
  np.testing.assert_array_equal(found.values[:, 3:], values[:, 3:])
  assert set(np.unique(found.values[:2, 0])) <= {63, 64}
  np.testing.assert_array_equal(found.values[2:, 0], 25)
  # What is added is on the new grid, and counts in the next move.
  grown = weight_store.move(stored(values, np.ones(5)), jnp.full((100, 5), 10.0), KEY)
  np.testing.assert_array_equal(grown.scale, found.scale)
  np.testing.assert_array_equal(grown.values[:, 2], 82)
  np.testing.assert_array_equal(grown.values[2:, 0], 30)


def test_a_move_holds_one_float_copy_at_most():
  """Beside the change; with more, weights at rest in int8 would need more memory than in float."""
  shape = (256, 128)
  start = jax.eval_shape(weight_store.pack, jax.ShapeDtypeStruct(shape, jnp.float32))
  change = jax.ShapeDtypeStruct(shape, jnp.float32)
  used = memory_of(weight_store.move, start, change, KEY, donate=(0,))
  assert used.temporaries < 7 * 256 * 128


def make(rate=0.1, network="mlp", store=None, stack=None, method=FF, **options):
  return make_trainer(
    make_network(network, numerics=float32(), **options),
    method,
    [readouts.score_sum()],
    image_shape=(6, 6, 1),
    optimizer=optax.sgd(rate),
    weight_store=store,
    stack=stack,
  )


def batch() -> Batch:
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.uniform(size=(8, 6, 6, 1)), jnp.float32)
  return Batch(image, jnp.arange(8, dtype=jnp.int32) % 3)


def kernels(state):
  return [
    leaf
    for leaf in jax.tree.leaves(
      [s.params for s in state.layers], is_leaf=lambda a: isinstance(a, Int8Weight)
    )
    if isinstance(leaf, Int8Weight)
  ]


@pytest.mark.parametrize(
  ("network", "options"),
  [
    ("mlp", {"sizes": (7, 7)}),
    pytest.param("small_cnn", {"channels": (3, 3), "pool_after": ()}, marks=pytest.mark.slow),
  ],
)
def test_a_step_is_the_trainers_own_but_for_the_grid(network, options):
  """Oracle: the float trainer's step from the unpacked weights; kernels within one grid step."""
  trainer = make(1e-3, network, **options)
  wrapped = make(1e-3, network, int8_store(), **options)
  state = jit(wrapped.init)(KEY, batch())
  assert [k.values.dtype for k in kernels(state)] == [jnp.int8] * 2
  floats = jit(trainer.init)(KEY, batch())
  loaded = wrapped.layer_states(state)
  for packed, own in zip(loaded, floats.layers, strict=True):
    for a, b in zip(jax.tree.leaves(packed.params), jax.tree.leaves(own.params), strict=True):
      np.testing.assert_allclose(a, b, atol=float(jnp.abs(b).max()) / 127 + 1e-7)
  new, metrics = jit(wrapped.step)(state, batch())
  reference = dataclasses.replace(floats, layers=loaded)
  expected, expected_metrics = jit(trainer.step)(reference, batch())
  np.testing.assert_allclose(metrics["loss"], expected_metrics["loss"], rtol=1e-6)
  scales = iter(k.scale for k in kernels(state))
  for a, b in zip(wrapped.layer_states(new), expected.layers, strict=True):
    flat = jax.tree_util.tree_leaves_with_path(a.params)
    for (path, x), y in zip(flat, jax.tree.leaves(b.params), strict=True):
      if path[-1].key == "kernel":
        step = np.broadcast_to(next(scales), x.shape)
        assert (np.abs(x - y) < step * 1.0001).all()
      else:
        np.testing.assert_allclose(x, y, atol=1e-7)
  answer = wrapped.answer(new, batch().image)
  assert answer.readouts["score_sum"].shape == (8, 3)


def test_weights_at_rest_do_not_move_without_a_change():
  """Integers have no fraction to round."""
  wrapped = make(0.0, store=int8_store(), sizes=(7,))
  state = jit(wrapped.init)(KEY, batch())
  step = jit(wrapped.step)
  new = state
  for _ in range(3):
    new, _ = step(new, batch())
  for a, b in zip(kernels(state), kernels(new), strict=True):
    np.testing.assert_array_equal(a.values, b.values)
    np.testing.assert_array_equal(a.scale, b.scale)


@pytest.mark.parametrize("method", [FF, FF._replace(locality="global")], ids=["strict", "global"])
def test_stacked_and_unrolled_layers_keep_the_same_weights(method):
  """A scale shared by the layers of a stack would be another grid."""
  sizes = (9, 7, 7, 7)
  made = [make(0.01, "mlp", int8_store(), stack, method, sizes=sizes) for stack in (True, False)]
  moved = []
  for trainer in made:
    state = jit(trainer.init)(KEY, batch())
    assert len(state.layers) == (3 if trainer is made[0] and method is FF else 4)
    moved.append(trainer.layer_states(jit(trainer.step)(state, batch())[0]))
  for a, b in zip(*(jax.tree.leaves([s.params for s in states]) for states in moved), strict=True):
    np.testing.assert_allclose(a, b, atol=0.02)
    assert np.mean(np.abs(a - b) > 1e-6) < 0.02  # a rounding may fall on the other side


def test_integers_have_no_fraction_to_round():
  """`floor(q + noise)` would move some of them: that sum is rounded itself."""
  values = np.tile(np.arange(-126, 127), (2000, 1))
  values[0] = 100  # no scale moves
  start = stored(values, np.full(253, 0.37))
  found = weight_store.move(start, jnp.zeros(values.shape), KEY)
  np.testing.assert_array_equal(found.values, start.values)


def test_a_change_that_is_no_number_is_loud():
  """int8 has no NaN: the weights would be finite, and the run go on with nonsense."""
  for bad in (np.nan, np.inf):
    start = stored(np.full((4, 2), 50), [1.0, 1.0])
    found = weight_store.move(start, jnp.zeros((4, 2)).at[1, 1].set(bad), KEY)
    loaded = weight_store.unpack(found)
    assert np.isnan(loaded[:, 1]).all()
    np.testing.assert_array_equal(loaded[:, 0], 50)
  assert np.isnan(weight_store.unpack(weight_store.pack(jnp.array([[np.nan], [1.0]])))).all()
