"""MobileNet-V2 and EfficientNet-B0: the specification's tables, the block against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.numerics import bfloat16, float32
from fflax.networks.mobilenet import InvertedResidual
from fflax.networks.registry import make_network
from tests.networks import numpy_blocks as hand
from tests.networks.resnet_test import head_parameters

# (number of blocks, output channels, side of the map after a cifar / imagenet stem, parameters)
MOBILENET_V2 = [
  (1, 32, 32, 16, 928),
  (1, 16, 32, 16, 896),
  (1, 24, 32, 8, 5_136),
  (1, 24, 32, 8, 8_832),
  (1, 32, 16, 4, 10_000),
  (2, 32, 16, 4, 14_848),
  (1, 64, 8, 2, 21_056),
  (3, 64, 8, 2, 54_272),
  (1, 96, 8, 2, 66_624),
  (2, 96, 8, 2, 118_272),
  (1, 160, 4, 1, 155_264),
  (2, 160, 4, 1, 320_000),
  (1, 320, 4, 1, 473_920),
  (1, 1280, 4, 1, 412_160),
]
EFFICIENTNET_B0 = [
  (1, 32, 32, 16, 928),
  (1, 16, 32, 16, 1_448),
  (1, 24, 16, 8, 6_004),
  (1, 24, 16, 8, 10_710),
  (1, 40, 8, 4, 15_350),
  (1, 40, 8, 4, 31_290),
  (1, 80, 4, 2, 37_130),
  (2, 80, 4, 2, 102_900),
  (1, 112, 4, 2, 126_004),
  (2, 112, 4, 2, 208_572),
  (1, 192, 2, 1, 262_492),
  (3, 192, 2, 1, 587_952),
  (1, 320, 2, 1, 717_232),
  (1, 1280, 2, 1, 412_160),
]


@pytest.mark.parametrize("stem", ["cifar", "imagenet"])
@pytest.mark.parametrize(
  ("name", "want", "total"),
  [("mobilenet_v2", MOBILENET_V2, 2_236_682), ("efficientnet_b0", EFFICIENTNET_B0, 4_020_358)],
)
def test_table(name, want, total, stem):
  """Every row of the specification, for 32x32x3 images and ten classes."""
  rows = hand.table(name, (32, 32, 3), float32(), stem=stem)
  expected = []
  for repeats, channels, cifar, imagenet, count in want:
    side = cifar if stem == "cifar" else imagenet
    expected += [((side, side, channels), count)] * repeats
  assert [row[1:] for row in rows] == expected
  assert rows[0][0] == "stem" and rows[-1][0] == "top" and rows[-2][0] == f"block_{len(rows) - 2}"
  assert head_parameters(rows[-1][1]) == 12_810
  assert sum(row[2] for row in rows) + 12_810 == total


def test_stages_are_sums_of_blocks():
  rows = hand.table("mobilenet_v2", (32, 32, 3), float32(), granularity="stage")
  counts = [row[2] for row in rows]
  assert counts[2] == 5_136 + 8_832 and len(counts) == 9 and sum(counts) == 2_236_682 - 12_810


def test_carried_label_maps_are_read_but_not_expanded():
  rows = hand.table("mobilenet_v2", (32, 32, 13), float32(), label_maps=10)
  # Stem; 42 channels through the block without expansion; ten more inputs of the other expansions.
  assert [row[2] for row in rows[:4]] == [
    928 + 9 * 10 * 32, 9 * 42 + 2 * 42 + 42 * 16 + 32, 5_136 + 10 * 96, 8_832 + 10 * 144,
  ]  # fmt: skip
  assert rows[-1][2] == 412_160 + 10 * 1280


@pytest.mark.parametrize(
  "options",
  [
    {"features": 4, "expansion": 2},
    {"features": 4, "expansion": 1, "squeeze_excite": True},
    {"features": 3, "expansion": 2, "squeeze_excite": True, "label_maps": 1},
    {"features": 5, "expansion": 2, "squeeze_excite": True, "kernel_size": 5, "strides": 2},
  ],
)
def test_block(options):
  """Expansion, depthwise, gate, linear projection, skip where the shape stays, and the gradient."""

  def by_hand(p, s, x, train):
    h = x
    if options["expansion"] != 1:
      h = np.tanh(hand.conv_norm(p["expand"], s["expand"], h, train))
    strides = options.get("strides", 1)
    h = np.tanh(hand.conv_norm(p["depthwise"], s["depthwise"], h, train, strides))
    if options.get("squeeze_excite"):
      gate = np.tanh(h.mean((1, 2)) @ p["squeeze"]["kernel"] + p["squeeze"]["bias"])
      gate = gate @ p["excite"]["kernel"] + p["excite"]["bias"]
      h = h / (1 + np.exp(-gate))[:, None, None]
    h = hand.conv_norm(p["project"], s["project"], h, train)
    seen = x[..., : 4 - options.get("label_maps", 0)]
    out = h + seen if options["features"] == seen.shape[-1] else h
    return out, out

  hand.check_block(
    InvertedResidual(activation=jnp.tanh, **options), by_hand, hand.image(3, 6, 5, 4)
  )


@pytest.mark.parametrize(
  ("name", "activation", "numerics"),
  [
    ("mobilenet_v2", "relu6", bfloat16()),
    pytest.param("efficientnet_b0", "silu", float32(), marks=pytest.mark.slow),
  ],
  ids=["mobilenet_v2", "efficientnet_b0"],
)
def test_tiny_network(name, activation, numerics):
  network = make_network(
    name, numerics=numerics, activation=activation, width=1 / 8, stem="imagenet"
  )
  # All kinds of blocks are among the first; the others would only be compiled.
  layers = (*network.layers[:5], network.layers[-1])
  hand.check_network(network._replace(layers=layers), hand.image(4, 16, 16, 3))


def test_equal_blocks_have_equal_specs():
  """The spec is of a module, whose input's width it does not know: first blocks differ by stride
  or are told apart by the shapes of their inputs."""
  specs = [layer.spec for layer in make_network("mobilenet_v2", numerics=bfloat16()).layers]
  for run in (specs[5:7], specs[8:11], specs[12:14], specs[15:17]):
    assert len(set(run)) == 1
