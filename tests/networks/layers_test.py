"""Layers against numpy, from the parameters that they drew themselves."""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fflax.core.numerics import bfloat16, float32
from fflax.networks.activations import ACTIVATIONS
from fflax.networks.initializers import INITIALIZERS
from fflax.networks.layers import ConvLayer, DenseLayer, LocalLayer, aux_conv_layer, from_linen

KEY = jax.random.key(3)
TORCH = INITIALIZERS["torch_linear"]


def image(*shape: int) -> jax.Array:
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def run(module: nn.Module, x: jax.Array, train: bool = False):
  layer = from_linen(module, "layer")
  params, stats = jax.jit(layer.init)(KEY, x)
  out, new_stats = jax.jit(functools.partial(layer.apply, train=train))(params, stats, x)
  return params, stats, out, new_stats


def rounded(x) -> np.ndarray:
  return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float64)


def exact(x) -> np.ndarray:
  return np.asarray(x, np.float64)


NUMERICS = pytest.mark.parametrize(
  ("numerics", "operand"),
  [(float32(), exact), (bfloat16(False), rounded), (bfloat16(True), rounded)],
)


@NUMERICS
@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_dense(numerics, operand, activation):
  """The product goes through `dot_general`, over the flattened input, in float32."""
  x = image(5, 4, 4, 2)
  module = DenseLayer(7, ACTIVATIONS[activation], True, TORCH, numerics)
  params, stats, out, _ = run(module, x)
  kernel, bias = params["dense"]["kernel"], params["dense"]["bias"]
  pre = operand(x).reshape(5, 32) @ operand(kernel) + exact(bias)
  np.testing.assert_allclose(out.pre, pre, atol=1e-5)
  np.testing.assert_allclose(out.act, ACTIVATIONS[activation](out.pre), rtol=1e-6)
  np.testing.assert_array_equal(out.out, out.act)
  assert stats == {}
  assert {a.dtype for a in jax.tree.leaves((params, out))} == {jnp.dtype("float32")}
  assert jnp.abs(bias).max() > 0.5 / math.sqrt(32)
  assert jnp.abs(bias).max() <= 1 / math.sqrt(32)


@NUMERICS
def test_conv(numerics, operand):
  """SAME 3x3 convolution with bias, at every pixel, corners included."""
  x = image(2, 5, 6, 3)
  module = ConvLayer(4, nn.relu, initializer=TORCH, numerics=numerics)
  params, stats, out, _ = run(module, x)
  kernel, bias = operand(params["conv"]["kernel"]), exact(params["conv"]["bias"])
  padded = np.pad(operand(x), ((0, 0), (1, 1), (1, 1), (0, 0)))
  pre = sum(padded[:, i : i + 5, j : j + 6] @ kernel[i, j] for i in range(3) for j in range(3))
  np.testing.assert_allclose(out.pre, pre + bias[None, None, None], atol=1e-5)
  np.testing.assert_array_equal(out.act, np.maximum(out.pre, 0))
  np.testing.assert_array_equal(out.out, out.act)
  assert stats == {}
  assert {a.dtype for a in jax.tree.leaves((params, out))} == {jnp.dtype("float32")}
  assert 0.5 / math.sqrt(27) < np.abs(bias).max() <= 1 / math.sqrt(27)


@pytest.mark.parametrize(("pool", "reduce"), [("max", np.max), ("avg", np.mean)])
def test_pooling(pool, reduce):
  """`act` stays unpooled (goodness is read there), `out` is pooled; an odd row is dropped."""
  _, _, out, _ = run(ConvLayer(3, jnp.tanh, pool=pool), image(2, 7, 6, 2))
  assert out.act.shape == (2, 7, 6, 3)
  blocks = np.asarray(out.act)[:, :6].reshape(2, 3, 2, 3, 2, 3)
  np.testing.assert_allclose(out.out, reduce(blocks, (2, 4)), rtol=1e-6, atol=1e-6)


def test_batch_norm_moves_only_in_training():
  """Evaluation that moved the statistics would leak the test set; training that did not would
  evaluate with an untrained norm."""
  x = image(8, 4, 4, 2) * 3 + 1
  layer = from_linen(ConvLayer(5, nn.relu, batch_norm=True, use_bias=False), "layer")
  params, stats = layer.init(KEY, x)
  assert set(params["conv"]) == {"kernel"}
  # At the start the running averages are 0 and 1: evaluation sees the bare convolution.
  evaluated, same = layer.apply(params, stats, x, train=False)
  assert same is stats
  trained, moved = layer.apply(params, stats, x, train=True)
  raw = np.asarray(evaluated.pre, float) * math.sqrt(1 + 1e-5)
  mean, var = raw.mean((0, 1, 2)), raw.var((0, 1, 2))
  normed = (raw - mean[None, None, None]) / np.sqrt(var + 1e-5)[None, None, None]
  np.testing.assert_allclose(trained.pre, normed, atol=1e-4)
  np.testing.assert_allclose(moved["norm"]["mean"], 0.1 * mean, rtol=1e-4, atol=1e-6)
  np.testing.assert_allclose(moved["norm"]["var"], 0.9 + 0.1 * var, rtol=1e-4)
  np.testing.assert_array_equal(trained.act, np.maximum(trained.pre, 0))


@NUMERICS
def test_local(numerics, operand):
  """Every grid point has its own kernel, field and bias; the field is in (row, column, channel)."""
  x = image(3, 9, 7, 2)
  module = LocalLayer(5, 3, 2, nn.relu, True, TORCH, numerics)
  params, _, out, _ = run(module, x)
  assert params["kernel"].shape == (4 * 3, 3 * 3 * 2, 5)
  for row in range(4):
    for column in range(3):
      patch = operand(x)[:, 2 * row : 2 * row + 3, 2 * column : 2 * column + 3].reshape(3, 18)
      point = 3 * row + column
      pre = patch @ operand(params["kernel"][point]) + exact(params["bias"][point])[None]
      np.testing.assert_allclose(out.pre[:, row, column], pre, atol=1e-5)
  np.testing.assert_array_equal(out.act, np.maximum(out.pre, 0))


def test_local_kernels_start_by_their_field():
  """fan_in is one field; linen's ConvLocal counts the grid too, and starts far too small."""
  x = jnp.zeros((1, 12, 12, 3))
  params, *_ = run(LocalLayer(64, 5, 1, initializer=TORCH), x)
  bound = 1 / math.sqrt(75)
  assert 0.99 * bound < jnp.abs(params["kernel"]).max() <= bound
  assert 0.99 * bound < jnp.abs(params["bias"]).max() <= bound
  assert len(np.unique(params["kernel"][:, 0, 0])) == 64, "grid points share their weights"
  params, *_ = run(LocalLayer(4, 5, 1, use_bias=False), x)
  assert set(params) == {"kernel"}


@settings(max_examples=6)
@given(
  size=st.integers(1, 9),
  channels=st.integers(1, 3),
  features=st.integers(1, 4),
  kernel=st.integers(1, 4),
  strides=st.integers(1, 3),
  padding=st.sampled_from(["SAME", "VALID"]),
)
def test_conv_shapes(size, channels, features, kernel, strides, padding):
  """Shapes as the textbook counts them; an input that is too small is refused, never empty."""
  module = ConvLayer(
    features,
    kernel_size=(kernel, kernel),
    strides=strides,
    padding=padding,
    numerics=bfloat16(),
  )
  layer = from_linen(module, "layer")
  x = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
  if padding == "VALID" and size < kernel:
    with pytest.raises(ValueError, match="too small for"):
      jax.eval_shape(layer.init, KEY, x)
    return
  params, stats = jax.eval_shape(layer.init, KEY, x)
  apply = functools.partial(layer.apply, train=True)
  out, _ = jax.eval_shape(apply, params, stats, x)
  expected = -(-size // strides) if padding == "SAME" else (size - kernel) // strides + 1
  assert out.out.shape == (2, expected, expected, features)


@pytest.mark.parametrize(
  "module",
  [
    DenseLayer(6, ACTIVATIONS["relu_ste"], True, TORCH, bfloat16()),
    ConvLayer(4, batch_norm=True, pool="max", use_bias=False),
    LocalLayer(4, 3),
  ],
  ids=["dense", "conv", "local"],
)
def test_pure_under_jit_vmap_and_grad(module):
  """Seeds under vmap equal seeds alone; the key argument changes nothing without dropout."""
  x = image(4, 6, 6, 2)
  layer = from_linen(module, "layer")
  keys = jax.random.split(KEY, 2)
  params, stats = jax.jit(jax.vmap(layer.init, in_axes=(0, None)))(keys, x)

  def loss(params, stats):
    out, _ = layer.apply(params, stats, x, train=True, key=jax.random.key(1))
    return (out.out**2).mean()

  values, gradients = jax.jit(jax.vmap(jax.value_and_grad(loss)))(params, stats)
  for i in range(2):
    one = jax.tree.map(lambda a, i=i: a[i], (params, stats))
    value, gradient = jax.jit(jax.value_and_grad(loss))(*one)
    np.testing.assert_allclose(values[i], value, rtol=1e-4)
    for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(gradient), strict=True):
      # One bfloat16 step: a sum in another order may round to the neighbour.
      np.testing.assert_allclose(a[i], b, rtol=2**-7, atol=1e-2 * float(jnp.abs(b).max() + 1e-6))


def test_spec_ignores_the_name_and_nothing_else():
  """Layers of unequal function with equal specs would silently be run as one."""
  make = functools.partial(DenseLayer, 6, nn.relu)
  spec = from_linen(make(name="a"), "a").spec
  assert spec == from_linen(make(name="b"), "b").spec == from_linen(make(), "c").spec
  assert hash(spec) == hash(from_linen(make(), "c").spec)
  others = [
    DenseLayer(7, nn.relu),
    DenseLayer(6, jnp.tanh),
    make(use_bias=False),
    make(initializer=TORCH),
    make(numerics=bfloat16()),
    ConvLayer(6, nn.relu),
    ConvLayer(6, nn.relu, pool="max"),
  ]
  specs = [from_linen(module, "a").spec for module in others]
  assert len({spec, *specs}) == len(others) + 1


def test_aux_conv_layer():
  """The auxiliary head is linear: without that, prototypes could not sit in every direction."""
  x = image(2, 4, 4, 3)
  layer = aux_conv_layer(8, kernel_size=1, initializer="torch_linear", numerics=float32())
  params, stats = layer.init(KEY, x)
  out, _ = layer.apply(params, stats, x, train=True)
  kernel, bias = params["conv"]["kernel"][0, 0], params["conv"]["bias"]
  np.testing.assert_allclose(
    out.out, exact(x) @ exact(kernel) + exact(bias)[None, None, None], atol=1e-6
  )
  np.testing.assert_array_equal(out.pre, out.out)
  assert aux_conv_layer().init(KEY, x)[0]["conv"]["kernel"].shape == (3, 3, 3, 256)


@pytest.mark.parametrize(
  ("module", "shape", "message"),
  [
    (ConvLayer(4), (2, 64), r"shape \(2, 64\), but this layer takes \[B, H, W, C\]"),
    (LocalLayer(4, 2), (2, 64), r"but this layer takes \[B, H, W, C\]"),
    (LocalLayer(4, 5), (2, 6, 4, 1), "too small for a field of 5x5"),
    (ConvLayer(4, pool="max"), (2, 4, 1, 1), "too small for 2x2 pooling"),
    (ConvLayer(4, pool="median"), (2, 4, 4, 1), "Unknown pool 'median'; allowed: max, avg"),
  ],
)
def test_bad_input(module, shape, message):
  with pytest.raises(ValueError, match=message):
    from_linen(module, "layer").init(KEY, jnp.zeros(shape))
