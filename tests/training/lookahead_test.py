"""Look-ahead: the convex combination it claims to be, its limits, its schedules, its locality."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import lax

from fflax.core import readouts
from fflax.core.locality import locality_matrix
from fflax.core.numerics import GRADIENT_STATE, float32
from fflax.core.numerics_registry import NUMERICS
from fflax.methods.backprop import BackpropConfig
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.methods.registry import make_method
from fflax.networks.registry import make_network
from fflax.random import Role, layer_key, role_key, step_key
from fflax.training import lookahead
from fflax.training.lookahead import LookaheadConfig, make_lookahead
from fflax.training.optimizers import for_numerics
from fflax.training.schedules import greedy, interleaved
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.training.tiny_layers import jit

CONFIGS = {
  "forward_forward": ForwardForwardConfig(theta=0.5),
  "hyperspherical": HypersphericalConfig(),
  "backprop": BackpropConfig(),
}
SIZES = (9, 8, 8, 7)


def make(name="forward_forward", look=None, method=None, numerics="float32", **options):
  return make_trainer(
    make_network("mlp", numerics=NUMERICS[numerics](), sizes=SIZES, kernel_init="fan_in_normal"),
    method or make_method(name, CONFIGS[name], 3),
    [readouts.score_sum()],
    **{"optimizer": optax.sgd(1.0), "image_shape": (4, 4, 1), "lookahead": look} | options,
  )


def batch(rows=6) -> Batch:
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.uniform(size=(rows, 4, 4, 1)), jnp.float32)
  return Batch(image, jnp.arange(rows, dtype=jnp.int32) % 3)


def gradients(trainer, weights=None):
  """What one step of plain SGD moves in each layer, exact but for rounding of the weights."""
  state = jit(trainer.init)(jax.random.key(0), batch())
  new, metrics = jit(trainer.step)(state, batch(), weights)
  pairs = zip(trainer.layer_states(state), trainer.layer_states(new), strict=True)
  return [jax.tree.map(jnp.subtract, a.params, b.params) for a, b in pairs], metrics


def convex(name, lam):
  """Oracle: the gradient of `(1 - lam) * J_detached + lam * J`, written down as one scalar."""
  trainer, method = make(name), make_method(name, CONFIGS[name], 3)
  state = jit(trainer.init)(jax.random.key(0), batch())
  states = trainer.layer_states(state)
  key = step_key(state.key, state.step)
  views = method.views(role_key(key, Role.VIEWS), batch(), None)
  layers = make_network("mlp", numerics=float32(), sizes=SIZES, kernel_init="fan_in_normal").layers

  def total(params, detached):
    h, losses = views, 0.0
    for i, (layer, s) in enumerate(zip(layers, states, strict=True)):
      flat = h.reshape((-1, *h.shape[2:]))
      out, _ = layer.apply(params[i]["layer"], {}, flat, train=True)
      shaped = jax.tree.map(lambda a, v=h.shape[:2]: a.reshape((*v, *a.shape[1:])), out)
      loss, _ = method.local_loss(
        params[i]["method"], s.stats["method"], shaped, batch().label, None,
        layer_key(key, i, Role.LOSS),
      )  # fmt: skip
      losses += loss
      h = method.hand_on(out, train=True).reshape((*h.shape[:2], -1))
      h = lax.stop_gradient(h) if detached else h
    return losses

  def objective(params):
    return (1 - lam) * total(params, True) + lam * total(params, False)

  return jit(jax.grad(objective))([s.params for s in states])


def close(found, expected, atol=2e-6):
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, atol=atol, rtol=2e-4)


@pytest.mark.parametrize("lam", [0.37, 1.7])
@pytest.mark.parametrize("name", ["forward_forward", "hyperspherical"])
def test_exact_is_the_convex_combination(name, lam):
  """The derivation of the specification; also beyond lambda = 1, where it extrapolates."""
  found, metrics = gradients(make(name, lookahead.constant(lam)))
  expected = convex(name, lam)
  close(found, expected)
  np.testing.assert_allclose(metrics["lambda"], np.full(4, lam), rtol=1e-6)
  strict = convex(name, 0.0)
  moved = [
    max(float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, pair), strict=True))
    for pair in zip(strict, expected, strict=True)
  ]
  assert min(moved[:-1]) > 1e-4, moved  # there is something to tell apart
  assert moved[-1] < 1e-6


@pytest.mark.parametrize(
  ("mode", "numerics"), [("exact", "float32"), ("scalar", "float32"), ("exact", "int8")]
)
def test_at_zero_it_is_the_strict_rule_bit_for_bit(mode, numerics):
  """A schedule that begins at zero; lambda is traced, so no branch of Python can help."""
  config = LookaheadConfig(mode, slope=0.1)
  looking = make(look=make_lookahead(config, epochs=10, steps_per_epoch=5), numerics=numerics)
  strict = make(numerics=numerics)
  for a, b in zip(*(jax.tree.leaves(gradients(t)[0]) for t in (looking, strict)), strict=True):
    np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
  "look", [LookaheadConfig("scalar"), LookaheadConfig("exact", schedule="adaptive_cos")]
)
def test_rematerialised_it_is_the_same(look):
  def moved(**options):
    own = dataclasses.replace(look, start=0.4)
    return gradients(make(look=make_lookahead(own, epochs=2, steps_per_epoch=1), **options))

  for a, b in zip(*map(jax.tree.leaves, (moved(), moved(rematerialize=True))), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-7)


def test_at_one_it_is_deep_supervised_backprop():
  method = make_method("forward_forward", CONFIGS["forward_forward"], 3)
  supervised = gradients(make(method=method._replace(locality="global")))[0]
  close(gradients(make(look=lookahead.constant(1.0)))[0], supervised)


@pytest.mark.parametrize("goodness", ["sum", "mean"])
def test_scalar_adds_the_later_slopes(goodness):
  """Oracle: the slopes of the logistic loss in closed form, then a weighted sum of goodness."""
  config = ForwardForwardConfig(theta=0.5, goodness=goodness)
  method, lam = make_method("forward_forward", config, 3), 0.6
  found = gradients(make(method=method, look=lookahead.constant(lam, "scalar")))[0]
  trainer = make(method=method)
  state = jit(trainer.init)(jax.random.key(0), batch())
  states = trainer.layer_states(state)
  h = method.views(role_key(step_key(state.key, 0), Role.VIEWS), batch(), None)
  layers = make_network("mlp", numerics=float32(), sizes=SIZES, kernel_init="fan_in_normal").layers

  def goodness_of(params, h, layer):
    out, _ = layer.apply(params, {}, h.reshape(-1, h[0, 0].size), train=True)
    squares = jnp.sum(jnp.square(out.act), -1).reshape(2, -1)
    return squares / (out.act.shape[-1] if goodness == "mean" else 1), out

  inputs, slopes = [], []
  for layer, s in zip(layers, states, strict=True):
    inputs.append(h)
    g, out = goodness_of(s.params["layer"], h, layer)
    theta = 0.5 * (1 if goodness == "mean" else out.act.shape[-1])
    rows = h.shape[1]
    slopes.append(
      jnp.stack([-jax.nn.sigmoid(theta - g[0]), jax.nn.sigmoid(g[1] - theta)]) / (2 * rows)
    )
    h = method.hand_on(out, train=True).reshape(2, rows, -1)
  for i, (layer, s) in enumerate(zip(layers, states, strict=True)):
    weight = slopes[i] + lam * sum(slopes[i + 1 :], jnp.zeros_like(slopes[i]))
    expected = jax.grad(
      lambda p, w=weight, x=inputs[i], f=layer: jnp.sum(w * goodness_of(p, x, f)[0])
    )(s.params["layer"])
    close(found[i]["layer"], expected)


@pytest.mark.parametrize(
  ("name", "mode"),
  [("forward_forward", "exact"), ("forward_forward", "scalar"), ("hyperspherical", "exact")],
)
@pytest.mark.parametrize("lam", [0.0, 0.5])
def test_losses_reach_down_and_never_up(name, mode, lam):
  trainer = make(name, lookahead.constant(lam, mode))
  state, step = jit(trainer.init)(jax.random.key(0), batch()), jit(trainer.step)

  def moved(weights):
    return tuple(s.params for s in trainer.layer_states(step(state, batch(), weights)[0]))

  expected = np.tril(np.ones((4, 4), bool)) if lam else np.eye(4, dtype=bool)
  np.testing.assert_array_equal(locality_matrix(moved, 4), expected)
  assert trainer.locality == "lookahead"


def coefficient(step=0, epochs=100, steps_per_epoch=10, **options):
  look = make_lookahead(LookaheadConfig("exact", **options), epochs, steps_per_epoch)
  values = look.coefficients(look.init(3), jnp.asarray(step), 3)
  assert np.ptp(values) == 0
  return float(values[0])


@pytest.mark.parametrize(
  ("expected", "options"),
  [
    (0.13, {"step": 1300, "slope": 0.001}),
    (0.13, {"step": 1309, "slope": 0.001}),
    (0.1309, {"step": 1309, "slope": 0.001, "per_step": True}),
    (1.0, {"step": 10000, "slope": 0.001, "maximum": 9.0}),
    (1.5, {"step": 20000, "slope": 0.001, "maximum": 1.5}),
    (0.5, {"step": 500}),
    (0.3, {"step": 770, "schedule": "constant", "start": 0.3}),
    (1 - np.exp(-1), {"step": 300, "schedule": "exponential", "epochs": 90}),
    (0.7 * (1 - np.exp(-2)), {"step": 80, "schedule": "exponential", "tau": 4.0, "maximum": 0.7}),
    (0.01 * 1.05**7, {"step": 70, "schedule": "geometric", "start": 0.01}),
    (1.0, {"step": 10**7, "schedule": "geometric", "start": 0.01}),
    (0.0, {"step": 10**6, "schedule": "geometric", "start": 0.0}),
  ],
)
def test_lambda_of_the_epoch(expected, options):
  np.testing.assert_allclose(coefficient(**options), expected, rtol=1e-5)


def test_readiness_counts_the_layers_above():
  """`2p - 1` of the layers above, by hand; the last layer has none above it."""
  look = make_lookahead(LookaheadConfig("exact", "adaptive_ready", maximum=0.5), 10, 10)
  state = {"ordered": jnp.array([1.0, 0.75, 0.2, 1.0])}
  found = look.coefficients(state, jnp.zeros((), jnp.int32), 4)
  np.testing.assert_allclose(found, 0.5 * np.array([1.5 / 3, 0.5, 1.0, 0.0]), rtol=1e-6)
  assert not look.coefficients(look.init(4), jnp.zeros((), jnp.int32), 4).any()
  goodness = [jnp.array([[2.0, 1.0, 1.0, 3.0], [1.0, 2.0, 1.0, 1.0]])] * 4
  after = look.observe(state, goodness)["ordered"]
  np.testing.assert_allclose(after, 0.99 * np.asarray(state["ordered"]) + 0.01 * 0.5, rtol=1e-6)


@pytest.mark.parametrize(
  "schedule",
  [
    "adaptive_norm",
    *(pytest.param(s, marks=pytest.mark.slow) for s in ("adaptive_cos", "constant")),
  ],
)
def test_gradient_states_of_products_are_neither_added_nor_compared(schedule):
  """The state of the strict rule's own product; twice a clip value would be another quantiser."""
  config, numerics = LookaheadConfig("exact", schedule, start=0.5), "int8_dai8"
  optimizer = for_numerics(optax.sgd(0.1), NUMERICS[numerics]())
  states = []
  for look in (None, make_lookahead(config, 10, 10)):
    trainer = make(look=look, numerics=numerics, optimizer=optimizer)
    new, _ = jit(trainer.step)(jit(trainer.init)(jax.random.key(0), batch()), batch())
    last = trainer.layer_states(new)[-1].params["layer"]
    flat = jax.tree_util.tree_leaves_with_path(last)
    states += [x for path, x in flat if path[-1].key == GRADIENT_STATE]
  assert len(states) == 2
  np.testing.assert_array_equal(*states)


def test_readiness_knows_methods_that_lower_the_goodness_of_positives():
  """Counted the other way round, its lambda would stay zero for ever."""
  look = make_lookahead(LookaheadConfig("exact", "adaptive_ready"), 10, 10)
  ordered = []
  for maximize in (True, False):
    config = ForwardForwardConfig(theta=0.5, maximize=maximize)
    trainer = make(method=make_method("forward_forward", config, 3), look=look)
    new, metrics = jit(trainer.step)(jit(trainer.init)(jax.random.key(0), batch()), batch())
    ordered.append(new.coupling["ordered"])
    expected = 0.99 * 0.5 + 0.01 * metrics["pair_accuracy"]
    np.testing.assert_allclose(ordered[-1], expected, rtol=1e-6)
  assert not np.array_equal(*ordered)


def test_lambda_from_gradients():
  local, later = {"w": jnp.array([3.0, 0.0])}, {"w": jnp.array([0.0, 4.0])}
  cos = make_lookahead(LookaheadConfig("exact", "adaptive_cos", maximum=2.0), 1, 1)
  np.testing.assert_allclose(cos.from_gradients(jnp.zeros(()), local, later), 2 * 3 / 5, rtol=1e-6)
  against = {"w": jnp.array([-4.0, 0.0])}
  assert cos.from_gradients(jnp.zeros(()), local, against) == 0
  norm = make_lookahead(LookaheadConfig("exact", "adaptive_norm", rho=0.8), 1, 1)
  found = norm.from_gradients(jnp.asarray(0.5), local, later)
  np.testing.assert_allclose(found, 0.99 * 0.5 + 0.01 * 0.8 * 3 / 4, rtol=1e-6)
  nothing = {"w": jnp.zeros(2)}
  assert norm.from_gradients(jnp.asarray(0.5), local, nothing) == pytest.approx(0.99 * 0.5 + 0.01)


@pytest.mark.parametrize("schedule", ["adaptive_ready", "adaptive_norm", "adaptive_cos"])
def test_adaptive_lambdas_move_and_are_remembered(schedule):
  """Two steps: the second uses what the first has seen; the gradient stays the combination."""
  look = make_lookahead(LookaheadConfig("exact", schedule), 10, 10)
  trainer = make(look=look)
  state = jit(trainer.init)(jax.random.key(0), batch())
  step = jit(trainer.step)
  first, metrics = step(state, batch())
  _, second = step(first, batch())
  lambdas = np.stack([metrics["lambda"], second["lambda"]])
  assert np.isfinite(lambdas).all() and (lambdas >= 0).all() and (lambdas <= 1).all()
  if schedule == "adaptive_cos":  # known once the gradients are, in the first step too
    assert lambdas[0, :-1].max() > 0
    fixed = make(look=lookahead.constant(float(lambdas[0, 0])))
    expected, _ = jit(fixed.step)(fixed.init(jax.random.key(0), batch()), batch())
    params = [t.layer_states(s)[0].params for t, s in ((trainer, first), (fixed, expected))]
    close(*params)
  if schedule == "adaptive_norm":
    assert lambdas[1].max() > lambdas[0].max() > 0
  changed = [
    not np.array_equal(a, b)
    for a, b in zip(*map(jax.tree.leaves, (state.coupling, first.coupling)), strict=True)
  ]
  assert all(changed)


REFUSALS = {
  "is global already": lambda look: make("backprop", look),
  "schedule 'greedy'": lambda look: make(look=look, schedule=greedy(1)),
  "schedule 'interleaved'": lambda look: make(look=look, schedule=interleaved()),
}


@pytest.mark.parametrize("message", REFUSALS)
def test_impossible_runs_are_refused(message):
  with pytest.raises(ValueError, match=message):
    REFUSALS[message](lookahead.constant(0.5))


def test_goodness_is_needed_where_it_is_read():
  for look in (
    lookahead.constant(0.5, "scalar"),
    make_lookahead(LookaheadConfig("exact", "adaptive_ready"), 1, 1),
  ):
    with pytest.raises(ValueError, match=r"'hyperspherical' (has none|shows one view)"):
      make("hyperspherical", look)


@pytest.mark.parametrize(
  "options",
  [
    {"mode": "both"},
    {"schedule": "sudden"},
    {"slope": -1.0},
    {"maximum": float("inf")},
    {"rate": 0.5},
    {"mode": "scalar", "schedule": "adaptive_cos"},
  ],
)
def test_impossible_settings_are_refused(options):
  with pytest.raises(ValueError, match="lookahead"):
    LookaheadConfig(**options)


def test_none_means_none():
  assert make_lookahead(LookaheadConfig(), 10, 10) is None
  assert make().locality == "strict"
