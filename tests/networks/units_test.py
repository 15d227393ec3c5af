"""P-bits in the layers of networks, and the batch norm that carries a square along."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core.goodness import squared
from fflax.core.numerics import float32
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import expected_count, mean_field
from fflax.core.pbits import pbit
from fflax.core.readouts import score_sum
from fflax.methods.registry import METHODS, make_method
from fflax.networks.activations import Pbits
from fflax.networks.cfse import ChannelwiseLayer
from fflax.networks.layers import ConvLayer, DenseLayer, LocalLayer, from_linen
from fflax.networks.registry import make_network
from fflax.networks.units import SquareNorm
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.methods.tiny import jit

THREE = Pbits(PbitConfig(3))
IMAGE = (2, 6, 5, 4)
LAYERS = {
  "dense": (DenseLayer(8, THREE), 1),
  "conv": (ConvLayer(8, THREE, batch_norm=True), 1),
  "conv_max": (ConvLayer(8, THREE, pool="max"), 2),
  "local": (LocalLayer(8, 2, activation=THREE), 1),
  "channelwise": (ChannelwiseLayer(8, 2, norm="none", activation=THREE), 1),
  "channelwise_pool": (ChannelwiseLayer(8, 2, pool=True, norm="none", activation=THREE), 2),
}


def run(module, key=None, train=False, x=None):
  layer = from_linen(module, "layer")
  x = jax.random.normal(jax.random.key(1), IMAGE) if x is None else x

  @jit
  def outs(x, key):
    params, stats = layer.init(jax.random.key(0), x)
    return layer.apply(params, stats, x, train=train, key=key)[0]

  return outs(x, key)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_sample_counts_and_their_square_with_a_key(name):
  module, window = LAYERS[name]
  keys = jax.random.split(jax.random.key(2))
  out, again, other = (run(module, key, True) for key in (keys[0], keys[0], keys[1]))
  for got, same in zip(jax.tree.leaves(out), jax.tree.leaves(again), strict=True):
    np.testing.assert_array_equal(got, same)
  assert np.any(out.out != other.out)
  for counts in (out.act, out.out):
    assert len(found := set(np.unique(counts))) > 2
    assert found <= {0, 1, 2, 3}
  np.testing.assert_array_equal(out.square, out.out**2)
  if window == 2:
    rows = np.asarray(out.act)[:, :6, :4].reshape(2, 3, 2, 2, 2, 8)
    np.testing.assert_array_equal(out.out, rows.max(axis=(2, 4)))
  else:
    np.testing.assert_array_equal(out.out, out.act)
  assert out.log_prob is None


@pytest.mark.parametrize("name", LAYERS)
def test_layers_emit_the_mean_field_without_a_key(name):
  module, window = LAYERS[name]
  out = run(module)
  np.testing.assert_allclose(out.act, expected_count(out.pre, THREE.config), rtol=1e-6)
  mean, square = mean_field(out.pre, THREE.config, window)
  np.testing.assert_allclose(out.out, mean, rtol=1e-6)
  np.testing.assert_allclose(out.square, square, rtol=1e-6)


def test_an_average_of_samples_has_no_square_of_its_own():
  out = run(ConvLayer(8, THREE, pool="avg"), jax.random.key(0), True)
  want = np.asarray(out.act)[:, :6, :4].reshape(2, 3, 2, 2, 2, 8).mean(axis=(2, 4))
  np.testing.assert_allclose(out.out, want, rtol=1e-6)
  assert out.square is None
  np.testing.assert_array_equal(squared(out), out.out**2)


def test_what_is_squared_is_a_deterministic_output_or_the_square_itself():
  out = run(DenseLayer(8))
  assert out.square is None
  np.testing.assert_array_equal(squared(out), out.out**2)
  # Switching one of few units on adds 2 a + 1, not 2 a: units that are off learn, too.
  off = -6.0 * jnp.ones((1, 4))
  for read, learns in ((squared, True), (lambda out: out.out**2, False)):
    slope = jax.grad(lambda x, f=read: jnp.sum(f(_emit(x))))(off)
    assert np.all(slope > 0) == learns


def _emit(x):
  """The units of a layer alone."""
  count, square = pbit(jax.random.key(0), x, THREE.config)
  return run(DenseLayer(4))._replace(out=count, square=square)


@pytest.mark.parametrize("noise", ["independent", "shared"])
def test_the_score_estimator_leaves_the_gradient_to_the_loss(noise):
  config = PbitConfig(3, "score", noise=noise)
  layer = from_linen(DenseLayer(8, Pbits(config)), "layer")
  x, key = jax.random.normal(jax.random.key(1), (5, 4)), jax.random.key(3)
  params, _ = layer.init(key, x)
  out, _ = layer.apply(params, {}, x, train=True, key=key)
  assert out.log_prob.shape == (5,)
  assert layer.apply(params, {}, x, train=True)[0].log_prob is None
  p = np.stack([1 / (1 + np.exp(m - 0.5 - np.asarray(out.pre, np.float64))) for m in (1, 2, 3)])

  def gradient(read):
    return jax.grad(lambda p: read(layer.apply(p, {}, x, train=True, key=key)[0]))(params)["dense"]

  for leaf in jax.tree.leaves(gradient(lambda out: out.out.sum() + out.square.sum())):
    np.testing.assert_array_equal(leaf, jnp.zeros_like(leaf))
  score = gradient(lambda out: out.log_prob.sum())["bias"]
  if noise == "independent":
    np.testing.assert_allclose(score, (np.asarray(out.act) - p.sum(0)).sum(0), atol=1e-5)
  else:
    # Count k: P = p_k - p_{k+1}; its logarithm's derivative is 1 - p_k - p_{k+1}.
    edges = np.concatenate([np.ones((1, 5, 8)), p, np.zeros((1, 5, 8))])
    k = np.asarray(out.act, int)[None]
    want = 1 - np.take_along_axis(edges, k, 0) - np.take_along_axis(edges, k + 1, 0)
    np.testing.assert_allclose(score, want[0].sum(0), atol=1e-5)


def norms(train, affine=True, **changes):
  kwargs = {"momentum": 0.9, "epsilon": 1e-4, **changes}
  ours = SquareNorm(affine=affine, **kwargs)
  linen = nn.BatchNorm(use_running_average=not train, use_scale=affine, use_bias=affine, **kwargs)
  return ours, linen


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_square_norm_is_linens_batch_norm(train, affine):
  """Values, running averages and gradients, if the square has the square's own gradient."""
  ours, linen = norms(train, affine)
  x = jnp.round(3 * jax.random.uniform(jax.random.key(0), (4, 3, 3, 5)))
  variables = linen.init(jax.random.key(1), x)
  mine = ours.init(jax.random.key(1), x, x * x, train)
  assert jax.tree.structure(mine) == jax.tree.structure(variables)
  shift = 1 + 0.1 * jnp.arange(5.0)
  variables = jax.tree.map(lambda a: a * shift + 0.2, variables)
  weight = jax.random.normal(jax.random.key(2), (2, *x.shape))
  stats = {"batch_stats": variables["batch_stats"]}

  def loss(f):
    def value(params, x):
      y, square, changed = f({**params, **stats}, x)
      return jnp.sum(weight[0] * y + weight[1] * square), (y, square, changed)

    params = {"params": variables["params"]} if affine else {}
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1), has_aux=True))(params, x)

  def theirs(variables, x):
    y, changed = linen.apply(variables, x, mutable=["batch_stats"])
    return y, y * y, changed

  def own(variables, x):
    (y, square, *_), changed = ours.apply(variables, x, x * x, train, mutable=["batch_stats"])
    return y, square, changed

  got, want = loss(own), loss(theirs)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-4)


def test_frozen_statistics_are_constants_of_the_gradient():
  """As if the running averages, set to those of the batch, normalised; the values are the same."""
  x = jnp.round(3 * jax.random.uniform(jax.random.key(0), (4, 3, 5)))
  frozen, variables = SquareNorm(frozen=True), SquareNorm().init(jax.random.key(1), x, x * x)
  still = {"mean": x.mean((0, 1)), "var": x.var((0, 1))}
  params = jax.tree.map(lambda a: a + 0.1 * jnp.arange(5.0), variables["params"])

  def loss(params, x, norm, stats, train):
    own = {"params": params, "batch_stats": stats}
    (y, square, *_), _ = norm.apply(own, x, x * x, train, mutable=["batch_stats"])
    return jnp.sum(jnp.sin(y) + square * y)

  got = jax.grad(loss, (0, 1))(params, x, frozen, variables["batch_stats"], True)
  want = jax.grad(loss, (0, 1))(params, x, SquareNorm(), still, False)
  full = jax.grad(loss, (0, 1))(params, x, SquareNorm(), variables["batch_stats"], True)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
  assert np.abs(full[1] - want[1]).max() > 0.1


def test_square_norm_gives_the_exact_effect_of_every_flip():
  """At fixed statistics: `2 A^2 a_m + A^2 + 2 A B`, the difference of the squares themselves."""
  ours, _ = norms(False, epsilon=0.0)
  config = PbitConfig(2, "ste_identity")
  v = jnp.zeros((64, 2))
  scale, shift = jnp.array([0.7, -1.3]), jnp.array([0.4, 0.2])
  variables = ours.init(jax.random.key(0), v, v)
  variables = {**variables, "params": {"scale": scale, "bias": shift}}
  key = jax.random.key(5)

  def loss(v):
    return jnp.sum(ours.apply(variables, *pbit(key, v, config))[1])

  count = np.asarray(pbit(key, v, config)[0], np.float64)
  a, b = np.asarray(scale, np.float64), np.asarray(shift, np.float64)
  # Of two units, `count` are on: each of them stands beside count - 1, each other beside count.
  rise = lambda k: (a * (k + 1) + b) ** 2 - (a * k + b) ** 2  # noqa: E731
  want = count * rise(count - 1) + (2 - count) * rise(count)
  np.testing.assert_allclose(jax.jit(jax.grad(loss))(v), want, rtol=1e-5, atol=1e-5)


def test_channelwise_layer_normalises_counts_as_linen_does():
  x = jax.random.normal(jax.random.key(1), IMAGE)
  layer = from_linen(ChannelwiseLayer(8, 2, pool=True, activation=THREE), "layer")
  params, stats = layer.init(jax.random.key(0), x)
  out, new = layer.apply(params, stats, x, train=True, key=jax.random.key(2))
  counts = np.asarray(out.act, np.float64)[:, :6, :4].reshape(2, 3, 2, 2, 2, 8).max(axis=(2, 4))
  mean, var = counts.mean(axis=(0, 1, 2)), counts.var(axis=(0, 1, 2))
  want = (counts - mean) / np.sqrt(var + 1e-4)
  np.testing.assert_allclose(out.out, want, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(out.square, want**2, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(new["norm"]["mean"], 0.1 * mean, rtol=1e-5)
  np.testing.assert_allclose(new["norm"]["var"], 0.9 + 0.1 * var, rtol=1e-5)
  # Evaluation: the mean field under the running averages, its variance in the square.
  out, same = layer.apply(params, stats, x, train=False)
  assert same is stats
  mean, square = mean_field(out.pre, THREE.config, 2)
  np.testing.assert_allclose(out.out, mean / np.sqrt(1.0001), rtol=1e-5)
  np.testing.assert_allclose(out.square, square / 1.0001, rtol=1e-5)


@pytest.mark.parametrize(
  ("name", "options"),
  [
    ("resnet18", {"width": 1 / 32}),
    pytest.param("mobilenet_v2", {"width": 1 / 8, "granularity": "stage"}, marks=pytest.mark.slow),
    pytest.param("efficientnet_b0", {"width": 1 / 8}, marks=pytest.mark.slow),
    ("vit", {"features": 6, "depth": 1}),
  ],
)
def test_units_inside_blocks_are_drawn(name, options):
  """With another key each layer with units inside emits something else, with gradients."""
  network = make_network(name, numerics=float32(), activation=THREE, **options)
  layer = network.layers[2 if len(network.layers) > 2 else 1]
  below = network.layers[: network.layers.index(layer)]
  key = jax.random.key(0)

  @jit
  def check():
    x = jax.random.normal(key, (2, 8, 8, 3))
    for lower in below:
      params, stats = lower.init(key, x)
      x = lower.apply(params, stats, x, train=False)[0].out
    params, stats = layer.init(key, x)

    def emit(params, key):
      return layer.apply(params, stats, x, train=True, key=key)[0].out

    # Several draws: a unit that is off leaves the kernel above it without a gradient.
    total = lambda p: sum(jnp.sum(emit(p, k) ** 2) for k in jax.random.split(key, 4))  # noqa: E731
    grads = jax.grad(total)(params)
    draws = [emit(params, jax.random.key(k)) for k in (1, 1, 2)]
    return draws, grads

  draws, grads = check()
  np.testing.assert_array_equal(draws[0], draws[1])
  assert np.any(draws[0] != draws[2])
  kernels = [g for g in jax.tree.leaves(grads) if g.ndim > 1]
  assert kernels
  assert all(np.any(g != 0) for g in kernels)


def trainer_of(method, network, **settings):
  options = {"mlp": {"sizes": (12, 12, 10)}, "small_cnn": {"channels": (6, 6), "pool_after": (1,)}}
  pbits = PbitConfig(**settings)
  return make_trainer(
    make_network(network, numerics=float32(), activation="pbits", pbits=pbits, **options[network]),
    make_method(method, METHODS[method].config(), 3),
    [score_sum()],
    image_shape=(6, 6, 1),
    optimizer=optax.sgd(0.1),
  )


@pytest.mark.parametrize(
  ("method", "network"), [("forward_forward", "mlp"), ("hyperspherical", "small_cnn")]
)
def test_any_method_trains_layers_of_pbits(method, network):
  trainer = trainer_of(method, network, units=3)
  rng = np.random.default_rng(0)
  batch = Batch(
    jnp.asarray(rng.uniform(0, 1, (4, 6, 6, 1)), jnp.float32), jnp.array([0, 1, 2, 1], jnp.int32)
  )
  init, step = jit(trainer.init), jit(trainer.step)
  state = init(jax.random.key(0), batch)
  weights = jnp.ones(len(trainer.layer_names))
  new, metrics = step(state, batch, weights)
  again, _ = step(state, batch, weights)
  assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(metrics))
  params = [trainer.layer_states(s) for s in (state, new, again)]
  for before, after, same in zip(*params, strict=True):
    pairs = zip(*(jax.tree.leaves(s.params["layer"]) for s in (before, after, same)), strict=True)
    for old, moved, repeated in pairs:
      np.testing.assert_array_equal(moved, repeated)
      assert np.any(moved != old)
  # Strict: without layer 2's loss, layer 2 alone stands still.
  alone = trainer.layer_states(step(state, batch, weights.at[1].set(0.0))[0])
  for i, (before, got, full) in enumerate(zip(params[0], alone, params[1], strict=True)):
    for leaf, want in zip(
      jax.tree.leaves(got.params), jax.tree.leaves((before if i == 1 else full).params), strict=True
    ):
      np.testing.assert_array_equal(leaf, want)
  answers = jit(trainer.answer)(new, batch.image)
  np.testing.assert_array_equal(answers.readouts["score_sum"].shape, (4, 3))


def test_layers_say_how_high_they_count():
  """What the next layer's products read; an average of counts is none."""
  for name, (module, _) in LAYERS.items():
    assert from_linen(module, name).counts == (3 if name != "local" else 0), name
  assert from_linen(ConvLayer(8, THREE, pool="avg"), "layer").counts == 0
  assert from_linen(DenseLayer(8), "layer").counts == 0
  for name, options in (("mlp", {"sizes": (4, 4, 4)}), ("cfse", {"channels": (10,) * 4})):
    network = make_network(name, numerics=float32(), activation=THREE, **options)
    assert [layer.spec.reads for layer in network.layers] == [0, *(3,) * (len(network.layers) - 1)]
    network = make_network(name, numerics=float32(), **options)
    assert {layer.spec.reads for layer in network.layers} == {0}


def test_counts_are_what_the_pool_hands_on():
  for name, (module, _) in LAYERS.items():
    out = run(module, jax.random.key(3))
    np.testing.assert_array_equal(out.counts, out.out, err_msg=name)
    assert run(module).counts is None
  layer = ChannelwiseLayer(8, 2, pool=True, norm="gain_bias", activation=THREE)
  out = run(layer, jax.random.key(3))
  rows = np.asarray(out.act)[:, :6, :4].reshape(2, 3, 2, 2, 2, 8)
  np.testing.assert_array_equal(out.counts, rows.max(axis=(2, 4)))
  assert np.any(out.counts != out.out)
