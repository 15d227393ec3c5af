"""Optimisers against recurrences written by hand; learning rates at the published values.

A decay on the wrong parameters or a cool-down that ends an epoch late changes a published number by
tenths of a percent and nothing else.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from fflax.core.numerics import GRADIENT_STATE, Numerics, float32
from fflax.training.optimizers import (
  COOLDOWNS,
  OptimizerConfig,
  cooldown_gain,
  for_numerics,
  learning_rate_schedule,
  make_optimizer,
)


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
