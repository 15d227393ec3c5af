"""The vision transformer: counts, patches and attention against numpy, a tiny one end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core.numerics import bfloat16, float32
from fflax.core.readouts import score_sum
from fflax.methods.backprop import BackpropConfig
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.methods.registry import METHODS
from fflax.networks.layers import from_linen
from fflax.networks.registry import make_network
from fflax.networks.vit import PatchEmbedding, TransformerBlock
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.networks import numpy_blocks as hand

SMALL = {"patch_size": 4, "features": 12, "depth": 3, "heads": 2, "mlp_ratio": 2}


def test_table():
  """Counted by hand: kernels, biases, two norms a block, one vector for each place."""
  rows = hand.table("vit", (32, 32, 3), float32())
  assert [row[0] for row in rows] == ["embedding", *(f"block_{n}" for n in range(1, 7))]
  assert all(row[1] == (8, 8, 192) for row in rows)
  d = 192
  block = (d * 3 * d + 3 * d) + (d * d + d) + (d * 4 * d + 4 * d) + (4 * d * d + d) + 4 * d
  assert [row[2] for row in rows] == [(48 * d + d) + 64 * d, *[block] * 6]
  assert sum(row[2] for row in rows) == 2_690_880


def test_patches():
  """Each token sees its own patch, and knows its place."""
  x = hand.image(2, 6, 4, 3)
  layer = from_linen(PatchEmbedding(5, 2), "embedding")
  params, stats = layer.init(jax.random.key(0), x)
  out = layer.apply(params, stats, x, train=True)[0].out
  p = hand.float64(params)
  assert out.shape == (2, 3, 2, 5) and p["position"].shape == (3, 2, 5)
  assert 0.005 < p["position"].std() < 0.04
  for row in range(3):
    for column in range(2):
      patch = np.asarray(x, np.float64)[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
      want = patch.reshape(2, 12) @ p["embed"]["kernel"] + p["embed"]["bias"]
      np.testing.assert_allclose(out[:, row, column], want + p["position"][row, column], atol=1e-5)


def layer_norm(p, x):
  normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
  return normed * p["scale"] + p["bias"]


def dense(p, x):
  return x @ p["kernel"] + p["bias"]


def test_block():
  """Attention over all places, head by head, the MLP, both residuals, and the gradient."""
  heads = 2

  def by_hand(p, s, x, train):
    tokens = x.reshape(len(x), -1, x.shape[-1])
    size = tokens.shape[-1]
    each = dense(p["query_key_value"], layer_norm(p["attention_norm"], tokens))
    mixed = np.zeros_like(tokens)
    for h in range(heads):
      one = slice(h * size // heads, (h + 1) * size // heads)
      q, k, v = (each[..., i * size : (i + 1) * size][..., one] for i in range(3))
      score = np.exp(q @ k.transpose(0, 2, 1) / np.sqrt(size // heads))
      mixed[..., one] = score / score.sum(-1, keepdims=True) @ v
    tokens = tokens + dense(p["attention_out"], mixed)
    units = np.tanh(dense(p["mlp_in"], layer_norm(p["mlp_norm"], tokens)))
    tokens = (tokens + dense(p["mlp_out"], units)).reshape(x.shape)
    return tokens, tokens

  hand.check_block(TransformerBlock(heads, jnp.tanh, 3), by_hand, hand.image(3, 2, 3, 6))


@pytest.mark.parametrize(
  "numerics",
  [float32(), pytest.param(bfloat16(), marks=pytest.mark.slow)],
  ids=["float32", "bfloat16"],
)
def test_tiny_network(numerics):
  network = make_network("vit", numerics=numerics, activation="gelu", **SMALL)
  hand.check_network(network, hand.image(4, 8, 12, 3))


def test_numerics_reach_every_projection():
  """What bfloat16 cannot hold of a kernel changes nothing; in float32 it changes the output."""
  x = hand.image(2, 2, 2, 4)
  layers = [from_linen(TransformerBlock(2, numerics=n), "a") for n in (float32(), bfloat16())]
  params, stats = layers[0].init(jax.random.key(0), x)
  names = [n for n in params if "norm" not in n]
  assert len(names) == 4
  for name in names:
    kernel = params[name]["kernel"].astype(jnp.bfloat16).astype(jnp.float32)
    both = [
      {**params, name: {**params[name], "kernel": factor * kernel}} for factor in (1, 1 + 2.0**-10)
    ]
    exact, rounded = (
      [layer.apply(p, stats, x, train=False)[0].out for p in both] for layer in layers
    )
    assert not np.array_equal(*exact)
    np.testing.assert_array_equal(*rounded, err_msg=name)


def test_blocks_are_equal():
  specs = [layer.spec for layer in make_network("vit", numerics=bfloat16()).layers]
  assert len(set(specs)) == 2 and len(set(specs[1:])) == 1


@pytest.mark.parametrize(
  "config",
  [
    BackpropConfig(),
    BackpropConfig(heads="all"),
    ForwardForwardConfig(label_style="channels", goodness="mean"),
    HypersphericalConfig(aux_features=8),
  ],
  ids=lambda config: type(config).__name__,
)
def test_methods_take_tokens_as_they_take_maps(config):
  """A head on every token instead of their mean would answer `[B, H, W, K]`."""
  factory = next(e.factory for e in METHODS.values() if e.config is type(config))
  trainer = make_trainer(
    make_network("vit", numerics=float32(), **SMALL),
    factory(config, 10),
    [score_sum()],
    image_shape=(8, 8, 3),
    optimizer=optax.sgd(0.1),
    stack=True,
  )
  batch = Batch(jnp.zeros((2, 8, 8, 3)), jnp.zeros(2, jnp.int32))
  state = jax.eval_shape(trainer.init, jax.random.key(0), batch)
  after, metrics = jax.eval_shape(trainer.step, state, batch)
  answers = jax.eval_shape(trainer.answer, state, batch.image)
  assert jax.tree.structure(after) == jax.tree.structure(state)
  assert metrics["loss"].shape == (4,)
  assert answers.readouts["score_sum"].shape == (2, 10)
  # Under local methods the equal blocks are one stack.
  assert len(state.layers) == (4 if isinstance(config, BackpropConfig) else 2)


@pytest.mark.parametrize(
  ("options", "shape", "message"),
  [
    ({"heads": 5}, (8, 8, 1), "heads must divide features"),
    ({"depth": 0}, (8, 8, 1), "depth=0, but depth must be a positive integer"),
    ({}, (10, 8, 1), "cannot be cut into patches of 4x4"),
    ({}, (64,), r"but this layer takes \[B, H, W, C\]"),
  ],
)
def test_bad_options(options, shape, message):
  with pytest.raises(ValueError, match=message):
    hand.table("vit", shape, float32(), **options)


def test_a_block_refuses_tokens_that_its_heads_do_not_divide():
  with pytest.raises(ValueError, match="2 heads do not divide tokens of 5"):
    TransformerBlock(2).init(jax.random.key(0), jnp.zeros((1, 2, 2, 5)))
