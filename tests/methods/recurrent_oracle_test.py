"""Recurrent Forward-Forward against an independent float64 computation, and its limits.

The oracle knows no autodiff: a gradient that passed a layer or a time step, an activity of the
wrong time or a forgotten damping would show in parameters that have moved far.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core.numerics import float32
from fflax.core.numerics_registry import make_numerics
from fflax.core.readouts import score_sum, softmax_head
from fflax.methods.recurrent import RecurrentConfig, recurrent
from fflax.networks.registry import make_network
from fflax.random import Role, role_key, step_key
from fflax.training import lookahead, schedules
from fflax.training.step import make_trainer
from tests.methods import numpy_oracles as oracle
from tests.methods.tiny import (
  CLASSES,
  ROWS,
  SHALLOW,
  SHAPE,
  assert_close,
  flat64,
  jit,
  make_batch,
  make_mlp,
)

CONFIG = RecurrentConfig(steps=3, damping=0.3, answer_from=2, answer_to=4, eps=1e-8)


def make(config=CONFIG, sizes=SHALLOW, rate=0.1, **options):
  network = options.pop("network", None) or make_mlp(sizes, dead_unit=False)
  method = recurrent(config, CLASSES)
  readouts = [score_sum(), softmax_head(CLASSES)]
  sgd = optax.sgd(rate, momentum=0.9)
  return method, make_trainer(
    network, method, readouts, image_shape=SHAPE, optimizer=sgd, **options
  )


def layers64(trainer, state):
  """Kernels from below (U) and from above (D) and biases of every layer."""
  return [
    {
      "U": np.asarray(p["dense"]["kernel"], np.float64),
      "D": np.asarray(p["top_down"]["kernel"], np.float64),
      "b": np.asarray(p["dense"]["bias"], np.float64),
    }
    for p in (s.params["layer"] for s in trainer.layer_states(state))
  ]


def rms(v):
  return oracle.normalize("rms", v, 1e-8)


def first_pass(layers, x):
  h = [x]
  for p in layers:
    h.append(np.maximum(rms(h[-1]) @ p["U"] + p["b"], 0))
  return h[1:]


def tick(layers, x, top, h):
  """The next activities of all layers, and what the hand-written gradients need."""
  column = [rms(v) for v in (x, *h, top)]
  new, traces = [], []
  for i, p in enumerate(layers):
    below, above = column[i], column[i + 2]
    a = below @ p["U"] + above @ p["D"] + p["b"]
    new.append(0.3 * h[i] + 0.7 * np.maximum(a, 0))
    traces.append((below, above, a))
  return new, traces


def train64(layers, optimizers, x, label, wrong, steps):
  """One training step, which moves `layers`; the losses and mean positive goodnesses, `[L]`."""
  tops = [np.eye(CLASSES)[k] for k in (label, wrong)]
  grads = [{k: np.zeros_like(v) for k, v in p.items()} for p in layers]
  losses, goodness = np.zeros(len(layers)), np.zeros(len(layers))
  h = [first_pass(layers, x) for _ in tops]
  for _ in range(steps):
    ticks = [tick(layers, x, top, old) for top, old in zip(tops, h, strict=True)]
    h, traces = zip(*ticks, strict=True)
    for i in range(len(layers)):
      for view, sign in ((0, 1), (1, -1)):
        own, (below, above, a) = h[view][i], traces[view][i]
        z = sign * (np.sum(own**2, -1) - own.shape[-1])
        losses[i] += np.mean(oracle.softplus(-z)) / 2
        signal = (-sign * oracle.sigmoid(-z) / 2 / ROWS)[:, None] * 2 * own * 0.7 * (a > 0)
        grads[i]["U"] += below.T @ signal
        grads[i]["D"] += above.T @ signal
        grads[i]["b"] += signal.sum(0)
      goodness[i] += np.mean(np.sum(h[0][i] ** 2, -1)) / steps
  layers[:] = [f(p, g) for f, p, g in zip(optimizers, layers, grads, strict=True)]
  return losses, goodness


def scores64(layers, x, first, last):
  """`[L, B, K]`: goodness averaged over the time steps of the window, for every label."""
  found = []
  for k in range(CLASSES):
    h, told = first_pass(layers, x), []
    for _ in range(last):
      h, _ = tick(layers, x, np.eye(CLASSES)[np.full(ROWS, k)], h)
      told.append([np.sum(v**2, -1) for v in h])
    found.append(np.mean(told[first - 1 :], axis=0))
  return np.moveaxis(found, 0, -1)


def test_three_steps():
  method, trainer = make()
  state = jit(trainer.init)(jax.random.key(3), make_batch(0))
  layers = layers64(trainer, state)
  start = [dict(p) for p in layers]
  assert [p["D"].shape for p in layers] == [(11, 14), (CLASSES, 11)]
  optimizers = [oracle.Sgd(0.1, 0.9, 0.0, ()) for _ in layers]
  head, head_optimizer = {"V": np.zeros((25, CLASSES))}, oracle.Sgd(0.1, 0.9, 0.0, ())

  @jit
  def probe(state, batch):
    key = role_key(step_key(state.key, state.step), Role.VIEWS)
    views = method.views(key, batch, None)
    told = trainer.goodness(state, batch, key)
    return trainer.answer(state, batch.image), views, told, *trainer.step(state, batch)

  for t in range(3):
    batch = make_batch(t)
    answer, views, told, state, metrics = probe(state, batch)
    x = flat64(batch.image)
    want = scores64(layers, x, 2, 4)
    assert np.ptp(want, axis=-1).min() > 0.01, "labels make no difference: the test is blind"
    assert_close(jnp.stack(answer.layers), want, f"scores, step {t}", 1e-4, 1e-4)
    features = np.concatenate([rms(h) for h in first_pass(layers, x)], -1)
    logits = features @ head["V"]
    assert_close(answer.readouts["softmax_head"], logits, f"logits of one pass, step {t}", 1e-4)

    np.testing.assert_array_equal(views.below[0], views.below[1])
    true, wrong = np.argmax(views.above, -1)
    np.testing.assert_array_equal(true, batch.label)
    assert not np.any(wrong == true)
    for view, labels in enumerate((true, wrong)):
      own = np.take_along_axis(want, np.asarray(labels)[None, :, None], -1)[..., 0]
      assert_close(told[:, view], own, f"goodness of view {view}, step {t}", 1e-4, 1e-4)

    losses, goodness = train64(layers, optimizers, x, true, wrong, 3)
    assert_close(metrics["loss"], losses, f"losses, step {t}", 5e-5)
    assert_close(metrics["goodness_pos"], goodness, f"goodness, step {t}", 5e-5)
    grad = features.T @ (oracle.softmax(logits) - np.eye(CLASSES)[true]) / ROWS
    head = head_optimizer(head, {"V": grad})
    for i, (got, by_hand) in enumerate(zip(layers64(trainer, state), layers, strict=True)):
      for part, value in by_hand.items():
        assert_close(got[part], value, f"{part} of layer {i}, step {t}", 1e-4, 2e-5)
  for p, old in zip(layers, start, strict=True):
    assert all(np.abs(p[k] - old[k]).max() > 0.01 for k in p), "hardly moved: the test is blind"


def test_a_step_moves_by_the_gradient_of_the_losses_that_it_reports():
  """A gradient through time or through a neighbour would be in one of the two, not in the other."""
  _, trainer = make()
  state = jit(trainer.init)(jax.random.key(3), make_batch(0))

  def losses(layers):
    return jnp.sum(
      trainer.step(dataclasses.replace(state, layers=layers), make_batch(0))[1]["loss"]
    )

  grads, (new, _) = jit(lambda s: (jax.grad(losses)(s.layers), trainer.step(s, make_batch(0))))(
    state
  )
  for s, g, moved in zip(state.layers, grads, new.layers, strict=True):
    jax.tree.map(
      lambda p, g, q: assert_close(p - 0.1 * g, q, "parameters", 1e-6, 1e-6),
      s.params,
      g.params,
      moved.params,
    )


def test_without_kernels_from_above_time_stands_still():
  """With D = 0 every time step repeats the first pass, whatever the damping and the label."""
  _, trainer = make(dataclasses.replace(CONFIG, damping=0.6, answer_from=1))
  image = make_batch(1).image
  state = jit(trainer.init)(jax.random.key(0), make_batch(0))

  def silent(s):
    params = s.params["layer"]
    still = {**params, "top_down": {"kernel": 0 * params["top_down"]["kernel"]}}
    return dataclasses.replace(s, params={**s.params, "layer": still})

  state = dataclasses.replace(state, layers=tuple(silent(s) for s in state.layers))
  outs, scores = jit(
    lambda state: (trainer.layer_outs(state, image, None), trainer.answer(state, image).layers)
  )(state)
  for out, found in zip(outs, scores, strict=True):
    want = np.sum(np.asarray(out.act, np.float64) ** 2, -1)
    assert_close(found, np.repeat(want[:, None], CLASSES, 1), "scores", 1e-5, 1e-5)


def test_made_without_an_above_a_layer_is_a_dense_layer():
  """The matched control is the same network: its layers have no kernels from above."""
  layer = make_mlp((7,)).layers[0]
  params, _ = layer.init(jax.random.key(0), make_batch(0).image)
  assert set(params) == {"dense"}


def small_cnn():
  return make_network("small_cnn", numerics=float32(), channels=(4, 4), pool_after=())


REFUSED = {
  "greedy": ({"schedule": schedules.greedy(3)}, "'greedy' needs layers that follow each other"),
  "interleaved": ({"schedule": schedules.interleaved()}, "'interleaved' needs layers that follow"),
  "look-ahead": ({"lookahead": lookahead.constant(0.5)}, "look-ahead needs layers that follow"),
  "network": (
    {"network": small_cnn()},
    "'conv_1' of network 'small_cnn' cannot: use network 'mlp'",
  ),
  "p-bits": (
    {"network": make_network("mlp", numerics=float32(), activation="pbits", sizes=(5,))},
    "random units do not emit",
  ),
  "gradient state": (
    {"network": make_network("mlp", numerics=make_numerics("int8_dai8"), sizes=(5,))},
    "sums gradients over time",
  ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_impossible_runs_are_refused(name):
  options, sentence = REFUSED[name]
  with pytest.raises(ValueError, match=sentence):
    make(**options)


@pytest.mark.parametrize(
  ("options", "sentence"),
  [
    ({"label_style": "prepend"}, "label_style does not apply"),
    ({"supervision": "hybrid"}, "supervision does not apply"),
    ({"steps": 0}, "steps must be 1 or more"),
    ({"damping": 1.0}, "damping must be in"),
    ({"answer_from": 4, "answer_to": 3}, "answer_from <= answer_to"),
  ],
)
def test_impossible_numbers_are_refused(options, sentence):
  with pytest.raises(ValueError, match=sentence):
    recurrent(RecurrentConfig(**options), CLASSES)
