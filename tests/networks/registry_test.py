"""Networks by name: the counts and shapes that the papers' specifications state."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fflax.core.numerics import bfloat16, float32
from fflax.networks import NETWORKS, describe, get_initializer, make_network, network_options

SHAPES = {
  "mlp": (8, 8, 1),
  "small_cnn": (8, 8, 1),
  "hff_cnn": (8, 8, 1),
  "vgg8": (16, 16, 3),
  "vgg11": (16, 16, 3),
  "local_mlp": (28, 28, 1),
  "resnet18": (8, 8, 3),
  "mobilenet_v2": (8, 8, 3),
  "efficientnet_b0": (8, 8, 3),
  "vit": (8, 8, 3),
  "cfse": (8, 8, 1),
}
# Too wide or too deep to run here; their layers are small_cnn's, or their own tests run them.
ELSEWHERE = ("vgg8", "vgg11", "resnet18", "mobilenet_v2", "efficientnet_b0")
SMALL = {
  "mlp": {"sizes": (16, 16, 16)},
  "hff_cnn": {"width": 1 / 32},
  "local_mlp": {"features": (4, 5, 6)},
  "vit": {"features": 6, "depth": 2},
  "cfse": {"channels": (4, 8), "groups": (1, 2), "pool_after": (2,)},
}


def rows(name, shape, **options):
  return [tuple(row) for row in describe(make_network(name, numerics=float32(), **options), shape)]


def test_mlp_table():
  """784-3x1000; the MACs of a step are counted from these shapes."""
  assert rows("mlp", (28, 28, 1)) == [
    ("dense_1", (1000,), 785_000),
    ("dense_2", (1000,), 1_001_000),
    ("dense_3", (1000,), 1_001_000),
  ]
  assert sum(row[2] for row in rows("mlp", (784,), sizes=(1000, 1000, 10))) == 1_796_010
  without = rows("mlp", (784,), use_bias=False)
  assert sum(row[2] for row in without) == 2_784_000


def test_vgg8_table():
  table = rows("vgg8", (32, 32, 3))
  counts = [3_584, 295_168, 590_080, 1_180_160, 2_359_808, 2_359_808, 2_359_808]
  assert [row[2] for row in table] == counts
  assert sum(counts) == 9_148_416
  sides = [32, 16, 16, 8, 4, 2, 2]
  channels = [128, 256, 256, 512, 512, 512, 512]
  assert [row[1] for row in table] == [(s, s, c) for s, c in zip(sides, channels, strict=True)]
  assert rows("vgg8", (28, 28, 1))[0][2] == 1_280
  assert rows("vgg8", (64, 64, 3))[-1][1] == (4, 4, 512)


def test_vgg11_table():
  table = rows("vgg11", (32, 32, 3))
  counts = [1_792, 73_856, 295_168, 590_080, 1_180_160, *[2_359_808] * 3]
  assert [row[2] for row in table] == counts
  assert sum(counts) == 9_220_480
  assert [row[1][0] for row in table] == [16, 8, 8, 4, 4, 2, 2, 2]
  assert {layer.spec.pool for layer in make_network("vgg11", numerics=float32()).layers} == {
    None,
    "avg",
  }


def test_vgg8_goodness_maps():
  """Goodness is read before pooling: the specification's floats per image, 632,832 in all."""
  x, total = jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.float32), 0
  for layer in make_network("vgg8", numerics=float32()).layers:

    def forward(x, layer=layer):
      return layer.apply(*layer.init(jax.random.key(0), x), x, train=False)[0]

    out = jax.eval_shape(forward, x)
    total += out.act.size
    x = out.out
  assert total == 632_832


def test_vgg8_pools_by_average():
  network = make_network("vgg8", numerics=float32())
  assert [layer.spec.pool for layer in network.layers] == [
    None, "avg", None, "avg", "avg", "avg", None,
  ]  # fmt: skip


def test_local_mlp_table():
  assert rows("local_mlp", (28, 28, 1)) == [
    ("local_1", (4, 4, 128), 206_848),
    ("local_2", (3, 3, 220), 1_015_740),
    ("local_3", (2, 2, 512), 1_804_288),
  ]


def test_hff_cnn_table():
  """Batch norm adds a scale and a shift, and takes the convolution's bias away."""
  table = rows("hff_cnn", (32, 32, 3))
  channels = [3, 128, 256, 256, 512, 512, 512]
  pairs = list(itertools.pairwise(channels))
  assert [row[2] for row in table] == [9 * a * b + 2 * b for a, b in pairs]
  sides = [32, 16, 16, 8, 8, 4]
  assert [row[1] for row in table] == [(s, s, c) for s, c in zip(sides, channels[1:], strict=True)]
  specs = [layer.spec for layer in make_network("hff_cnn", numerics=float32()).layers]
  assert [s.pool for s in specs] == [None, "max"] * 3
  narrow = rows("hff_cnn", (8, 8, 1), width=0.25, batch_norm=False)
  assert [row[1][-1] for row in narrow] == [32, 64, 64, 128, 128, 128]
  assert [row[2] for row in narrow][:2] == [9 * 32 + 32, 9 * 32 * 64 + 64]


@pytest.mark.parametrize(("side", "last"), [(8, 2), (28, 7), (32, 8)])
def test_small_cnn_table(side, last):
  assert [row[1] for row in rows("small_cnn", (side, side, 1))][-1] == (last, last, 64)


@settings(max_examples=8)
@given(
  sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
  shape=st.lists(st.integers(1, 6), min_size=1, max_size=3),
)
def test_mlp_shapes(sizes, shape):
  """Any sizes, as a list too (configurations hold lists), on any shape of example."""
  table = rows("mlp", shape, sizes=sizes)
  fans = [int(np.prod(shape)), *sizes]
  assert [row[1] for row in table] == [(s,) for s in sizes]
  assert [row[2] for row in table] == [(a + 1) * b for a, b in itertools.pairwise(fans)]


@pytest.mark.parametrize("numerics", [float32(), bfloat16()], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_every_network_runs_as_described(name, numerics):
  """Finite float32 outputs of the described shape, float32 parameters, unique names."""
  network = make_network(name, numerics=numerics, **SMALL.get(name, {}))
  table = describe(network, SHAPES[name])
  assert network.name == name
  assert len({layer.name for layer in network.layers}) == len(network.layers)
  if name in ELSEWHERE:
    return
  x = jax.random.normal(jax.random.key(1), (3, *SHAPES[name]))
  for layer, row in zip(network.layers, table, strict=True):
    params, stats = jax.jit(layer.init)(jax.random.key(0), x)
    out, _ = jax.jit(functools.partial(layer.apply, train=True))(params, stats, x)
    x = out.out
    assert x.shape == (3, *row.output_shape)
    assert {a.dtype for a in jax.tree.leaves((params, out))} == {jnp.dtype("float32")}
    assert jnp.isfinite(x).all() and x.std() > 0
    assert sum(a.size for a in jax.tree.leaves(params)) == row.num_parameters


@pytest.mark.parametrize("make_numerics", [float32, bfloat16])
@pytest.mark.parametrize("name", list(NETWORKS))
def test_equal_calls_give_equal_specs(name, make_numerics):
  """Otherwise nothing is ever stacked, and a resumed run is another network."""
  a, b = (
    make_network(
      name, numerics=make_numerics(), activation="leaky_relu", kernel_init="torch_linear"
    )
    for _ in range(2)
  )
  assert [layer.spec for layer in a.layers] == [layer.spec for layer in b.layers]
  assert [hash(layer.spec) for layer in a.layers] == [hash(layer.spec) for layer in b.layers]


def test_equal_layers_are_stackable():
  specs = [layer.spec for layer in make_network("mlp", numerics=bfloat16()).layers]
  assert len(set(specs)) == 1
  assert len({layer.spec for layer in make_network("vgg8", numerics=float32()).layers}) == 5


def test_arguments_reach_the_layers():
  """A preset whose activation or initialiser were dropped would still train."""
  network = make_network(
    "mlp",
    numerics=bfloat16(),
    activation=jnp.tanh,
    kernel_init=get_initializer("he_normal"),
    sizes=(4,),
  )
  spec = network.layers[0].spec
  assert spec.activation is jnp.tanh
  assert spec.initializer == get_initializer("he_normal")
  assert spec.numerics == bfloat16()
  for name in NETWORKS:
    for layer in make_network(name, numerics=bfloat16(), activation=jnp.tanh).layers:
      assert layer.spec.numerics == bfloat16()
      if layer.name != "embedding":  # which is linear
        assert layer.spec.activation is jnp.tanh


def test_network_options():
  assert network_options("mlp") == {"sizes": (1000, 1000, 1000), "use_bias": True}
  with pytest.raises(ValueError, match="Unknown network 'x'"):
    network_options("x")


@pytest.mark.parametrize(
  ("name", "arguments", "message"),
  [
    (
      "resnet",
      {},
      "Unknown network 'resnet'; allowed: mlp, small_cnn, hff_cnn, vgg8, vgg11, local_mlp",
    ),
    ("mlp", {"depth": 3}, "Unknown option 'depth' of network 'mlp'; allowed: sizes, use_bias"),
    ("mlp", {"initializer": "x"}, "Unknown option 'initializer'"),
    ("mlp", {"activation": "x"}, "Unknown activation 'x'; allowed: relu"),
    ("mlp", {"kernel_init": "x"}, "Unknown initializer 'x'; allowed: lecun_normal"),
    ("mlp", {"sizes": ()}, r"sizes=\(\), but it must be a list of positive integers"),
    ("mlp", {"sizes": 5}, "sizes=5"),
    ("mlp", {"sizes": "12"}, "sizes='12'"),
    ("mlp", {"sizes": (4, 0)}, r"sizes=\(4, 0\)"),
    ("mlp", {"sizes": (4, 2.0)}, r"sizes=\(4, 2.0\)"),
    ("mlp", {"sizes": (True,)}, r"sizes=\(True,\)"),
    ("small_cnn", {"channels": [-1]}, r"channels=\[-1\]"),
    ("small_cnn", {"pool_after": (4,)}, "layers are numbered from 1 to 3"),
    ("small_cnn", {"pool_after": 2}, "pool_after=2"),
    ("small_cnn", {"pool": "median"}, "pool='median'; allowed: max, avg"),
    ("hff_cnn", {"width": 0}, "width=0"),
    ("hff_cnn", {"width": "wide"}, "width='wide'"),
    ("local_mlp", {"fields": (2, 2)}, "one entry for each layer"),
  ],
)
def test_bad_arguments(name, arguments, message):
  with pytest.raises(ValueError, match=message):
    make_network(name, **{"numerics": float32(), **arguments})


def test_no_pooling_is_an_option():
  assert rows("small_cnn", (8, 8, 1), pool_after=[])[-1][1] == (8, 8, 64)


def test_images_too_small():
  """Refused when the network is described, before any data is loaded."""
  with pytest.raises(ValueError, match="too small for 2x2 pooling"):
    rows("vgg8", (8, 8, 1))
  with pytest.raises(ValueError, match="too small for a field of 10x10"):
    rows("local_mlp", (8, 8, 1))
