"""The channel-wise network: the counts of its specification, and a layer against float64 numpy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.analysis.cost import count
from fflax.analysis.plain import plain_numerics
from fflax.core.numerics import float32
from fflax.networks import activations, describe, make_network
from fflax.networks.cfse import ChannelwiseLayer
from fflax.networks.layers import from_linen
from tests.networks import numpy_blocks as hand

CIFAR100 = {
  "channels": (60, 120, 240, 400, 800, 1600),
  "groups": (1, 20, 1, 20, 1, 100),
  "pool_after": (2, 4, 6),
}
FF_CNN = {"groups": (1, 1, 1, 1)}
SMALL = {"channels": (4, 8, 4), "groups": (1, 2, 1), "pool_after": (2,)}

# Options, image, sides of what the layers emit, parameters, multiply-accumulates of one image.
TABLES = {
  "mnist": (
    {}, (28, 28, 1), (28, 14, 14, 7), (240, 1_680, 173_520, 105_120),
    (141_120, 1_128_960, 33_868_800, 20_321_280),
  ),
  "cifar10": (
    {}, (32, 32, 3), (32, 16, 16, 8), (600, 1_680, 173_520, 105_120),
    (552_960, 1_474_560, 44_236_800, 26_542_080),
  ),
  "cifar100": (
    CIFAR100, (32, 32, 3), (32, 16, 16, 8, 8, 4),
    (1_800, 3_600, 259_920, 44_400, 2_882_400, 120_000),
    (1_658_880, 3_317_760, 66_355_200, 11_059_200, 184_320_000, 7_372_800),
  ),
  "ff_cnn": (
    FF_CNN, (32, 32, 3), (32, 16, 16, 8), (600, 14_640, 173_520, 1_038_240),
    (552_960, 14_745_600, 44_236_800, 265_420_800),
  ),
}  # fmt: skip
TOTALS = {  # parameters and multiply-accumulates, as the specification sums them
  "mnist": (280_560, 55_460_160),
  "cifar10": (280_920, 72_806_400),
  "cifar100": (3_312_120, 274_083_840),
  "ff_cnn": (1_227_000, 324_956_160),
}


@pytest.mark.parametrize("name", list(TABLES))
def test_tables(name):
  options, shape, sides, parameters, macs = TABLES[name]
  network = make_network("cfse", numerics=plain_numerics(float32()), **options)
  table = describe(network, shape)
  channels = options.get("channels", (20, 80, 240, 480))
  assert [row.output_shape for row in table] == [
    (side, side, c) for side, c in zip(sides, channels, strict=True)
  ]
  assert tuple(row.num_parameters for row in table) == parameters
  assert TOTALS[name] == (sum(parameters), sum(macs))

  x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  for layer, expected in zip(network.layers, macs, strict=True):
    variables = jax.eval_shape(layer.init, jax.random.key(0), x)
    forward = functools.partial(layer.apply, train=False)
    assert count(forward, *variables, x).total("macs") == expected
    out, _ = jax.eval_shape(forward, *variables, x)
    assert out.pre.shape == out.act.shape == (*x.shape[:-1], out.out.shape[-1])
    x = out.out


def test_goodness_is_a_mean_over_so_many_numbers():
  """Channels of a class times positions, for each layer."""
  for shape, sizes in (
    ((28, 28, 1), (1568, 1568, 4704, 2352)),
    ((32, 32, 3), (2048, 2048, 6144, 3072)),
  ):
    table = describe(make_network("cfse", numerics=float32()), shape)
    assert tuple(math.prod(row.output_shape) // 10 for row in table) == sizes


def grouped(x, w, groups):
  parts = zip(np.split(x, groups, -1), np.split(w, groups, -1), strict=True)
  return np.concatenate([hand.conv(*part) for part in parts], -1)


def pool(x):
  height, width = (n // 2 * 2 for n in x.shape[1:3])
  x = x[:, :height, :width]
  return x.reshape(x.shape[0], height // 2, 2, width // 2, 2, x.shape[-1]).max((2, 4))


def normalized(x, stats, train):
  mean, var = (x.mean((0, 1, 2)), x.var((0, 1, 2))) if train else (stats["mean"], stats["var"])
  return (x - mean) / np.sqrt(var + 1e-4)


def run(layer, x, train):
  """A layer with parameters and statistics away from their simple initial values."""
  params, stats = hand.moved(*jax.jit(layer.init)(jax.random.key(0), x))
  out, new = hand.jit(functools.partial(layer.apply, train=train))(params, stats, x)
  return hand.float64(params), hand.float64(stats), out, new


@pytest.mark.parametrize("pooled", [True, False])
def test_layer_is_numpy(pooled):
  """Convolution, activation, pool, batch norm, and the gradients; an odd last row is dropped.

  Tanh, because a difference quotient across the kink of ReLU is no derivative.
  """

  def by_hand(params, stats, x, train):
    v = grouped(x, params["conv"]["kernel"], 2) + params["conv"]["bias"]
    z = pool(np.tanh(v)) if pooled else np.tanh(v)
    y = normalized(z, stats["norm"], train) * params["norm"]["scale"] + params["norm"]["bias"]
    return v, y

  module = ChannelwiseLayer(6, groups=2, pool=pooled, activation=jnp.tanh)
  hand.check_block(module, by_hand, hand.image(3, 7, 6, 4), atol=1e-4)


def test_what_is_emitted_and_what_moves():
  """Activity before the pool, a signed output, and running averages of what was pooled."""
  layer = from_linen(ChannelwiseLayer(6, groups=2, pool=True), "layer")
  _, stats, out, new = run(layer, hand.image(3, 7, 6, 4), True)
  np.testing.assert_array_equal(out.act, np.maximum(out.pre, 0))
  assert (out.out < 0).any()  # nothing stands after the norm
  z = pool(np.asarray(out.act, np.float64))
  for name, value in {"mean": z.mean((0, 1, 2)), "var": z.var((0, 1, 2))}.items():
    np.testing.assert_allclose(
      new["norm"][name], 0.9 * stats["norm"][name] + 0.1 * value, rtol=1e-4
    )


def test_pre_norm_is_composed_by_hand():
  """Layers emit what is not normalised; the next normalises it, without a scale or a shift."""
  network = make_network("cfse", numerics=float32(), loss_input="pre_norm", **SMALL)
  x = np.asarray(hand.image(3, 6, 6, 2))
  for index, (layer, groups) in enumerate(zip(network.layers, SMALL["groups"], strict=True)):
    params, stats, out, new = run(layer, jnp.asarray(x), True)
    assert set(params) == {"conv"}
    assert set(stats) == set(new) == ({"input_norm"} if index else set())
    inside = normalized(np.asarray(x, np.float64), None, True) if index else x
    z = np.maximum(grouped(inside, params["conv"]["kernel"], groups) + params["conv"]["bias"], 0)
    z = pool(z) if index + 1 in SMALL["pool_after"] else z
    np.testing.assert_allclose(out.out, z, atol=1e-4)
    x = np.asarray(out.out)


def test_no_norm():
  """Either way of handing on is then the same; no statistics are left."""
  x = hand.image(2, 4, 4, 2)
  emitted = []
  for loss_input in ("post_norm", "pre_norm"):
    h = x
    for layer in make_network(
      "cfse", numerics=float32(), norm="none", loss_input=loss_input, **SMALL
    ).layers:
      params, stats = jax.jit(layer.init)(jax.random.key(0), h)
      assert (set(params), stats) == ({"conv"}, {})
      h = hand.jit(functools.partial(layer.apply, train=True))(params, stats, h)[0].out
    emitted.append(h)
  np.testing.assert_array_equal(*emitted)
  assert (emitted[0] >= 0).all() and emitted[0].max() > 0


def test_classes_meet_in_ungrouped_layers_only():
  """Which class of the input a class of the output reads, through convolution, pool and norm."""
  x, classes = hand.image(2, 4, 4, 6), 3
  for groups in (classes, 1):
    layer = from_linen(ChannelwiseLayer(9, groups=groups, pool=True), "layer")
    variables = jax.jit(layer.init)(jax.random.key(0), x)

    def by_class(x, layer=layer, variables=variables):
      out = layer.apply(*variables, x, train=True)[0].out
      return jnp.mean(out.reshape(2, 2, 2, classes, 3) ** 3, (0, 1, 2, 4))

    jacobian = np.abs(hand.jit(jax.jacrev(by_class))(x)).reshape(classes, -1, classes, 2)
    meets = jacobian.sum((1, 3)) > 0
    np.testing.assert_array_equal(meets, np.eye(3) if groups > 1 else np.ones((3, 3)))


def test_biases_begin_with_the_fan_in_of_their_group():
  """PyTorch's default: U(-1/sqrt(f), 1/sqrt(f)) with f = 9 * inputs / groups, here 18."""
  network = make_network("cfse", numerics=float32(), kernel_init="torch_linear")
  x = jnp.zeros((1, 8, 8, 20))
  params, _ = jax.jit(network.layers[1].init)(jax.random.key(0), x)
  for name in ("kernel", "bias"):
    largest = np.abs(params["conv"][name]).max()
    assert 0.9 * 18**-0.5 < largest <= 18**-0.5


def test_arguments_reach_the_layers():
  network = make_network("cfse", numerics=float32(), activation="tanh", **SMALL)
  fields = [
    (s.features, s.groups, s.pool, s.norm, s.input_norm)
    for s in (layer.spec for layer in network.layers)
  ]
  assert fields == [
    (4, 1, False, "batch", "none"), (8, 2, True, "batch", "none"), (4, 1, False, "batch", "none"),
  ]  # fmt: skip
  assert network.layers[0].spec.activation is activations.ACTIVATIONS["tanh"]


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"groups": (1, 10)}, "both must have one entry for each layer"),
    ({"channels": (20, 81, 240, 480)}, "the groups of layer 2 must divide the channels"),
    ({"channels": (25, 80, 240, 480)}, "the groups of layer 2 must divide the channels"),
    ({"groups": (1, 10, 1, 7)}, "the groups of layer 4 must divide the channels"),
    ({"groups": (3, 10, 1, 10)}, "the groups of layer 1 must divide the channels"),
    ({"groups": (0, 10, 1, 10)}, r"groups=\(0, 10, 1, 10\), but it must be a list of positive"),
    ({"channels": ()}, r"channels=\(\), but it must be a list of positive"),
    ({"pool_after": (2, 5)}, "layers are numbered from 1 to 4"),
    ({"norm": "layer"}, "norm='layer'; allowed: batch, batch_frozen, gain, bias, gain_bias, none"),
    ({"loss_input": "pre_bn"}, "loss_input='pre_bn'; allowed: post_norm, pre_norm"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    make_network("cfse", numerics=float32(), **options)


@pytest.mark.parametrize(
  ("options", "shape", "message"),
  [
    ({}, (3, 8, 1), r"\(1, 1, 4, 240\) is too small for 2x2 pooling"),
    ({"groups": (2, 10, 1, 10)}, (8, 8, 3), "cannot be divided into 2 groups"),
    ({}, (64,), r"takes \[B, H, W, C\]"),
  ],
)
def test_bad_images(options, shape, message):
  """Refused when the network is described, before any data is loaded."""
  with pytest.raises(ValueError, match=message):
    describe(make_network("cfse", numerics=float32(), **options), shape)


def test_lists_and_no_pooling_are_options():
  """Configurations hold lists."""
  network = make_network("cfse", numerics=float32(), channels=[4, 8], groups=[1, 2], pool_after=[])
  assert [row.output_shape for row in describe(network, (1, 1, 3))] == [(1, 1, 4), (1, 1, 8)]
