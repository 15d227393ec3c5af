"""Counts of p-bits in int8: handed on apart from their norm, multiplied exactly, by integers alone.

Oracles: integer convolutions in numpy int64, and the same network in float32.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.analysis.cost import count
from fflax.analysis.plain import plain_numerics
from fflax.core.absorption import AffineCounts, dense, handed_on
from fflax.core.int8 import int8
from fflax.core.int8_config import INT8_PRESETS, Int8Config
from fflax.core.numerics import float32
from fflax.core.pbit_config import PbitConfig
from fflax.core.readouts import softmax_head
from fflax.methods.registry import METHODS, make_method
from fflax.networks.activations import Pbits
from fflax.networks.cfse import ChannelwiseLayer
from fflax.networks.layers import from_linen
from fflax.networks.registry import make_network
from fflax.training.step import make_trainer
from fflax.types import Batch

COUNTS = int8(INT8_PRESETS["int8_counts"], name="int8_counts")
SMALL = {"channels": (4, 8, 4), "groups": (1, 2, 1), "pool_after": (2,)}
X = jax.random.normal(jax.random.key(0), (3, 6, 5, 2))
KEYS = jax.random.split(jax.random.key(1), 3)


def network(numerics, **options):
  activation = Pbits(PbitConfig(3))
  return make_network("cfse", numerics=numerics, activation=activation, **{**SMALL, **options})


@functools.cache
def states(**options):
  """Parameters and statistics of each layer, away from where they begin."""
  layers = network(float32(), **options).layers

  @jax.jit
  def made():
    found, x = [], X
    for layer in layers:
      move = lambda a: a + 0.3 * jnp.sin(jnp.arange(a.size)).reshape(a.shape) ** 2  # noqa: E731
      found.append(jax.tree.map(move, layer.init(KEYS[0], x)))
      x = layer.apply(*found[-1], x, train=False, key=KEYS[1])[0].out
    return found

  return made()


@functools.partial(jax.jit, static_argnames=("layer", "train"))
def apply(layer, params, stats, x, key=None, train=True):
  return layer.apply(params, stats, x, train=train, key=key)[0]


def conv64(x, w, groups):
  """Zero-padded 3x3 convolution of integers `[N, H, W, C]`."""
  (_, height, width, _), inputs, outputs = x.shape, w.shape[2], w.shape[3] // groups
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  taps = [(i, j) for i in range(3) for j in range(3)]
  return np.concatenate(
    [
      sum(
        x[:, i : i + height, j : j + width, g * inputs : (g + 1) * inputs]
        @ w[i, j][:, g * outputs : (g + 1) * outputs]
        for i, j in taps
      )
      for g in range(groups)
    ],
    axis=-1,
  )


@pytest.mark.parametrize(
  ("options", "train"),
  [({}, True), ({}, False), ({"loss_input": "pre_norm"}, True), ({"norm": "gain_bias"}, False)],
)
def test_a_layer_multiplies_the_integers_that_were_drawn(options, train):
  """`pre = s * (counts, int64) + bias map + bias`: the float parts alone are rounded."""
  layers, x = network(COUNTS, **options).layers, X
  for i, (layer, (params, stats)) in enumerate(zip(layers, states(**options), strict=True)):
    out = apply(layer, params, stats, x, KEYS[i], train)
    if i:
      z = np.asarray(x.counts).astype(np.int64)
      assert np.array_equal(z, x.counts) and 0 <= z.min() and z.max() == 3
      scale, shift = np.asarray(x.scale[0]), np.asarray(x.shift[0])
      if "loss_input" in options:  # the reader's own norm
        s = stats["input_norm"]
        mean, var = (z.mean((0, 1, 2)), z.var((0, 1, 2))) if train else (s["mean"], s["var"])
        scale, shift = 1 / np.sqrt(var + 1e-4), -mean / np.sqrt(var + 1e-4)
      groups = SMALL["groups"][i]
      w = np.asarray(params["conv"]["kernel"], np.float64)
      inside, outside = w.shape[2:]
      own = np.repeat(np.reshape(scale, (groups, inside)).T, outside // groups, axis=1)
      absorbed = w * own
      s = np.abs(absorbed).max((0, 1, 2)) / 127
      q = np.rint(absorbed / s).astype(np.int64)
      plane = np.broadcast_to(np.asarray(shift, np.float64), (1, *z.shape[1:]))
      want = (
        s * conv64(z, q, groups) + conv64(plane, w, groups) + np.asarray(params["conv"]["bias"])
      )
      # A weight on the edge between two integers may fall to either side in float32.
      wrong = np.abs(np.asarray(out.pre) - want) > 1e-4 * np.abs(want).max()
      assert wrong.any((0, 1, 2)).sum() <= 1 and not wrong.all((0, 1, 2)).any(), (i, wrong.sum())
    np.testing.assert_allclose(dense(handed_on(out)), out.out, rtol=1e-5, atol=1e-5)
    x = handed_on(out)


def test_exact_integers():
  """Scale and shift that float32 has exactly: no tolerance at all."""
  layer = from_linen(ChannelwiseLayer(4, 2, numerics=COUNTS, activation=Pbits(), reads=7), "a")
  z = np.random.default_rng(0).integers(0, 8, (2, 5, 4, 6))
  w = np.random.default_rng(1).integers(-127, 128, (3, 3, 3, 4))
  w[0, 0, 0] = 127
  params, stats = jax.jit(layer.init)(KEYS[0], jnp.asarray(z, jnp.float32))
  params["conv"] = {"kernel": jnp.asarray(w, jnp.float32) / 4, "bias": jnp.zeros(4)}
  rows = jnp.ones((2, 6))
  x = AffineCounts(jnp.asarray(z, jnp.float32), 2 * rows, 0 * rows)
  pre = apply(layer, params, stats, x, KEYS[0]).pre
  np.testing.assert_array_equal(2 * pre, conv64(z, w, 2))
  shifted = dataclasses.replace(x, shift=rows)
  border = apply(layer, params, stats, shifted, KEYS[0]).pre - pre
  np.testing.assert_array_equal(4 * border[0], conv64(np.ones_like(z), w, 2)[0])


def trainer(numerics, method="binary_stochastic", **changes):
  return make_trainer(
    network(numerics),
    make_method(method, METHODS[method].config(), 2, numerics),
    [softmax_head(2, -1)],
    image_shape=X.shape[1:],
    optimizer=optax.sgd(1.0),
    **changes,
  )


def test_gradients_are_those_of_float32_but_for_rounding():
  """Of a reader's kernel and bias, through the weights that absorbed the norm."""
  rng = np.random.default_rng(2)
  z = jnp.asarray(rng.integers(0, 8, (4, 5, 4, 6)), jnp.float32)
  scale, shift = (jnp.asarray(np.tile(rng.uniform(-1, 1, 6), (4, 1)), jnp.float32) for _ in "ab")
  x, g = AffineCounts(z, scale, shift), jnp.asarray(rng.normal(size=(4, 5, 4, 4)), jnp.float32)
  layers = [ChannelwiseLayer(4, 2, numerics=n, norm="none") for n in (COUNTS, float32())]

  @jax.jit
  def gradients():
    params, stats = from_linen(layers[1], "a").init(KEYS[0], z)

    def loss(params, layer, x):
      return jnp.sum(
        g * from_linen(layer, "a").apply(params, stats, x, train=True, key=KEYS[0])[0].pre
      )

    return [
      jax.grad(loss)(params, layer, y) for layer, y in zip(layers, (x, dense(x)), strict=True)
    ]

  ours, theirs = gradients()
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())


def test_every_product_above_the_first_layer_reads_counts_in_int8():
  """Forward and weight gradient, and no product besides, but for the bias maps of one image."""
  run, size = trainer(plain_numerics(COUNTS)), 16
  batch = Batch(jnp.zeros((size, *X.shape[1:])), jnp.zeros(size, jnp.int32))
  state = jax.eval_shape(run.init, jax.random.key(0), batch)
  found = count(run.step, state, batch)
  second = 9 * 2 * 8 * 30 + 9 * 8 * 4 * 6  # layers 2 and 3, for one image
  maps = 2 * second  # their bias maps, and the gradient of those
  assert found.total("macs", kind="count_int8") == 2 * size * second
  first = 9 * 2 * 4 * 30
  assert found.total("macs", kind="int8") == 2 * size * first
  head = 2 * size * 4 * 6 * 2  # of counts as well, in float32
  assert found.total("macs") == 2 * size * (first + second) + maps + head


def test_real_answers_are_handed_on_as_one_array():
  """The mean field is no count, and other numerics do not ask."""
  first = states()[0]
  layer = network(COUNTS).layers[0]
  out = apply(layer, *first, X, train=False)
  assert out.affine is None and handed_on(out) is out.out
  assert apply(network(float32()).layers[0], *first, X, KEYS[0]).affine is None


def test_refusals():
  with pytest.raises(ValueError, match="'ui8' is not there for activations 'counts'"):
    Int8Config(gradient="ui8", activations="counts").check()
  with pytest.raises(ValueError, match="unknown activations 'bits' of int8"):
    Int8Config(activations="bits").check()
