"""The driver: what one step computes, and what no method and no schedule can make it do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from fflax.core import readouts
from fflax.core.int8 import int8
from fflax.core.int8_config import Int8Config
from fflax.core.locality import locality_matrix
from fflax.core.numerics import float32
from fflax.methods.backprop import BackpropConfig, backprop
from fflax.methods.dtg_mlp import DtgMlpConfig, dtg_mlp
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.methods.hyperspherical import HypersphericalConfig, hyperspherical
from fflax.networks.registry import make_network
from fflax.random import Role, layer_key, role_key, step_key
from fflax.training.lookahead import constant
from fflax.training.schedules import greedy, interleaved, simultaneous, staggered
from fflax.training.step import make_trainer
from fflax.types import Batch, Layer, LayerOut, LayerState
from tests.training import tiny_layers as tiny

STACKED = pytest.mark.parametrize("stack", [True, False], ids=["stacked", "unrolled"])


def same_bits(a, b) -> bool:
  pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
  return all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


def numpy_step(states, image, *, train_gain, updated_gain, active, weights):
  """One step in float64: new (w, shift, loss) of each layer, from this file's own formulas.

  `train_gain` is of a learning layer's forward pass, `updated_gain` of what it hands on after its
  update, or None if it hands on what it computed before.
  """
  x, new = np.asarray(image, np.float64), []
  for i, state in enumerate(states):
    w = np.asarray(state.params["layer"]["w"], np.float64)
    shift = np.asarray(state.params["method"]["shift"], np.float64)
    if not active[i]:
      x = np.tanh(0.5 * x @ w)
      new.append((w, shift, np.nan))
      continue
    h = np.tanh(train_gain * x @ w)
    d_h = 2 * (h - shift) / h.size
    d_w = train_gain * x.T @ (d_h * (1 - h**2))
    loss = np.mean((h - shift) ** 2)
    w = w - tiny.RATE * weights[i] * d_w
    shift = shift + tiny.RATE * weights[i] * d_h.sum(0)
    new.append((w, shift, loss))
    x = h if updated_gain is None else np.tanh(updated_gain * x @ w)
  return new


@STACKED
@pytest.mark.parametrize(
  ("schedule", "updated_gain", "active"),
  [
    (simultaneous(), None, [[1, 1, 1]] * 3),
    (interleaved(), 1.0, [[1, 1, 1]] * 3),
    (greedy(1), None, np.eye(3)),
  ],
  ids=["simultaneous", "interleaved", "greedy"],
)
def test_three_steps_by_hand(schedule, updated_gain, active, stack):
  """Which output the next layer sees: before the update, after it, or in evaluation.

  Every one of these trains; only numbers tell them apart.
  """
  trainer = tiny.trainer(schedule=schedule, stack=stack)
  step = tiny.jit(trainer.step)
  state = tiny.jit(trainer.init)(jax.random.key(0), tiny.batch())
  assert len(state.layers) == (1 if stack else 3)
  weights = np.array([1.0, 0.5, 3.0])
  for t in range(3):
    before = trainer.layer_states(state)
    batch = tiny.batch(t)
    state, metrics = step(state, batch, jnp.asarray(weights, jnp.float32))
    want = numpy_step(
      before, batch.image, train_gain=1.0, updated_gain=updated_gain,
      active=np.asarray(active[t], bool), weights=weights,
    )  # fmt: skip
    for (w, shift, _), after in zip(want, trainer.layer_states(state), strict=True):
      np.testing.assert_allclose(after.params["layer"]["w"], w, atol=1e-6)
      np.testing.assert_allclose(after.params["method"]["shift"], shift, atol=1e-6)
    # The loss is reported as it is, not as it was weighted for an audit.
    np.testing.assert_allclose(metrics["loss"], [loss for *_, loss in want], rtol=1e-5)
    assert int(state.step) == t + 1


@STACKED
def test_greedy_keeps_every_bit_of_layers_that_do_not_learn(stack):
  """Also of momenta, batch-norm averages and the method's own averages, which need no gradient."""
  network = make_network(
    "small_cnn", numerics=float32(), channels=(4, 4, 4), pool_after=(1,), batch_norm=True
  )
  method = forward_forward(ForwardForwardConfig(peer="signal"), 10)
  trainer = make_trainer(
    network,
    method,
    [readouts.score_sum()],
    image_shape=(8, 8, 1),
    optimizer=optax.adam(1e-3),
    schedule=greedy(2),
    stack=stack,
  )
  rng = np.random.default_rng(0)
  batch = Batch(
    jnp.asarray(rng.uniform(size=(6, 8, 8, 1)), jnp.float32), jnp.arange(6, dtype=jnp.int32)
  )
  state = tiny.jit(trainer.init)(jax.random.key(0), batch)
  assert len(state.layers) == (2 if stack else 3)
  step = tiny.jit(trainer.step)
  for learns in [0, 0, 1, 1, 2, 2, 2]:
    before = trainer.layer_states(state)
    state, metrics = step(state, batch)
    for i, (old, new) in enumerate(zip(before, trainer.layer_states(state), strict=True)):
      moved = jax.tree.leaves(jax.tree.map(lambda a, b: not same_bits(a, b), old, new))
      assert all(moved) if i == learns else not any(moved), (i, learns, moved)
    for name, values in metrics.items():
      np.testing.assert_array_equal(np.isfinite(values), np.arange(3) == learns, name)


def test_greedy_keeps_every_bit_under_vmap():
  """A batched branch becomes a select, which must not let a frozen layer's update through."""
  trainer = tiny.trainer(schedule=greedy(1))
  states = [tiny.jit(trainer.init)(jax.random.key(i), tiny.batch()) for i in range(2)]
  # Two runs at different steps, so that the branches differ.
  states[1] = dataclasses.replace(states[1], step=jnp.int32(1))
  both = jax.tree.map(lambda *a: jnp.stack(a), *states)
  new, _ = tiny.jit(jax.vmap(trainer.step, in_axes=(0, None)))(both, tiny.batch())
  for run, learns in enumerate([0, 1]):
    before = trainer.layer_states(states[run])
    after = trainer.layer_states(jax.tree.map(lambda a, r=run: a[r], new))
    for i, (old, own) in enumerate(zip(before, after, strict=True)):
      assert same_bits(old, own) == (i != learns)


@pytest.mark.parametrize("schedule", [simultaneous(), interleaved()], ids=lambda s: s.name)
def test_no_weights_are_weights_of_one(schedule):
  trainer = tiny.trainer(schedule=schedule)
  state, step = tiny.jit(trainer.init)(jax.random.key(0), tiny.batch()), tiny.jit(trainer.step)
  plain, weighted = step(state, tiny.batch()), step(state, tiny.batch(), jnp.ones(3))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain[1], weighted[1])
  for a, b in zip(plain[0].layers, weighted[0].layers, strict=True):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), a, b)


# --- locality, whatever the method does -----------------------------------------------------------


def greedy_for_gradients(params, stats, out, label, context, key):
  """A loss that uses all that it is given."""
  noise = jax.random.normal(key, out.pre.shape)
  total = sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves((params, out)))
  others = 0.0 if context is None else jnp.sum(context)
  loss = total + jnp.sum(noise * out.pre) + jnp.sum(label) + others
  return loss, ({"seen": stats["seen"] + loss.astype(jnp.int32)}, {"total": total})


def leaky_hand_on(out, *, train, key=None):
  del train, key
  return 3.0 * out.pre + out.act + out.out


def smuggler():
  """Keeps what it sees in a Python list, and adds it to the losses of later layers."""
  seen = []

  def loss(params, stats, out, label, context, key):
    del label, context, key
    own = jnp.mean(jnp.square(out.out - params["shift"][None, None]))
    return own + sum(jnp.sum(x) for x in seen), (stats, {})

  def hand_on(out, *, train, key=None):
    del key
    if train:
      seen.append(out.out)
    return out.out

  return tiny.METHOD._replace(local_loss=loss, hand_on=hand_on)


MALICIOUS = {
  "uses everything": tiny.METHOD._replace(local_loss=greedy_for_gradients, hand_on=leaky_hand_on),
  "views made of the network's own answer": tiny.METHOD._replace(
    views=lambda key, batch, class_scores: batch.image[None] * jnp.sum(jnp.square(class_scores)),
    negatives_from="scores",
  ),
  "views made of the trained head's answer": tiny.METHOD._replace(
    views=lambda key, batch, class_scores: (
      batch.image[None] * (1 + jnp.sum(jnp.square(class_scores)))
    ),
    negatives_from="plain",
  ),
  "statistics that depend on parameters": tiny.METHOD._replace(
    local_loss=lambda params, stats, out, label, context, key: (
      jnp.mean(out.out[0] * params["shift"][None]) * (1.0 + stats["seen"]),
      ({"seen": jnp.sum(params["shift"]) + jnp.sum(out.out)}, {}),
    ),
    init_layer=lambda key, out, place: (
      {"shift": jax.random.normal(key, out.out.shape[-1:])},
      {"seen": jnp.ones(())},
    ),
  ),
}


def reach(trainer, state, batch):
  """Two matrices: on which layers' and on which readouts' parameters the reported losses depend."""

  def losses(layers, heads):
    layers = tuple(
      LayerState(p, s.opt_state, s.stats) for p, s in zip(layers, state.layers, strict=True)
    )
    heads = tuple(
      dataclasses.replace(s, params=p) for p, s in zip(heads, state.readouts, strict=True)
    )
    metrics = trainer.step(dataclasses.replace(state, layers=layers, readouts=heads), batch)[1]
    head = metrics.get("readout_loss/softmax_head", jnp.zeros(()))
    return jnp.concatenate([metrics["loss"], head[None]])

  parts = tuple(s.params for s in state.layers), tuple(s.params for s in state.readouts)
  rows = tiny.jit(jax.jacrev(losses, argnums=(0, 1)))(*parts)

  def nonzero(tree):
    leaves = [np.asarray(a) for a in jax.tree.leaves(tree)]
    return sum((np.abs(a).reshape(len(a), -1).sum(1) for a in leaves), np.zeros(4)) != 0

  layers, heads = rows
  return np.stack([nonzero(r) for r in layers], 1), np.stack([nonzero(r) for r in heads], 1)


@pytest.mark.parametrize("name", MALICIOUS)
def test_no_method_reaches_another_layer(name):
  """The driver's promise: a method cannot break locality by forgetting, or by wanting to."""
  found = [readouts.score_sum(), readouts.softmax_head(tiny.CLASSES)]
  head = 1  # its place among the readouts
  matrices = []
  for stack in (True, False):
    trainer = tiny.trainer(MALICIOUS[name], readouts=found, stack=stack)
    state = tiny.jit(trainer.init)(jax.random.key(0), tiny.batch())
    # A head that answers something: it starts from zero.
    own = state.readouts[head]
    kernel = jax.random.normal(jax.random.key(1), own.params["kernel"].shape)
    trained = dataclasses.replace(own, params={"kernel": kernel})
    state = dataclasses.replace(state, readouts=(state.readouts[0], trained))
    step = tiny.jit(trainer.step)

    def moved(weights, step=step, state=state, trainer=trainer):
      new, _ = step(state, tiny.batch(), weights)
      return tuple(s.params for s in trainer.layer_states(new))

    matrices.append(locality_matrix(moved, 3))
    np.testing.assert_array_equal(matrices[-1], np.eye(3))
  layers, heads = reach(trainer, state, tiny.batch())
  np.testing.assert_array_equal(layers, np.eye(4, 3), "losses (last row: the head's) by layer")
  np.testing.assert_array_equal(heads, np.outer(np.arange(4) == 3, [0, 1]), "losses by readout")


def test_smuggling_activations_past_the_driver():
  """Python side effects: what a method keeps from lower layers are numbers, not paths."""
  trainer = tiny.trainer(smuggler(), stack=False)
  state = tiny.jit(trainer.init)(jax.random.key(0), tiny.batch())

  def moved(weights):
    new, _ = tiny.jit(trainer.step)(state, tiny.batch(), weights)
    return tuple(s.params for s in trainer.layer_states(new))

  np.testing.assert_array_equal(locality_matrix(moved, 3), np.eye(3))


STRICT = {
  "forward_forward": forward_forward(
    ForwardForwardConfig(negatives="softmax_hard", peer="signal"), 10
  ),
  "hyperspherical": hyperspherical(HypersphericalConfig(prototypes="ema"), 10),
}


@STACKED
@pytest.mark.parametrize("schedule", [interleaved(), greedy(1)], ids=lambda s: s.name)
@pytest.mark.parametrize("name", STRICT)
def test_locality_under_schedules(name, schedule, stack):
  """Each schedule alone (the conformance suite has both at once, for every method)."""
  network = make_network("mlp", numerics=float32(), sizes=(16,) * 3)
  trainer = make_trainer(
    network,
    STRICT[name],
    [readouts.softmax_head(10)],
    image_shape=(8, 8, 1),
    optimizer=optax.sgd(0.1),
    schedule=schedule,
    stack=stack,
  )
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.uniform(size=(20, 8, 8, 1)), jnp.float32)
  batch = Batch(image, jnp.arange(20, dtype=jnp.int32) % 10)
  fresh = tiny.jit(trainer.init)(jax.random.key(0), batch)
  step = tiny.jit(trainer.step)

  def moved(weights, t):
    new, _ = step(dataclasses.replace(fresh, step=jnp.int32(t)), batch, weights)
    return tuple(s.params for s in trainer.layer_states(new))

  for t in range(3):
    matrix = locality_matrix(lambda w, t=t: moved(w, t), 3)
    learns = [schedule.active is None or i == t for i in range(3)]
    np.testing.assert_array_equal(matrix, np.diag(learns))


def as_bytes(tree):
  return [np.asarray(a).tobytes() for a in jax.tree.leaves(tree)]


@STACKED
@pytest.mark.parametrize("frozen_stats", ["hold", "update"])
def test_staggered_layers_stay_bitwise_unchanged(frozen_stats, stack):
  """Outside of its interval a layer keeps its parameters, optimiser state and (held) statistics."""
  schedule = staggered((0, 1, 0), (2, 3, 1), frozen_stats=frozen_stats, readouts_from=2)
  trainer = tiny.trainer(
    tiny.METHOD._replace(single_view=True),
    schedule=schedule,
    stack=stack,
    optimizer=optax.adam(0.1),
    readouts=[readouts.softmax_head(tiny.CLASSES)],
  )
  state = tiny.jit(trainer.init)(jax.random.key(0), tiny.batch())
  step = tiny.jit(trainer.step)
  for t in range(5):
    new, _ = step(state, tiny.batch(t))
    before, after = trainer.layer_states(state), trainer.layer_states(new)
    for i, learns in enumerate((t < 2, 1 <= t < 3, t < 1)):
      trained = (before[i].params, before[i].opt_state, before[i].stats["method"])
      still = (after[i].params, after[i].opt_state, after[i].stats["method"])
      assert (as_bytes(trained) == as_bytes(still)) is not learns, (t, i)
      moved = after[i].stats["layer"]["passes"] - before[i].stats["layer"]["passes"]
      assert moved == (learns or frozen_stats == "update"), (t, i)
    same_head = as_bytes(state.readouts) == as_bytes(new.readouts)
    assert same_head is (t < 2), "the head learns from step 2 on, the layers frozen or not"
    state = new


@pytest.mark.parametrize("single", [True, False])
@pytest.mark.parametrize("sweep", ["stacked", "unrolled", "global", "lookahead"])
def test_readouts_learn_from_the_training_pass_of_single_view_methods(sweep, single):
  """The gain of the tiny layers is 1 in training and 1/2 otherwise: the head tells which it saw."""
  trainer = tiny.trainer(
    tiny.METHOD._replace(single_view=single, locality="global" if sweep == "global" else "strict"),
    readouts=[readouts.softmax_head(tiny.CLASSES)],
    stack=sweep == "stacked",
    lookahead=constant(0.5) if sweep == "lookahead" else None,
  )
  batch = tiny.batch()
  state = tiny.jit(trainer.init)(jax.random.key(0), batch)
  new, metrics = tiny.jit(trainer.step)(state, batch)
  h, features = np.asarray(batch.image, np.float64), []
  for s in trainer.layer_states(state):
    h = np.tanh((1.0 if single else 0.5) * h @ np.asarray(s.params["layer"]["w"], np.float64))
    features.append(h)
  error = np.eye(tiny.CLASSES)[np.asarray(batch.label)] - 1 / tiny.CLASSES
  want = tiny.RATE * np.concatenate(features, -1).T @ error / tiny.ROWS
  np.testing.assert_allclose(new.readouts[0].params["kernel"], want, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(metrics["readout_loss/softmax_head"], np.log(tiny.CLASSES), rtol=1e-5)


def noisy(name):
  """A tiny layer that is random wherever it has a key."""
  inner = tiny.dense(name)

  def apply(params, stats, x, *, train, key=None):
    out, stats = inner.apply(params, stats, x, train=train, key=key)
    if key is None:
      return out, stats
    drawn = out.out + jax.random.normal(key, out.out.shape)
    return out._replace(out=drawn), stats

  return inner._replace(apply=apply, spec="noisy")


@pytest.mark.parametrize("samples", [1, 4])
def test_sampled_answers_are_the_mean_probability_of_as_many_passes(samples):
  layers = tiny.network(make=noisy)
  trainer = tiny.trainer(layers=layers, samples=samples)
  state = tiny.jit(trainer.init)(jax.random.key(0), tiny.batch())
  state = dataclasses.replace(state, step=jnp.int32(3))
  image = tiny.batch().image
  got = tiny.jit(trainer.answer)(state, image)
  root = role_key(step_key(state.key, 3), Role.ANSWER)
  total, last = 0.0, 0.0
  for key in jax.random.split(root, samples):
    x, scores = image, []
    for i, (layer, s) in enumerate(zip(layers.layers, trainer.layer_states(state), strict=True)):
      own = layer_key(key, i, Role.FORWARD)
      x = layer.apply(s.params["layer"], s.stats["layer"], x, train=False, key=own)[0].out
      scores.append(x[:, : tiny.CLASSES])
    total += jax.nn.softmax(sum(scores)) / samples
    last += jax.nn.softmax(scores[-1]) / samples
  np.testing.assert_allclose(got.readouts["score_sum"], total, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(got.layers[-1], last, rtol=1e-5, atol=1e-6)


def test_without_samples_nothing_is_drawn_and_less_than_none_is_refused():
  plain, random = (tiny.trainer(layers=tiny.network(make=make)) for make in (tiny.dense, noisy))
  state = plain.init(jax.random.key(0), tiny.batch())
  image = tiny.batch().image
  for a, b in zip(*(jax.tree.leaves(t.answer(state, image)) for t in (plain, random)), strict=True):
    np.testing.assert_array_equal(a, b)
  with pytest.raises(ValueError, match="0 or more, not -1"):
    tiny.trainer(samples=-1)


# --- keys, readouts, metrics ----------------------------------------------------------------------


def test_every_layer_step_and_role_draws_its_own_numbers():
  """A shared key correlates dropout, negatives or rounding between layers, and all still trains."""

  def init(key, x):
    return {"w": jax.random.uniform(key)}, {}

  def apply(params, stats, x, *, train, key=None):
    drawn = jax.random.uniform(key) if train else jnp.zeros(())
    return LayerOut(x * 0 + drawn, x, x), stats

  def loss(params, stats, out, label, context, key):
    drawn = {
      "forward": out.pre[0, 0, 0],
      "loss_role": jax.random.uniform(key),
      "handed_on": out.out[0, 0, 0],
      "params": params["extra"],
    }
    return jnp.zeros(()), (stats, drawn)

  method = tiny.METHOD._replace(
    views=lambda key, batch, class_scores: batch.image[None] * 0 + jax.random.uniform(key),
    init_layer=lambda key, out, place: ({"extra": jax.random.uniform(key)}, {}),
    hand_on=lambda out, *, train, key=None: (
      out.out * 0 + (jax.random.uniform(key) if train else 0.0)
    ),
    local_loss=loss,
    goodness=None,
  )
  # The stacked block starts at the second layer, so that a place in it is no layer's number.
  network = tiny.network(make=lambda name: Layer(name, init, apply, name == "layer_0"))
  drawn = {}
  for stack in (True, False):
    trainer = tiny.trainer(method, network, stack=stack)
    state = tiny.jit(trainer.init)(jax.random.key(7), tiny.batch())
    assert len(state.layers) == (2 if stack else 3)
    step, drawn[stack] = tiny.jit(trainer.step), []
    for _ in range(2):
      state, metrics = step(state, tiny.batch())
      metrics = {n: np.asarray(metrics[n]) for n in ("forward", "loss_role", "handed_on", "params")}
      drawn[stack].append(metrics)
  for a, b in zip(drawn[True], drawn[False], strict=True):
    jax.tree.map(np.testing.assert_array_equal, a, b)
  # Parameters are drawn once; everything else is new in every step.
  first, second = drawn[True]
  np.testing.assert_array_equal(first["params"], second.pop("params"))
  numbers = np.concatenate([*first.values(), *second.values()])
  assert len(set(numbers.tolist())) == len(numbers) == 21
  # The documented derivation, on which resumed and re-ordered runs rely.
  for t, metrics in enumerate((first, second)):
    key = step_key(jax.random.key(7), t)
    for name, role in [("forward", Role.FORWARD), ("loss_role", Role.LOSS)]:
      want = [jax.random.uniform(layer_key(key, i, role)) for i in range(3)]
      np.testing.assert_array_equal(metrics[name], want)
    want = [jax.random.uniform(layer_key(key, i, Role.HAND_ON)) for i in range(2)]
    np.testing.assert_array_equal(metrics["handed_on"][1:], want)


def test_the_head_learns_from_the_features_before_the_step():
  """By hand: from a zero kernel, `d loss / d kernel = features^T (1/K - onehot) / B`."""
  found = [readouts.score_sum(), readouts.softmax_head(tiny.CLASSES, first_layer=1)]
  trainer = tiny.trainer(readouts=found, readout_optimizer=optax.sgd(0.3))
  batch = tiny.batch()
  state = tiny.jit(trainer.init)(jax.random.key(0), batch)
  features = np.concatenate(
    [np.asarray(f, np.float64) for f in trainer.features(state, batch.image)[1:]], 1
  )
  new, metrics = tiny.jit(trainer.step)(state, batch, jnp.zeros(3))
  error = 1 / tiny.CLASSES - np.eye(tiny.CLASSES)[np.asarray(batch.label)]
  want = -0.3 * features.T @ error / tiny.ROWS
  np.testing.assert_allclose(new.readouts[1].params["kernel"], want, atol=1e-6)
  np.testing.assert_allclose(metrics["readout_loss/softmax_head"], np.log(tiny.CLASSES), rtol=1e-6)
  # The layers had no loss: the head alone must not move them. Statistics move without a gradient.
  before, after = trainer.layer_states(state), trainer.layer_states(new)
  for a, b in zip(before, after, strict=True):
    assert same_bits(a.params, b.params)
    assert int(b.stats["layer"]["passes"]) == 1
    assert int(b.stats["method"]["seen"]) == tiny.ROWS


def test_answers_features_and_goodness_by_hand():
  """They are what a run is judged by; all in evaluation mode (gain 1/2)."""
  trainer = tiny.trainer(readouts=[readouts.score_sum(), readouts.last_layer(), readouts.vote()])
  batch = tiny.batch()
  state = tiny.jit(trainer.init)(jax.random.key(0), batch)
  x, features = np.asarray(batch.image, np.float64), []
  for s in trainer.layer_states(state):
    x = np.tanh(0.5 * x @ np.asarray(s.params["layer"]["w"], np.float64))
    features.append(x)
  answers = trainer.answer(state, batch.image)
  scores = [f[:, : tiny.CLASSES] for f in features]
  assert list(answers.readouts) == ["score_sum", "last_layer", "vote"]
  np.testing.assert_allclose(answers.readouts["score_sum"], sum(scores), atol=1e-6)
  np.testing.assert_allclose(answers.readouts["last_layer"], scores[-1], atol=1e-6)
  for got, want in zip(answers.layers, scores, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-6)
  for got, want in zip(trainer.features(state, batch.image), features, strict=True):
    np.testing.assert_allclose(got, want, atol=1e-6)
  goodness = trainer.goodness(state, batch, jax.random.key(1))
  want = np.stack([np.sum(f**2, -1)[None] for f in features])
  np.testing.assert_allclose(goodness, want, atol=1e-5)
  assert trainer.layer_names == ("layer_0", "layer_1", "layer_2")


@STACKED
def test_metrics_have_one_number_a_layer_and_nan_for_none(stack):
  """`dict` order and missing entries must not shift numbers to another layer."""
  network = make_network("mlp", numerics=float32(), sizes=(6, 6, 6))
  for method, silent in [
    (forward_forward(ForwardForwardConfig(), 3), {}),
    (backprop(BackpropConfig(), 3), {"train_accuracy": [0, 1]}),
  ]:
    trainer = make_trainer(
      network,
      method,
      [readouts.softmax_head(3)],
      image_shape=(3, 3, 1),
      optimizer=optax.sgd(0.1),
      stack=stack,
    )
    batch = Batch(jnp.ones((4, 3, 3, 1)), jnp.zeros(4, jnp.int32))
    state = jax.eval_shape(trainer.init, jax.random.key(0), batch)
    _, metrics = jax.eval_shape(trainer.step, state, batch)
    assert metrics.pop("readout_loss/softmax_head").shape == ()
    assert "loss" in metrics
    assert {(m.shape, str(m.dtype)) for m in metrics.values()} == {((3,), "float32")}
    if silent:
      state = tiny.jit(trainer.init)(jax.random.key(0), batch)
      _, metrics = tiny.jit(trainer.step)(state, batch)
      for name, layers in silent.items():
        np.testing.assert_array_equal(np.isnan(metrics[name]), np.isin(np.arange(3), layers))


def test_batch_norm_statistics_are_of_the_layer_and_move_in_training_only():
  """By hand from the layer's own input: momentum 0.9 of mean and variance over views and rows."""
  network = make_network(
    "small_cnn", numerics=float32(), channels=(3, 3), pool_after=(), batch_norm=True
  )
  method = hyperspherical(HypersphericalConfig(aux_features=2, aux_pool=1), 3)
  trainer = make_trainer(
    network, method, [readouts.score_sum()], image_shape=(4, 4, 1), optimizer=optax.sgd(0.1)
  )
  rng = np.random.default_rng(0)
  batch = Batch(jnp.asarray(rng.normal(size=(5, 4, 4, 1)), jnp.float32), jnp.arange(5) % 3)
  state = tiny.jit(trainer.init)(jax.random.key(0), batch)
  new, _ = tiny.jit(trainer.step)(state, batch, jnp.zeros(2))
  x = method.plain_view(batch.image)
  for old, own in zip(trainer.layer_states(state), trainer.layer_states(new), strict=True):
    kernel = old.params["layer"]["conv"]["kernel"]
    numbers = ("NHWC", "HWIO", "NHWC")
    a = np.asarray(lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=numbers))
    mean, var = a.mean((0, 1, 2)), a.var((0, 1, 2))
    np.testing.assert_allclose(own.stats["layer"]["norm"]["mean"], 0.1 * mean, atol=1e-6)
    np.testing.assert_allclose(own.stats["layer"]["norm"]["var"], 0.9 + 0.1 * var, atol=1e-6)
    assert same_bits(old.params, own.params)
    # In training the next layer sees what was normalised with the batch's own moments.
    x = jnp.asarray(np.maximum((a - mean) / np.sqrt(var + 1e-5), 0), jnp.float32)


def temporary_bytes(method, num_layers: int, **options) -> int:
  """What a compiled step holds besides its arguments and results."""
  network = make_network("mlp", numerics=float32(), sizes=(64,) * num_layers)
  trainer = make_trainer(
    network,
    method,
    [readouts.score_sum()],
    image_shape=(8, 8, 1),
    optimizer=optax.adam(1e-3),
    **options,
  )
  image, label = jax.ShapeDtypeStruct((256, 8, 8, 1), jnp.float32), jnp.zeros(256, jnp.int32)
  batch = Batch(image, label)
  state = jax.eval_shape(trainer.init, jax.random.key(0), batch)
  return jax.jit(trainer.step).lower(state, batch).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(
  ("make", "options"),
  [
    (lambda: forward_forward(ForwardForwardConfig(), 10), {"stack": True}),
    (lambda: forward_forward(ForwardForwardConfig(), 10), {"stack": False}),
    (lambda: hyperspherical(HypersphericalConfig(), 10), {"stack": True, "schedule": greedy(1)}),
  ],
  ids=["stacked", "unrolled", "greedy"],
)
def test_activations_of_strict_methods_do_not_outlive_their_layer(make, options):
  """The reason to train locally on small machines; one saved activation in the carry undoes it."""
  few, many = (temporary_bytes(make(), n, **options) for n in (4, 16))
  assert many < 1.1 * few, (few, many)


def test_backprop_holds_every_activation():
  """The contrast: if this did not grow, the test above would measure nothing."""
  few, many = (temporary_bytes(backprop(BackpropConfig(), 10), n) for n in (4, 16))
  activations = 12 * 256 * 64 * 4  # of the layers that the deeper network has more
  assert many - few > 0.9 * activations, (few, many)


# --- refusals -------------------------------------------------------------------------------------


def refuse(
  method,
  *,
  network="mlp",
  shape=(8, 8, 1),
  found=("score_sum",),
  parts=None,
  numerics=None,
  **options,
):
  layers = {"mlp": {"sizes": (12, 12)}, "small_cnn": {"channels": (4, 4), **(parts or {})}}[network]
  made = [
    r
    if not isinstance(r, str)
    else {"softmax_head": readouts.softmax_head(10)}.get(r)
    or {"score_sum": readouts.score_sum(), "last_layer": readouts.last_layer()}[r]
    for r in found
  ]
  return make_trainer(
    make_network(network, numerics=numerics or float32(), **layers),
    method,
    made,
    image_shape=shape,
    optimizer=optax.sgd(0.1),
    **options,
  )


def ff(**changes):
  return forward_forward(ForwardForwardConfig(**changes), 10)


def hff(**changes):
  return hyperspherical(HypersphericalConfig(**changes), 10)


BP = backprop(BackpropConfig(), 10)

IMPOSSIBLE = {
  "class scores of an unsupervised method": (
    lambda: refuse(ff(supervision="hybrid")),
    "'score_sum' reads class scores",
  ),
  "hard negatives without a trained head": (
    lambda: refuse(ff(negatives="softmax_hard")),
    "add 'softmax_head'",
  ),
  "greedy backprop": (lambda: refuse(BP, schedule=greedy(3)), "schedule 'greedy'"),
  "interleaved backprop": (lambda: refuse(BP, schedule=interleaved()), "schedule 'interleaved'"),
  "a label before the pixels of a conv net": (
    lambda: refuse(ff(label_style="prepend"), network="small_cnn"),
    "conv_1",
  ),
  "an image smaller than the label": (lambda: refuse(ff(), shape=(3, 3, 1)), "more than 10"),
  "hybrids of what is no image": (
    lambda: refuse(ff(supervision="hybrid"), shape=(64,), found=["softmax_head"]),
    "[B, H, W, C]",
  ),
  "no readout": (lambda: refuse(ff(), found=[]), "at least one readout"),
  "two readouts of one name": (
    lambda: refuse(ff(), found=["score_sum", readouts.score_sum(first_layer=1)]),
    "'score_sum' twice",
  ),
  "a sum that begins past the last layer": (
    lambda: refuse(ff(), found=[readouts.score_sum(first_layer=2)]),
    "from layer 3 on",
  ),
  "a head that begins past the last layer": (
    lambda: refuse(ff(), found=[readouts.softmax_head(10, first_layer=2)]),
    "past the last",
  ),
  "more orthogonal prototypes than units": (
    lambda: refuse(hff(prototypes="fixed_orthogonal", prototypes_per_class=2)),
    "20 <= layer width",
  ),
  "a simplex of more classes than units": (
    lambda: refuse(hff(prototypes="fixed_etf", prototypes_per_class=2)),
    "one prototype a class",
  ),
  "a class of locality without a driver": (
    lambda: refuse(ff()._replace(locality="collaborative", goodness=None)),
    "collaborative, but has no goodness to tell",
  ),
  "views of another shape than the plain view": (
    lambda: tiny.trainer(
      tiny.METHOD._replace(views=lambda key, batch, class_scores: batch.image[None, :, :2])
    ),
    "views of shape [2]",
  ),
  "statistics of half a view": (
    lambda: refuse(BP, network="small_cnn", parts={"batch_norm": True, "norm_groups": 2}),
    "part the batch in 2, which cuts through views: method 'backprop' shows 1",
  ),
  "scales of parts of views": (
    lambda: refuse(
      dtg_mlp(DtgMlpConfig(), 10),
      found=[readouts.norm_head(10)],
      numerics=int8(Int8Config(scale_groups=2)),
    ),
    "part the batch in 2, which cuts through views: method 'dtg_mlp' shows 3",
  ),
  "own losses that go down by way of shared statistics": (
    lambda: refuse(
      dtg_mlp(DtgMlpConfig(), 10),
      network="small_cnn",
      found=[readouts.norm_head(10)],
      parts={"batch_norm": True},
    ),
    "own losses of method 'dtg_mlp' down",
  ),
  "the same beside scales that are not shared": (
    lambda: refuse(
      dtg_mlp(DtgMlpConfig(), 10),
      network="small_cnn",
      found=[readouts.norm_head(10)],
      parts={"batch_norm": True},
      numerics=int8(Int8Config(scale_groups=3)),
    ),
    "use norm_groups=3, or no batch norm",
  ),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_impossible_combinations_are_refused_before_any_work(name):
  """One sentence when the trainer is made: not a stack trace from inside a compiled step."""
  make, words = IMPOSSIBLE[name]
  with pytest.raises(ValueError) as caught:  # noqa: PT011, the words are checked below
    make()
  sentence = str(caught.value)
  assert words in sentence, sentence
  assert "\n" not in sentence and ". " not in sentence.rstrip("."), sentence


def test_outputs_of_every_layer_are_those_the_answer_reads():
  """With a key units are drawn, layer by layer as the answer draws them; without, expected."""
  trainer = make_trainer(
    make_network("mlp", numerics=float32(), activation="pbits", sizes=(6, 5)),
    backprop(BackpropConfig(), 3),
    [readouts.score_sum()],
    image_shape=(4,),
    optimizer=optax.sgd(0.1),
  )
  batch = Batch(jax.random.normal(jax.random.key(1), (8, 4)), jnp.zeros(8, jnp.int32))
  state = tiny.jit(trainer.init)(jax.random.key(0), batch)
  plain = trainer.layer_outs(state, batch.image, None)
  for out, feature in zip(plain, trainer.features(state, batch.image), strict=True):
    np.testing.assert_array_equal(out.out, feature)
    assert out.counts is None
  drawn = [trainer.layer_outs(state, batch.image, jax.random.key(k)) for k in (5, 5, 6)]
  for first, same, other in zip(*drawn, strict=True):
    np.testing.assert_array_equal(first.counts, same.counts)
    assert np.any(first.counts != other.counts)
    np.testing.assert_array_equal(first.counts, np.round(first.out))
