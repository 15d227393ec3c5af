"""ResNet-18: the specification's table, its block against numpy, a tiny network end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.numerics import bfloat16, float32
from fflax.methods.backprop import BackpropConfig, backprop
from fflax.networks.conv_blocks import ConvNorm, Stage
from fflax.networks.registry import make_network
from fflax.networks.resnet import BasicBlock
from fflax.types import LayerOut, Place
from tests.networks import numpy_blocks as hand

COUNTS = [73_984, 73_984, 230_144, 295_424, 919_040, 1_180_672, 3_673_088, 4_720_640]


def head_parameters(shape: tuple[int, ...]) -> int:
  """What the backprop control puts on the last layer's output of that shape."""
  out = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
  method = backprop(BackpropConfig(), 10)
  params, _ = jax.eval_shape(
    lambda key, x: method.init_layer(key, LayerOut(x, x, x), Place(0, 1)), jax.random.key(0), out
  )
  return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize(
  ("stem", "first", "sides", "total"),
  [
    ("cifar", 1_856, [32, 32, 32, 16, 16, 8, 8, 4, 4], 11_173_962),
    ("imagenet", 9_536, [8, 8, 8, 4, 4, 2, 2, 1, 1], 11_181_642),
  ],
)
def test_table(stem, first, sides, total):
  """Every row of the specification, for 32x32x3 images and ten classes."""
  rows = hand.table("resnet18", (32, 32, 3), float32(), stem=stem)
  channels = [64, 64, 64, 128, 128, 256, 256, 512, 512]
  assert [row[0] for row in rows] == ["stem", *(f"block_{n}" for n in range(1, 9))]
  assert [row[1] for row in rows] == [(s, s, c) for s, c in zip(sides, channels, strict=True)]
  assert [row[2] for row in rows] == [first, *COUNTS]
  assert head_parameters(rows[-1][1]) == 5_130
  assert sum(row[2] for row in rows) + 5_130 == total


def test_stages_are_sums_of_blocks():
  rows = hand.table("resnet18", (32, 32, 3), float32(), granularity="stage")
  assert [row[2] for row in rows] == [1_856, 147_968, 525_568, 2_099_712, 8_393_728]
  assert [row[0] for row in rows] == ["stem", *(f"stage_{n}" for n in range(1, 5))]


def test_label_maps_cost_the_stem_ten_channels():
  assert hand.table("resnet18", (32, 32, 13), float32())[0][2] == 1_856 + 5_760


def test_carried_label_maps_cost_ten_channels_of_every_block():
  rows = hand.table("resnet18", (32, 32, 13), float32(), label_maps=10)
  outs = [64, 64, 64, 128, 128, 256, 256, 512, 512]
  plain = [1_856, *COUNTS]
  assert [row[2] for row in rows] == [n + 90 * f for n, f in zip(plain, outs, strict=True)]
  stages = hand.table("resnet18", (32, 32, 13), float32(), label_maps=10, granularity="stage")
  assert sum(row[2] for row in stages) == sum(row[2] for row in rows)


@pytest.mark.parametrize(
  ("features", "strides", "maps"), [(4, 1, 0), (6, 1, 0), (6, 2, 0), (3, 1, 1)]
)
def test_block(features, strides, maps):
  """Both branches, the sum before the nonlinearity, every batch norm, and the gradient."""

  def by_hand(p, s, x, train):
    h = np.tanh(hand.conv_norm(p["first"], s["first"], x, train, strides))
    h = hand.conv_norm(p["second"], s["second"], h, train)
    x = x[..., : 4 - maps]
    assert ("shortcut" in p) == ((features, strides) != (4 - maps, 1))
    if "shortcut" in p:
      x = hand.conv_norm(p["shortcut"], s["shortcut"], x, train, strides)
    return h + x, np.tanh(h + x)

  block = BasicBlock(features, jnp.tanh, strides, label_maps=maps)
  hand.check_block(block, by_hand, hand.image(3, 6, 5, 4))


@pytest.mark.parametrize(
  ("numerics", "layers"),
  [(float32(), 4), pytest.param(bfloat16(), 9, marks=pytest.mark.slow)],
  ids=["float32", "bfloat16"],
)
def test_tiny_network(numerics, layers):
  network = make_network("resnet18", numerics=numerics, width=1 / 16, stem="imagenet")
  assert len(network.layers) == 9
  network = network._replace(layers=network.layers[:layers])  # blocks come in two kinds
  hand.check_network(network, hand.image(4, 16, 16, 3))


def test_numerics_reach_every_product():
  """Rounding operands moves what each convolution gives; a forgotten one stays exact."""
  x = hand.image(2, 5, 5, 4)
  for module in (ConvNorm(3), ConvNorm(3, 1), ConvNorm(3, 1, 2), ConvNorm(4, depthwise=True)):
    rounded = module.clone(numerics=bfloat16())
    variables = module.init(jax.random.key(0), x)
    a, b = (np.asarray(m.apply(variables, x)) for m in (module, rounded))
    assert (a != b).mean() > 0.9
    np.testing.assert_allclose(a, b, atol=0.05)


def test_equal_blocks_have_equal_specs():
  """Only the second block of 64 channels repeats the first; a stage is compared by its blocks."""
  specs = [layer.spec for layer in make_network("resnet18", numerics=bfloat16()).layers]
  assert specs[1] == specs[2] and len(set(specs)) == 8
  block = BasicBlock(4)
  assert Stage((block, block)) == Stage((BasicBlock(4), BasicBlock(4)))
  assert Stage((block, block)) != Stage((block, BasicBlock(5)))


def test_without_batch_norm_there_are_biases_and_no_statistics():
  network = make_network("resnet18", numerics=float32(), width=1 / 32, batch_norm=False)
  x = jax.ShapeDtypeStruct((1, 16, 16, 3), jnp.float32)
  params, stats = jax.eval_shape(network.layers[0].init, jax.random.key(0), x)
  assert set(params["conv_norm"]["conv"]) == {"kernel", "bias"} and stats == {}


def test_a_stage_computes_what_its_blocks_compute():
  x = hand.image(2, 6, 6, 3)
  blocks = (BasicBlock(4, strides=2), BasicBlock(4))
  stage = Stage(blocks)
  variables = jax.jit(stage.init)(jax.random.key(0), x)

  def one_by_one(x):
    for n, block in enumerate(blocks):
      own = {kind: tree[f"blocks_{n}"] for kind, tree in variables.items()}
      out = block.apply(own, x)
      x = out.out
    return out

  whole, parts = jax.jit(lambda x: (stage.apply(variables, x), one_by_one(x)))(x)
  np.testing.assert_allclose(whole.pre, parts.pre, atol=1e-6)
  np.testing.assert_allclose(whole.out, parts.out, atol=1e-6)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"stem": "tiny"}, "stem='tiny'; allowed: cifar, imagenet"),
    ({"granularity": "layer"}, "granularity='layer'; allowed: block, stage"),
    ({"width": 0}, "width=0, but width must be a positive number"),
    ({"norm_groups": 0}, "norm_groups=0, but it must be an integer of at least 1"),
    ({"norm_groups": 2, "batch_norm": False}, "norm_groups=2, but without batch_norm there is no"),
    ({"label_maps": -1}, "label_maps=-1, but it must be 0 or the number of classes"),
  ],
)
def test_bad_options(options, message):
  with pytest.raises(ValueError, match=message):
    make_network("resnet18", numerics=float32(), **options)


def test_vectors_are_refused():
  for name in ("resnet18", "mobilenet_v2"):
    with pytest.raises(ValueError, match=r"but this layer takes \[B, H, W, C\]"):
      hand.table(name, (64,), float32())
