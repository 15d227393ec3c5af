"""Optimisers against recurrences written by hand; learning rates at the published values.

A decay on the wrong parameters or a cool-down that ends an epoch late changes a published number by
tenths of a percent and nothing else.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from fflax.core.numerics import GRADIENT_STATE, Numerics, float32
from fflax.training import checkpoint
from fflax.training.optimizers import (
  COOLDOWNS,
  OptimizerConfig,
  cooldown_gain,
  for_numerics,
  learning_rate_schedule,
  make_optimizer,
)
from fflax.types import Batch
from tests.training import tiny_layers


def published_gain(kind, epoch, epochs):
  """From the sources' own loops; `epoch` counts from 0 here, from 1 in the Matlab code."""
  if kind == "matlab":
    e = epoch + 1
    return 1.0 if e <= epochs / 2 else (1 + 2 * (epochs - e)) / epochs
  if kind == "ff_py":
    return 1.0 if epoch < epochs / 2 else (1 + 2 * (epochs - epoch)) / epochs
  return 1.0 if epoch <= epochs // 2 else 2 * (1 + epochs - epoch) / epochs


@pytest.mark.parametrize("epochs", [100, 125])
@pytest.mark.parametrize("kind", COOLDOWNS)
def test_cooldown_at_every_epoch(kind, epochs):
  got = jax.vmap(lambda e: cooldown_gain(kind, e, epochs))(jnp.arange(epochs))
  want = [published_gain(kind, e, epochs) for e in range(epochs)]
  np.testing.assert_allclose(got, want, rtol=1e-6)
  assert np.all(np.asarray(got) > 0)


@pytest.mark.parametrize(
  ("kind", "epoch", "epochs", "gain"),
  [
    ("matlab", 62, 125, 1.0),  # the code's epoch 63
    ("matlab", 63, 125, 123 / 125),
    ("matlab", 124, 125, 0.008),
    ("ff_py", 62, 125, 1.0),
    ("ff_py", 124, 125, 0.024),
    ("loewex", 50, 100, 1.0),
    ("loewex", 51, 100, 1.0),
    ("loewex", 52, 100, 0.98),
    ("loewex", 99, 100, 0.04),
  ],
)
def test_published_values(kind, epoch, epochs, gain):
  assert float(cooldown_gain(kind, jnp.int32(epoch), epochs)) == pytest.approx(gain, rel=1e-6)


@pytest.mark.parametrize("kind", COOLDOWNS)
def test_cooldown_moves_with_epochs_not_steps(kind):
  """The rate is constant within an epoch and changes with its first step."""
  config = OptimizerConfig("sgd", 0.2, schedule="cooldown", cooldown=kind)
  rate = learning_rate_schedule(config, epochs=8, steps_per_epoch=5)
  got = np.asarray(jax.vmap(rate)(jnp.arange(40)))
  want = [0.2 * published_gain(kind, step // 5, 8) for step in range(40)]
  np.testing.assert_allclose(got, want, rtol=1e-6)


@pytest.mark.parametrize("kind", COOLDOWNS)
def test_cooldown_never_climbs_the_loss(kind):
  """A run a few epochs longer than planned must not get a negative learning rate."""
  gains = jax.vmap(lambda e: cooldown_gain(kind, e, 10))(jnp.arange(40))
  assert np.all(np.asarray(gains) >= 0)


def test_cosine_with_and_without_warmup():
  plain = learning_rate_schedule(OptimizerConfig(learning_rate=0.3, schedule="cosine"), 4, 25)
  t = np.arange(101)
  want = 0.15 * (1 + np.cos(np.pi * t / 100))
  np.testing.assert_allclose(jax.vmap(plain)(jnp.arange(101)), want, atol=1e-6)
  warm = learning_rate_schedule(
    OptimizerConfig(learning_rate=0.3, schedule="cosine", warmup_epochs=2), 4, 25
  )
  got = np.asarray(jax.vmap(warm)(jnp.arange(101)))
  np.testing.assert_allclose(got[:50], 0.3 * np.arange(50) / 50, atol=1e-6)
  np.testing.assert_allclose(got[50:], 0.15 * (1 + np.cos(np.pi * np.arange(51) / 50)), atol=1e-6)


def test_cosine_ends_where_it_is_told():
  config = OptimizerConfig(learning_rate=2e-4, schedule="cosine", end_rate=1e-5)
  got = jax.vmap(learning_rate_schedule(config, 4, 25))(jnp.arange(101))
  want = 1e-5 + (2e-4 - 1e-5) * 0.5 * (1 + np.cos(np.pi * np.arange(101) / 100))
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_steps_fall_after_their_milestones():
  """The rate of 1-based epoch e is `rate * drop ** (number of milestones <= e - 1)` (predsim)."""
  config = OptimizerConfig(learning_rate=5e-4, schedule="steps", milestones=(2, 3, 5))
  got = np.asarray(jax.vmap(learning_rate_schedule(config, 6, 10))(jnp.arange(60)))
  want = [5e-4 * 0.25 ** sum(m <= step // 10 for m in (2, 3, 5)) for step in range(60)]
  np.testing.assert_allclose(got, want, rtol=1e-6)


def test_constant():
  rate = learning_rate_schedule(OptimizerConfig(learning_rate=0.3), 4, 25)
  assert [float(rate(t)) for t in (0, 99, 10_000)] == pytest.approx([0.3] * 3)


PARAMS = {
  "layer": {"dense": {"kernel": np.array([1.0, -2.0]), "bias": np.array([0.5])}},
  "method": {
    "prototypes": np.array([3.0]),
    "head": {"kernel": np.array([2.0]), "bias": np.ones(1)},
  },
}
GRADS = (  # two steps
  jax.tree.map(lambda p: np.cos(p), PARAMS),
  jax.tree.map(lambda p: 0.5 * np.sin(3 * p) - 0.1, PARAMS),
)


def leaves(tree):
  return {
    jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree_util.tree_leaves_with_path(tree)
  }


def run(config, **options):
  """Parameters after two steps."""
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
  optimizer = make_optimizer(config, **options)
  opt_state = optimizer.init(params)

  @jax.jit
  def step(params, opt_state, grads):
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return optax.apply_updates(params, updates), opt_state

  for grads in GRADS:
    grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), grads)
    params, opt_state = step(params, opt_state, grads)
  return leaves(params)


def by_hand(name, rate, momentum, decay_of):
  """The recurrences of the four optimisers, a leaf at a time."""
  result = {}
  first, second = (leaves(g) for g in GRADS)
  for path, w in leaves(PARAMS).items():
    decay, v, s = decay_of(path), 0.0, 0.0
    for t, g in enumerate((first[path], second[path]), 1):
      if name == "sgd":
        v = momentum * v + g + decay * w
        w = w - rate * v
      elif name == "dampened":
        v = momentum * v + (1 - momentum) * g
        w = w - rate * (v + decay * w)
      else:
        g = g + decay * w if name == "adam" else g
        v, s = 0.9 * v + 0.1 * g, 0.999 * s + 0.001 * g**2
        direction = (v / (1 - 0.9**t)) / (np.sqrt(s / (1 - 0.999**t)) + 1e-8)
        w = w - rate * (direction + (decay * w if name == "adamw" else 0))
    result[path] = w
  return result


@pytest.mark.parametrize("no_decay", [(), ("bias",), ("prototypes",), ("bias", "prototypes")])
@pytest.mark.parametrize("name", ["sgd", "dampened", "adam", "adamw"])
def test_two_steps_and_who_decays(name, no_decay):
  config = OptimizerConfig(name, 0.1, 0.9, 0.2, no_decay=no_decay)

  def decay_of(path):
    return 0.0 if any(n in path for n in no_decay) else 0.2

  got, want = run(config), by_hand(name, 0.1, 0.9, decay_of)
  assert set(got) == set(want)
  for path in want:
    np.testing.assert_allclose(got[path], want[path], rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("name", ["sgd", "dampened"])
def test_without_momentum_and_decay_both_are_gradient_descent(name):
  got = run(OptimizerConfig(name, 0.1, momentum=0.0))
  first, second = (leaves(g) for g in GRADS)
  for path, w in leaves(PARAMS).items():
    np.testing.assert_allclose(got[path], w - 0.1 * (first[path] + second[path]), rtol=1e-5)


def test_readout_kernels_decay_and_their_path_has_no_layer():
  """A readout's parameters are `{"kernel": ...}`: they decay too."""
  optimizer = make_optimizer(OptimizerConfig("sgd", 0.1, 0.0, 0.2))
  params = {"kernel": jnp.ones(2)}
  updates, _ = optimizer.update({"kernel": jnp.zeros(2)}, optimizer.init(params), params)
  np.testing.assert_allclose(updates["kernel"], -0.1 * 0.2, rtol=1e-6)


def test_clipping_is_by_the_global_norm_before_everything():
  norm = np.sqrt(sum(np.sum(g**2) for g in leaves(GRADS[0]).values()))
  assert norm > 0.5
  optimizer = make_optimizer(OptimizerConfig("sgd", 1.0, 0.0, clip_norm=0.5))
  params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), PARAMS)
  grads = jax.tree.map(lambda g: jnp.asarray(g, jnp.float32), GRADS[0])
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  for path, g in leaves(GRADS[0]).items():
    np.testing.assert_allclose(leaves(updates)[path], -g * 0.5 / norm, rtol=1e-5)


def test_the_rate_follows_the_optimizer_s_own_count():
  config = OptimizerConfig("sgd", 1.0, 0.0, schedule="cooldown", cooldown="matlab")
  got = run(config, epochs=2, steps_per_epoch=1)  # gains 1 and 1/2
  first, second = (leaves(g) for g in GRADS)
  for path, w in leaves(PARAMS).items():
    np.testing.assert_allclose(
      got[path], w - first[path] - 0.5 * second[path], rtol=1e-4, atol=1e-6
    )


@pytest.mark.parametrize(
  ("options", "word"),
  [
    ({"name": "lion"}, "lion"),
    ({"learning_rate": 0.0}, "learning_rate"),
    ({"learning_rate": -1.0}, "learning_rate"),
    ({"learning_rate": float("nan")}, "learning_rate"),
    ({"schedule": "linear"}, "linear"),
    ({"end_rate": 1.0}, "end_rate"),
    ({"milestones": (0,)}, "milestones"),
    ({"drop": 0.0}, "drop"),
    ({"accumulate": 0}, "accumulate"),
    ({"schedule": "cooldown", "cooldown": "hinton"}, "hinton"),
    ({"schedule": "cosine", "warmup_epochs": 3.0}, "warmup_epochs"),
  ],
)
def test_bad_configurations_are_named(options, word):
  with pytest.raises(ValueError, match=word):
    make_optimizer(OptimizerConfig(**options), epochs=3, steps_per_epoch=10)


def test_gradient_states_take_their_next_value_and_scale_their_neighbours():
  """Adam on a statistic, or decay or clipping by its size, would ruin it within a step."""
  numerics = Numerics(
    "stateful", lax.dot_general, lax.conv_general_dilated,
    gradient_state=lambda shape: jnp.zeros(2), learning_rate_scale=lambda state: state[1],
  )  # fmt: skip
  config = OptimizerConfig("adamw", 0.1, weight_decay=0.5, clip_norm=1.0)
  optimizer = for_numerics(make_optimizer(config), numerics)
  layer = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
  params = {"layer": {"dense": {**layer, "Product_0": {GRADIENT_STATE: jnp.array([7.0, 8.0])}}}}
  params["method"] = {"head": jnp.array([3.0])}
  grads = jax.tree.map(lambda p: 0.3 * p, params)
  grads["layer"]["dense"]["Product_0"][GRADIENT_STATE] = jnp.array([1e6, 0.25])
  updates, _ = optimizer.update(grads, optimizer.init(params), params)
  new = optax.apply_updates(params, updates)
  found = new["layer"]["dense"].pop("Product_0")[GRADIENT_STATE]
  np.testing.assert_array_equal(found, np.array([1e6, 0.25], np.float32))

  plain = make_optimizer(config)
  without = {"layer": {"dense": layer}, "method": params["method"]}
  grads = jax.tree.map(lambda p: 0.3 * p, without)
  expected, _ = plain.update(grads, plain.init(without), without)
  expected["layer"]["dense"] = jax.tree.map(lambda u: 0.25 * u, expected["layer"]["dense"])
  for a, b in zip(
    *map(jax.tree.leaves, (new, optax.apply_updates(without, expected))), strict=True
  ):
    np.testing.assert_allclose(a, b, rtol=1e-6)
  assert for_numerics(plain, float32()) is plain


def test_accumulated_updates_are_those_of_the_mean_gradient():
  """k calls make one update, clipped and scheduled as one batch of k times the size would be."""
  config = OptimizerConfig(
    "adamw", 0.1, weight_decay=0.2, schedule="cosine", clip_norm=0.5, accumulate=3
  )
  many = make_optimizer(config, epochs=2, steps_per_epoch=6)
  once = make_optimizer(dataclasses.replace(config, accumulate=1), epochs=2, steps_per_epoch=2)
  small = large = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array([0.5])}
  waiting, state = many.init(small), once.init(large)
  update = jax.jit(many.update)
  for i in range(2):
    grads = [
      jax.tree.map(lambda p, c=c: jnp.cos(3 * p + c), large) for c in range(3 * i, 3 * i + 3)
    ]
    for j, g in enumerate(grads):
      updates, waiting = update(g, waiting, small)
      assert all(np.any(u) == (j == 2) for u in jax.tree.leaves(updates))
      small = optax.apply_updates(small, updates)
    mean = jax.tree.map(lambda *g: sum(g) / 3, *grads)
    updates, state = once.update(mean, state, large)
    large = optax.apply_updates(large, updates)
    for a, b in zip(*map(jax.tree.leaves, (small, large)), strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("locality", ["strict", "global"])
def test_two_halves_of_a_batch_are_the_batch(locality, tmp_path):
  """Every layer accumulates its own gradient; a run that is cut in between goes on as it was."""
  method = tiny_layers.METHOD._replace(locality=locality)
  optimizer = OptimizerConfig("adam", 0.05)
  split = OptimizerConfig("adam", 0.05, accumulate=2)
  one, two = (
    tiny_layers.trainer(method, optimizer=make_optimizer(c), stack=True) for c in (optimizer, split)
  )
  batch = tiny_layers.batch()
  whole, state = (tiny_layers.jit(t.init)(jax.random.key(0), batch) for t in (one, two))
  step, first = tiny_layers.jit(two.step), jax.tree.leaves([s.params for s in state.layers])
  for _ in range(2):
    whole, _ = tiny_layers.jit(one.step)(whole, batch)
    for rows in (slice(None, 4), slice(4, None)):
      checkpoint.save(tmp_path, int(state.step), state)
      state = checkpoint.restore(tmp_path, state)
      state, _ = step(state, Batch(batch.image[rows], batch.label[rows]))
  assert int(state.step) == 4
  pairs = [jax.tree.leaves([s.params for s in t.layers]) for t in (whole, state)]
  for start, a, b in zip(first, *pairs, strict=True):
    assert np.abs(a - start).max() > 0.05
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
