"""Collaborative FF against Forward-Forward, closed forms and an independent numpy step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core import readouts
from fflax.methods.collaborative import STRUCTURES, CollaborativeConfig, collaborative
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.random import Role, role_key, step_key
from fflax.training import schedules
from fflax.training.step import make_trainer
from fflax.types import Broadcast, LayerOut, Place
from tests.methods import tiny
from tests.methods.conformance import bits

KEY = jax.random.key(0)
FF = dict(goodness="mean", theta=0.7, normalization="l2")
ROWS, DEPTH = 9, 3


def run(method, sizes=tiny.DEEP, steps=3, **options):
  """The trainer, its state after some steps, and their metrics."""
  trainer = make_trainer(
    tiny.make_mlp(sizes, dead_unit=False),
    method,
    [readouts.score_sum()],
    image_shape=tiny.SHAPE,
    optimizer=optax.sgd(0.5, momentum=0.9),
    **options,
  )
  state = tiny.jit(trainer.init)(KEY, tiny.make_batch(0))
  step, history = tiny.jit(trainer.step), []
  for t in range(steps):
    state, metrics = step(state, tiny.make_batch(t))
    history.append(metrics)
  return trainer, state, history


def layer(seed=0):
  """A layer's output on two views, and what all layers tell."""
  rng = np.random.default_rng(seed)
  act = jnp.asarray(np.maximum(rng.normal(size=(2, ROWS, 8)), 0), jnp.float32)
  told = jnp.asarray(rng.uniform(0, 2, (DEPTH, 2, ROWS)), jnp.float32)
  return LayerOut(act, act, act), told


def softplus64(x):
  return np.logaddexp(0, np.asarray(x, np.float64))


def sigmoid64(x):
  return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


@pytest.mark.parametrize("options", [{"structure": "none"}, {"gamma": 0.0, "structure": "ones"}])
@pytest.mark.parametrize("stack", [True, False])
def test_without_collaboration_it_is_forward_forward_bit_for_bit(options, stack):
  _, alone, history = run(forward_forward(ForwardForwardConfig(**FF), tiny.CLASSES), stack=stack)
  _, together, other = run(
    collaborative(CollaborativeConfig(**FF, **options), tiny.CLASSES), stack=stack
  )
  params = [[s.params for s in state.layers] for state in (alone, together)]
  assert bits(params[0]) == bits(params[1])
  assert bits([m["loss"] for m in history]) == bits([m["loss"] for m in other])


def test_the_collaborative_loss():
  """softplus(theta - Gc) and softplus(Gc - theta), Gc = G + gamma sum A G_k of the others."""
  out, told = layer()
  method = collaborative(CollaborativeConfig(**FF, structure="distance", gamma=1.3), tiny.CLASSES)
  for position in range(DEPTH):
    _, stats = method.init_layer(KEY, jax.tree.map(lambda a: a[0], out), Place(position, DEPTH))
    loss, (_, metrics) = method.local_loss({}, stats, out, None, Broadcast(told, position), KEY)
    own = np.square(np.asarray(out.act, np.float64)).mean(-1)
    added = sum(
      np.exp(-abs(position - k)) * np.asarray(told[k], np.float64)
      for k in range(DEPTH)
      if k != position
    )
    both = own + 1.3 * added
    want = 0.5 * (softplus64(0.7 - both[0]) + softplus64(both[1] - 0.7)).mean()
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(metrics["goodness_pos"], own[0].mean(), rtol=1e-5)


def test_structures():
  place = np.arange(4)
  apart = np.abs(place[:, None] - place)
  off = 1 - np.eye(4)
  want = {
    "uniform": off / 3,
    "ones": off,
    "previous": place[:, None] > place,
    "next": place[:, None] < place,
    "neighbours": apart == 1,
    "distance": np.exp(-apart) * off,
    "none": 0 * off,
    "learned_softmax": off / 3,
    "learned_free": off / 3,
  }
  assert set(want) == set(STRUCTURES)
  out, _ = layer()
  example = jax.tree.map(lambda a: a[0], out)
  told = jnp.eye(4)[:, None, :].repeat(2, 1)  # layer k tells 1 about example k alone
  out = jax.tree.map(lambda a: 0 * a[:, :4], out)
  for name, matrix in want.items():
    config = CollaborativeConfig(goodness="mean", theta=0.0, structure=name)
    method = collaborative(config, tiny.CLASSES)
    for i in range(4):
      _, stats = method.init_layer(KEY, example, Place(i, 4))
      loss, _ = method.local_loss({}, stats, out, None, Broadcast(told, i), KEY)
      added = np.asarray(matrix[i], np.float64)
      expected = 0.5 * (softplus64(-added) + softplus64(added)).mean()
      np.testing.assert_allclose(loss, expected, rtol=1e-5, err_msg=f"{name}, layer {i}")


def test_the_weight_gradient_is_that_of_a_threshold_of_ones_own():
  """dL/dW = FF's with theta - gamma S for every example, and nothing through S."""
  _, first, _ = run(
    collaborative(CollaborativeConfig(**FF, structure="ones"), tiny.CLASSES), steps=0
  )
  config = CollaborativeConfig(**FF, structure="ones", gamma=0.4)
  trainer, new, _ = run(collaborative(config, tiny.CLASSES), steps=1)
  batch = tiny.make_batch(0)
  method = collaborative(config, tiny.CLASSES)
  x = np.asarray(method.views(role_key(step_key(KEY, 0), Role.VIEWS), batch, None), np.float64)
  h, layers, acts, inputs = x.reshape(2, tiny.ROWS, -1), tiny.layers64(trainer, first), [], []
  for p in layers:
    inputs.append(h)
    acts.append(np.maximum(h @ p["kernel"] + p["bias"], 0))
    h = acts[-1] / np.sqrt(np.square(acts[-1]).sum(-1, keepdims=True) + 1e-12)
  told = [np.square(a).mean(-1) for a in acts]
  want = []
  for i, p in enumerate(layers):
    g = told[i] + 0.4 * sum(t for k, t in enumerate(told) if k != i)
    slope = 0.5 / tiny.ROWS * np.stack([-sigmoid64(0.7 - g[0]), sigmoid64(g[1] - 0.7)])
    dv = slope[..., None] * 2 * acts[i] / acts[i].shape[-1]
    dw = np.einsum("vbi,vbo->io", inputs[i], dv)
    want.append({"kernel": p["kernel"] - 0.5 * dw, "bias": p["bias"] - 0.5 * dv.sum((0, 1))})
  for i, (got, w) in enumerate(zip(tiny.layers64(trainer, new), want, strict=True)):
    for part in w:
      tiny.assert_close(got[part], w[part], f"{part} of layer {i}", 1e-4, 1e-6)


@pytest.mark.parametrize("structure", ["ones", "learned_free"])
def test_gamma_and_its_structure_learn_by_the_closed_form(structure):
  out, told = layer()
  config = CollaborativeConfig(
    **FF, structure=structure, gamma=0.8, gamma_rule="sgd", gamma_rate=0.1
  )
  method = collaborative(config, tiny.CLASSES)
  _, stats = method.init_layer(KEY, jax.tree.map(lambda a: a[0], out), Place(1, DEPTH))
  _, (new, metrics) = method.local_loss({}, stats, out, None, Broadcast(told, 1), KEY)
  row = np.array([1.0, 0.0, 1.0]) / (2 if structure == "learned_free" else 1)
  t = np.asarray(told, np.float64)
  s = np.tensordot(row, t, 1)
  g = np.square(np.asarray(out.act, np.float64)).mean(-1) + 0.8 * s
  pull = 0.5 / ROWS * np.stack([-sigmoid64(0.7 - g[0]), sigmoid64(g[1] - 0.7)])
  held = new["collaboration"]
  np.testing.assert_allclose(held["gamma"], 0.8 - 0.1 * (pull * s).sum(), rtol=1e-5)
  np.testing.assert_allclose(metrics["gamma"], held["gamma"], rtol=1e-6)
  if structure == "learned_free":
    slope = 0.8 * (pull * t).sum((1, 2)) * [1, 0, 1]
    np.testing.assert_allclose(held["row"][0], row[0] - 0.1 * slope[0], rtol=1e-4)
    np.testing.assert_allclose(held["row"][2], row[2] - 0.1 * slope[2], rtol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 30.0])
@pytest.mark.parametrize("start", [0.0, 1.0, 3.0])
def test_the_oracle_minimises_on_its_interval_wherever_it_starts(scale, start):
  """Where the sums are large the loss is saturated at the start, and has no curvature there."""
  out, told = layer(3)
  told = scale * told * jnp.asarray([1.5, 1.0])[None, :, None]

  def loss_of(**options):
    theta = 0.7 if scale == 1 else 20.0
    config = CollaborativeConfig(**{**FF, "theta": theta}, structure="ones", **options)
    method = collaborative(config, tiny.CLASSES)
    _, stats = method.init_layer(KEY, jax.tree.map(lambda a: a[0], out), Place(0, DEPTH))
    loss, (new, _) = method.local_loss({}, stats, out, None, Broadcast(told, 0), KEY)
    return float(loss), float(new["collaboration"]["gamma"])

  loss, gamma = loss_of(gamma=start, gamma_rule="oracle")
  assert 0 <= gamma <= 2
  assert loss <= min(loss_of(gamma=v)[0] for v in np.linspace(0, 2, 41)) + 1e-5


def test_clipped_gammas_stay_in_their_range():
  out, told = layer(1)
  config = CollaborativeConfig(
    **FF, structure="ones", gamma=0.4, gamma_rule="sgd_clipped", gamma_rate=100.0, gamma_max=0.5
  )
  method = collaborative(config, tiny.CLASSES)
  _, stats = method.init_layer(KEY, jax.tree.map(lambda a: a[0], out), Place(0, DEPTH))
  reached = set()
  for sign in (1, -1):
    views = out if sign > 0 else jax.tree.map(lambda a: a[::-1], out)
    lopsided = told * jnp.asarray([2.0, 0.1][::sign])[None, :, None]
    _, (_, metrics) = method.local_loss({}, stats, views, None, Broadcast(lopsided, 0), KEY)
    reached.add(float(metrics["gamma"]))
  assert reached == {0.0, 0.5}


@pytest.mark.parametrize("gamma", [0.4, 100.0])
def test_a_positive_gamma_moves_by_its_root(gamma):
  """d softplus(rho) / d rho = sigmoid(rho) stands before the slope in gamma."""
  out, told = layer(1)
  after = {}
  for rule in ("sgd", "softplus"):
    config = CollaborativeConfig(**FF, structure="ones", gamma=gamma, gamma_rule=rule)
    method = collaborative(config, tiny.CLASSES)
    _, stats = method.init_layer(KEY, jax.tree.map(lambda a: a[0], out), Place(0, DEPTH))
    root = float(stats["collaboration"]["gamma"])
    _, (new, _) = method.local_loss({}, stats, out, None, Broadcast(told, 0), KEY)
    after[rule] = float(new["collaboration"]["gamma"]) - root
  np.testing.assert_allclose(np.logaddexp(0, root), gamma, rtol=1e-5)
  np.testing.assert_allclose(after["softplus"], after["sgd"] / (1 + np.exp(-root)), rtol=2e-2)


def test_collaborative_answers_are_the_layers_own_ones_added_up():
  """Of one state, whose gammas have learned; no answer changes what is learned."""
  # With weights this unequal, heard scores would draw other hard negatives than own ones do.
  options = {**FF, "structure": "previous", "gamma": 50.0, "gamma_rule": "sgd", "gamma_rate": 0.3}
  options |= {"negatives": "goodness_hard"}
  trainers, states = [], []
  for answer in ("own", "collaborative"):
    config = CollaborativeConfig(**options, answer=answer)
    trainer, state, _ = run(collaborative(config, tiny.CLASSES))
    trainers.append(trainer)
    states.append(bits(state.layers))
  assert states[0] == states[1]
  image = tiny.make_batch(5).image
  own, heard = (tiny.jit(t.answer)(state, image) for t in trainers)
  scores = np.stack(own.layers).astype(np.float64)  # [L, B, K]
  held = [s.stats["method"]["collaboration"] for s in trainer.layer_states(state)]
  gamma = np.array([h["gamma"] for h in held], np.float64)
  assert gamma[1] != gamma[2]
  weights = gamma[:, None] * np.tril(np.ones((DEPTH, DEPTH)), -1)
  want = scores + np.einsum("lk,kbc->lbc", weights, scores)
  np.testing.assert_allclose(np.stack(heard.layers), want, rtol=1e-5)
  np.testing.assert_allclose(heard.readouts["score_sum"], want.sum(axis=0), rtol=1e-5)


def test_a_lonely_layer_is_refused():
  out, _ = layer()
  method = collaborative(CollaborativeConfig(**FF), tiny.CLASSES)
  with pytest.raises(ValueError, match="has one layer"):
    method.init_layer(KEY, jax.tree.map(lambda a: a[0], out), Place(0, 1))


@pytest.mark.parametrize("schedule", ["greedy", "alternating"])
def test_layers_hear_of_layers_that_do_not_learn(schedule):
  """Layer 1 of a sequential run hears the layers above, still random: its loss tells."""
  made = schedules.make_schedule(schedule, num_layers=3, epochs_per_layer=5)
  losses = {}
  for structure in ("ones", "none"):
    config = CollaborativeConfig(**FF, structure=structure)
    trainer, state, history = run(
      collaborative(config, tiny.CLASSES), steps=1, schedule=made, stack=False
    )
    losses[structure] = np.asarray(history[0]["loss"])
    moved = [
      float(jnp.abs(a.params["layer"]["dense"]["kernel"] - b["kernel"]).max())
      for a, b in zip(
        trainer.layer_states(state),
        tiny.layers64(trainer, tiny.jit(trainer.init)(KEY, tiny.make_batch(0))),
        strict=True,
      )
    ]
    assert moved[0] > 0 and moved[1:] == [0.0, 0.0]
  assert np.isnan(losses["ones"][1:]).all() and losses["ones"][0] != losses["none"][0]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"structure": "ring"}, "ring"),
    ({"gamma_rule": "adam"}, "adam"),
    ({"gamma": float("inf")}, "gamma must be finite"),
    ({"gamma_rate": 0.0}, "gamma_rate"),
    ({"answer": "sum"}, "answer must be 'own' or 'collaborative', not 'sum'"),
    ({"gamma": 0.0, "gamma_rule": "softplus"}, "positive gamma"),
    ({"gamma_rule": "oracle", "loss": "swish"}, "convex"),
    ({"goodness": "max"}, "goodness"),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(ValueError, match=message):
    collaborative(CollaborativeConfig(**options), 4)
