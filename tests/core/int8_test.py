"""Training in int8, against numpy: quantised operands in int64, scales in float64."""

import dataclasses
import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fflax.core.int8 import int8
from fflax.core.int8_config import INT8_PRESETS, Int8Config
from fflax.core.quantize import rounding_noise, seed_words

KEY = jax.random.key(11)
DENSE = (((1,), (0,)), ((), ()))
CONV = {"window_strides": (2, 1), "padding": "SAME", "dimension_numbers": ("NHWC", "HWIO", "NHWC")}


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def quantized(x, axis=None, noise=None):
  """Integers as float64, and the scale."""
  others = None if axis is None else tuple(a for a in range(x.ndim) if a not in axis)
  largest = np.abs(x).max(axis=others, keepdims=axis is not None)
  scale = np.maximum(largest, np.float32(1e-30)) * np.float32(1 / 127)
  v = x / scale
  v = np.rint(v) if noise is None else np.floor(v) + (noise < v - np.floor(v))
  return np.clip(v, -127, 127).astype(np.float64), np.float64(scale)


def noises(shapes, key=KEY):
  """Of the left and the right operand, of the gradient for the weights and for the inputs."""
  draw = jax.jit(
    lambda: [rounding_noise(s, shape) for s, shape in zip(seed_words(key, 4), shapes, strict=True)]
  )
  return [np.asarray(u) for u in draw()]


def pullback(product, x, w, g, **kwargs):
  @jax.jit
  def run(x, w, g):
    out, back = jax.vjp(functools.partial(product, **kwargs), x, w)
    return out, *back(g)

  return [np.asarray(a, np.float64) for a in run(*map(jnp.asarray, (x, w, g)))]


def dense(numerics, key=KEY, **kwargs):
  return functools.partial(numerics.dot_general, dimension_numbers=DENSE, key=key, **kwargs)


def close(got, want, rtol=1e-6):
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol, atol=1e-6 * np.abs(b).max())


@pytest.mark.parametrize("rounding", ["nearest", "stochastic", "evaluation"])
@pytest.mark.parametrize("channel", ["tensor", "channel"])
@pytest.mark.parametrize("row", ["tensor", "row"])
def test_dense_equals_numpy(rounding, channel, row):
  x, w, g = normal(0, 6, 9) * 3, normal(1, 9, 5), normal(2, 6, 5) * 0.1
  g *= np.linspace(0.1, 2, 5, dtype=np.float32)  # so that scales by channel matter
  rounded = "nearest" if rounding == "nearest" else "stochastic"
  config = Int8Config(rounded, rounded, rounded, row, channel, channel)
  key = None if rounding == "evaluation" else KEY
  row = "row" if rounding == "evaluation" else row
  u = noises([x.shape, w.shape, g.shape, g.shape])
  if rounding != "stochastic":
    u = [None] * 4
  qx, sx = quantized(x, (0,) if row == "row" else None, u[0])
  qw, sw = quantized(w, (1,) if channel == "channel" else None, u[1])
  folded_w = g * np.float32(sx) if row == "row" else g
  folded_x = g * np.float32(sw) if channel == "channel" else g
  qg, sg = quantized(folded_w, (1,) if channel == "channel" else None, u[2])
  shared = row == channel == "tensor"
  qh, sh = (qg, sg) if shared else quantized(folded_x, None, u[3])
  dx = qh @ qw.T * sh * (1 if channel == "channel" else sw)
  if rounding == "evaluation":  # of the weights as they are multiplied, rounded nowhere
    dx = g.astype(np.float64) @ (qw * sw).T
  want = (qx @ qw * sx * sw, dx, qx.T @ qg * sg * (1 if row == "row" else sx))
  close(pullback(dense(int8(config), key), x, w, g), want)


def float_conv(x, w, g):
  """Forward, input and weight gradient of the convolution CONV in float32 by JAX."""
  conv = functools.partial(lax.conv_general_dilated, **CONV, precision=lax.Precision.HIGHEST)
  out, back = jax.vjp(conv, *(jnp.asarray(a, jnp.float32) for a in (x, w)))
  return [np.asarray(a, np.float64) for a in (out, *back(jnp.asarray(g, jnp.float32)))]


@pytest.mark.parametrize("channel", ["tensor", "channel"])
@pytest.mark.parametrize("row", ["tensor", "row"])
def test_conv_equals_a_float_conv_of_the_integers(channel, row):
  # Sums of the integers are below 2^24, so that JAX's float32 convolution is exact.
  x, w = normal(0, 2, 6, 5, 8), normal(1, 3, 3, 8, 4) * np.asarray([1, 2, 3, 4], np.float32)
  g = normal(2, 2, 3, 5, 4)
  config = Int8Config(act_scale=row, weight_scale=channel, grad_scale=channel)
  u = noises([x.shape, w.shape, g.shape, g.shape])
  qx, sx = quantized(x, (0,) if row == "row" else None, u[0])
  qw, sw = quantized(w, (3,) if channel == "channel" else None)
  qg, sg = quantized(
    g * np.float32(sx) if row == "row" else g, (3,) if channel == "channel" else None, u[2]
  )
  shared = row == channel == "tensor"
  qh, sh = (
    (qg, sg) if shared else quantized(g * np.float32(sw) if channel == "channel" else g, None, u[3])
  )
  out, _, dw = float_conv(qx, qw, qg)
  dx = float_conv(qx, qw, qh)[1]
  want = (
    out * sx * sw,
    dx * sh * (1 if channel == "channel" else sw),
    dw * sg * (1 if row == "row" else sx),
  )
  conv = functools.partial(int8(config).conv_general_dilated, **CONV, key=KEY)
  close(pullback(conv, x, w, g), want)


GROUPS = 2


@pytest.mark.parametrize(("row", "channel"), [("tensor", "tensor"), ("row", "channel")])
def test_groups_have_scales_of_their_own(row, channel):
  """The views one after the other, in int64: outputs side by side, weight gradients added."""
  x, w, g = normal(0, 6, 9), normal(1, 9, 5), normal(2, 6, 5)
  x[3:] *= 30
  g[:3] *= 7
  config = Int8Config(act_scale=row, weight_scale=channel, grad_scale=channel, scale_groups=GROUPS)
  u = noises([x.shape, w.shape, g.shape, g.shape])
  qw, sw = quantized(w, (1,) if channel == "channel" else None)
  outs, dxs, dw = [], [], 0.0
  for rows in (slice(0, 3), slice(3, 6)):
    qx, sx = quantized(x[rows], (0,) if row == "row" else None, u[0][rows])
    folded = g[rows] * np.float32(sx) if row == "row" else g[rows]
    qg, sg = quantized(folded, (1,) if channel == "channel" else None, u[2][rows])
    qh, sh = qg, sg
    if channel == "channel":
      qh, sh = quantized(g[rows] * np.float32(sw), None, u[3][rows])
    qx, qg, qh = (q.astype(np.int64) for q in (qx, qg, qh))
    outs.append(qx @ qw.astype(np.int64) * sx * sw)
    dxs.append(qh @ qw.astype(np.int64).T * sh * (1 if channel == "channel" else sw))
    dw += qx.T @ qg * sg * (1 if row == "row" else sx)
  want = (np.concatenate(outs), np.concatenate(dxs), dw)
  got = pullback(dense(int8(config)), x, w, g)
  close(got, want)
  one = pullback(dense(int8(dataclasses.replace(config, scale_groups=1))), x, w, g)
  assert row == "row" or all(np.abs(a - b).max() > 1e-4 for a, b in zip(got, one, strict=True))


@pytest.mark.parametrize("groups", [1, 4])
def test_groups_of_a_conv_are_convs_of_the_groups(groups):
  x, w = normal(0, 4, 5, 4, 8), normal(1, 3, 3, 8 // groups, 8)
  g = normal(2, 4, 3, 4, 8)
  x[2:] *= 30
  g[:2] *= 7
  nearest = {"act_rounding": "nearest", "grad_rounding": "nearest"}
  both, one = (Int8Config(**nearest, scale_groups=n) for n in (GROUPS, 1))
  numbers = {**CONV, "feature_group_count": groups, "key": KEY}
  got = pullback(int8(both).conv_general_dilated, x, w, g, **numbers)
  halves = [
    pullback(int8(one).conv_general_dilated, x[rows], w, g[rows], **numbers)
    for rows in (slice(0, 2), slice(2, 4))
  ]
  (out, dx, dw), (out_2, dx_2, dw_2) = halves
  close(got, (np.concatenate([out, out_2]), np.concatenate([dx, dx_2]), dw + dw_2))


def test_groups_are_of_examples_and_of_training():
  """A token's row is its example's; an answer does not depend on groups."""
  x, w, g = normal(0, 4, 3, 9), normal(1, 9, 5), normal(2, 4, 3, 5)
  x[2:] *= 30
  nearest = Int8Config(act_rounding="nearest", grad_rounding="nearest", scale_groups=GROUPS)
  tokens = pullback(
    functools.partial(
      int8(nearest).dot_general, dimension_numbers=(((2,), (0,)), ((), ())), key=KEY
    ),
    x, w, g,
  )  # fmt: skip
  rows = pullback(dense(int8(nearest)), x.reshape(12, 9), w, g.reshape(12, 5))
  for a, b in zip(tokens, rows, strict=True):
    np.testing.assert_array_equal(a.reshape(b.shape), b)
  odd = x[:3, 0]
  answers = [jax.jit(dense(int8(c), key=None))(odd, w) for c in (nearest, Int8Config())]
  np.testing.assert_array_equal(*answers)
  with pytest.raises(ValueError, match="scale_groups=2 cannot part a batch of 3 into equal groups"):
    dense(int8(nearest))(odd, w)


def test_channel_scales_that_agree_equal_one_scale():
  x, w, g = normal(0, 6, 9), normal(1, 9, 5), normal(2, 6, 5)
  w[0], g[0] = 4.0, 4.0
  nearest = {"act_rounding": "nearest", "grad_rounding": "nearest"}
  a = pullback(dense(int8(Int8Config(**nearest))), x, w, g)
  b = pullback(
    dense(int8(Int8Config(**nearest, weight_scale="channel", grad_scale="channel"))), x, w, g
  )
  close(a, b)


@pytest.mark.parametrize("backend", ["emulate", "bfloat16"])
def test_backends_agree_bit_for_bit(backend):
  x, w, g = normal(0, 6, 1200), normal(1, 1200, 5), normal(2, 6, 5)
  a = pullback(dense(int8()), x, w, g)
  b = pullback(dense(int8(Int8Config(backend=backend))), x, w, g)
  for one, other in zip(a, b, strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
  ("shapes", "numbers"),
  [
    (((2, 3, 8), (8, 4)), (((2,), (0,)), ((), ()))),  # linen.Dense on [B, T, D]
    (((4, 8), (5, 8)), (((1,), (1,)), ((), ()))),
    (((3, 4, 2), (4, 3, 5)), (((0, 1), (1, 0)), ((), ()))),  # linen.DenseGeneral on two axes
    (((4, 3, 8), (8, 2, 3)), (((2,), (0,)), ((1,), (2,)))),  # mapped
    (((2, 3, 4, 8), (3, 2, 8)), (((3,), (2,)), ((0, 1), (1, 0)))),  # mapped over two, no columns
    (((8,), (8, 3)), (((0,), (0,)), ((), ()))),
    (((0, 8), (8, 3)), (((1,), (0,)), ((), ()))),
  ],
)
def test_any_contraction_is_near_the_float_one(shapes, numbers):
  x, w = (normal(i, *shape) for i, shape in enumerate(shapes))
  reference = functools.partial(lax.dot_general, dimension_numbers=numbers)
  g = np.ones(jax.eval_shape(reference, x, w).shape, np.float32)
  g *= normal(5, *g.shape)
  got = pullback(int8().dot_general, x, w, g, dimension_numbers=numbers)
  want = pullback(reference, x, w, g)
  for a, b in zip(got, want, strict=True):
    assert a.shape == b.shape
    # Errors of half a percent of the largest operand in each of 8 (at most 12) terms.
    np.testing.assert_allclose(a, b, atol=0.25)


def test_mapped_equals_one_by_one_up_to_scales():
  # A mapped product has one scale for all; equal maxima make it the products one by one.
  x, w = normal(0, 3, 4, 8), normal(1, 3, 8, 2)
  x[:, 0, 0], w[:, 0, 0] = 5.0, 5.0
  product = jax.jit(int8().dot_general, static_argnums=2)
  together = product(x, w, (((2,), (1,)), ((0,), (0,))))
  for i in range(3):
    np.testing.assert_allclose(together[i], product(x[i], w[i], DENSE), rtol=1e-6)


@pytest.mark.parametrize("groups", [2, 8])
def test_grouped_conv_is_near_the_float_one(groups):
  x, w = normal(0, 2, 6, 5, 8), normal(1, 3, 3, 8 // groups, 8)
  g = normal(2, 2, 3, 5, 8)
  got = pullback(int8().conv_general_dilated, x, w, g, **CONV, feature_group_count=groups)
  want = pullback(lax.conv_general_dilated, x, w, g, **CONV, feature_group_count=groups)
  for a, b in zip(got, want, strict=True):
    error = np.abs(a - b).max() / np.abs(b).max()
    assert 0 < error < 0.03


def test_gradients_are_unbiased():
  x, w, g = normal(0, 4, 6), normal(1, 6, 3), normal(2, 4, 3)
  config = Int8Config(weight_rounding="stochastic")

  @jax.jit
  def gradients(key):
    _, back = jax.vjp(dense(int8(config), key), jnp.asarray(x), jnp.asarray(w))
    return back(jnp.asarray(g))

  n = 4000
  dx, dw = jax.vmap(gradients)(jax.random.split(jax.random.key(3), n))
  for samples, exact in ((dx, g @ w.T), (dw, x.T @ g)):
    samples = np.asarray(samples, np.float64)
    deviation = samples.std(axis=0) / math.sqrt(n)
    assert np.all(deviation > 0)
    # 4.5 sigma: one of the 42 entries may be far out.
    assert np.all(np.abs(samples.mean(axis=0) - exact) < 4.5 * deviation + 1e-6)


def test_noise_differs_by_key_and_role():
  x = w = np.full((64, 64), 0.3, np.float32)
  x[0, 0] = w[0, 0] = 1.0
  config = Int8Config(weight_rounding="stochastic")
  run = jax.jit(dense(int8(config)))
  np.testing.assert_array_equal(run(x, w), run(x, w))
  other = jax.jit(dense(int8(config), jax.random.key(12)))(x, w)
  assert not np.array_equal(run(x, w), other)
  u = noises([(64, 64)] * 4)
  for i in range(4):
    for j in range(i):
      assert abs(np.corrcoef(u[i].ravel(), u[j].ravel())[0, 1]) < 5 / 64


@pytest.mark.parametrize("gradient", ["absmax", "dai8"])
def test_no_key_rounds_to_nearest_with_a_scale_for_each_row(gradient):
  x, w, g = normal(0, 6, 9), normal(1, 9, 5), normal(2, 6, 5)
  x[3] *= 100
  a = pullback(dense(int8(Int8Config(gradient=gradient)), key=None), x, w, g)
  rows = dataclasses.replace(INT8_PRESETS["int8_nearest"], act_scale="row")
  b = pullback(dense(int8(rows)), x, w, g)
  for one, other in zip((a[0], a[2]), (b[0], b[2]), strict=True):
    np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("channel", ["tensor", "channel"])
@pytest.mark.parametrize("groups", [0, 1, 2])
def test_evaluation_has_the_whole_gradient_of_every_example(groups, channel):
  """A scale for the batch would round that of an example with a small one to zero: no attack."""
  config = Int8Config(weight_scale=channel)
  if groups:
    x, w, g = normal(0, 3, 6, 5, 4), normal(1, 3, 3, 4 // groups, 4), normal(2, 3, 3, 5, 4)
    numbers = {**CONV, "feature_group_count": groups}
    product = functools.partial(int8(config).conv_general_dilated, **numbers)
    exact = functools.partial(lax.conv_general_dilated, **numbers)
  else:
    x, w, g = normal(0, 3, 9), normal(1, 9, 5), normal(2, 3, 5)
    product = dense(int8(config), key=None)
    exact = functools.partial(lax.dot_general, dimension_numbers=DENSE)
  g[1] *= 1e-6
  qw, sw = quantized(w, (w.ndim - 1,) if channel == "channel" else None)
  close([pullback(product, x, w, g)[1][1]], [pullback(exact, x, qw * sw, g)[1][1]], rtol=1e-4)


@pytest.mark.parametrize("where", ["x", "w", "g"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_are_loud(where, bad):
  arrays = {"x": normal(0, 6, 9), "w": normal(1, 9, 5), "g": normal(2, 6, 5)}
  arrays[where][3, 2] = bad
  out, dx, dw = pullback(dense(int8()), **arrays)
  assert np.all(np.isnan(out)) == (where != "g")
  assert np.all(np.isnan(dx)) == (where != "x")
  assert np.all(np.isnan(dw)) == (where != "w")


def test_what_the_backward_pass_keeps_is_int8():
  x, w = jnp.asarray(normal(0, 64, 32)), jnp.asarray(normal(1, 32, 16))
  _, back = jax.jit(functools.partial(jax.vjp, dense(int8())))(x, w)
  kept = [leaf for leaf in jax.tree.leaves(back) if hasattr(leaf, "dtype")]
  large = [leaf for leaf in kept if leaf.size >= 100]
  assert {leaf.dtype for leaf in large} == {jnp.dtype(jnp.int8)}
  assert sorted(leaf.size for leaf in large) == [512, 2048]


def test_an_unused_input_gradient_is_not_computed():
  x, w = jnp.zeros((64, 32)), jnp.zeros((32, 16))

  def loss(x, w):
    return jnp.sum(dense(int8())(x, w) ** 2)

  def products(argnums):
    compiled = jax.jit(jax.grad(loss, argnums)).lower(x, w).compile()
    return compiled.as_text().count(" dot(")

  assert products(1) == 2
  assert products((0, 1)) == 3


def test_under_transformations():
  x, w = jnp.asarray(normal(0, 3, 6, 9)), jnp.asarray(normal(1, 3, 9, 5))
  keys = jax.random.split(KEY, 3)

  def loss(w, x, key):
    return jnp.sum(jnp.square(dense(int8(), key)(x, w)))

  one = jax.value_and_grad(loss)

  def scanned(*arrays):
    return lax.scan(lambda carry, a: (carry, one(*a)), 0, arrays)[1]

  def branched(*arrays):
    return lax.map(lambda a: lax.cond(a[0][0, 0] > -9, one, lambda *a: (0.0, a[0]), *a), arrays)

  alone = jax.jit(one)
  values, grads = zip(*(alone(w[i], x[i], keys[i]) for i in range(3)), strict=True)
  for transformed in (jax.vmap(one), scanned, branched):
    got = jax.jit(transformed)(w, x, keys)
    np.testing.assert_allclose(got[0], values, rtol=1e-5)
    np.testing.assert_allclose(got[1], grads, rtol=1e-5, atol=1e-4)
  value, grad = one(w[0], x[0], keys[0])  # eagerly
  np.testing.assert_allclose(value, values[0], rtol=1e-5)
  np.testing.assert_allclose(grad, grads[0], rtol=1e-5, atol=1e-4)


def test_equal_settings_compile_once():
  a, b, c = int8(), int8(Int8Config()), int8(Int8Config(noise="threefry"))
  assert a == b and hash(a) == hash(b) and a != c
  traces = []

  @functools.partial(jax.jit, static_argnums=0)
  def run(product, x):
    traces.append(product)
    return product(x, x, DENSE)

  for numerics in (a, b):
    run(numerics.dot_general, jnp.ones((3, 3)))
  assert len(traces) == 1


def test_linen_layers():
  product = functools.partial(int8().conv_general_dilated, key=KEY)
  layer, plain = nn.Conv(4, (3, 3), conv_general_dilated=product), nn.Conv(4, (3, 3))
  x = jnp.asarray(normal(0, 2, 6, 6, 3))
  params = jax.jit(plain.init)(jax.random.key(0), x)
  got, want = (jax.jit(module.apply)(params, x) for module in (layer, plain))
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, atol=0.05)


def test_result_type():
  x = jax.ShapeDtypeStruct((4, 4), jnp.bfloat16)
  product = functools.partial(int8().dot_general, dimension_numbers=DENSE)
  assert jax.eval_shape(product, x, x).dtype == jnp.float32
  narrow = functools.partial(product, preferred_element_type=jnp.bfloat16)
  assert jax.eval_shape(narrow, x, x).dtype == jnp.bfloat16


def test_refusals():
  x, w = jnp.zeros((1, 8, 8, 4)), jnp.zeros((3, 3, 4, 4))
  conv = functools.partial(int8().conv_general_dilated, x, w, **CONV)
  with pytest.raises(ValueError, match="int8 convolutions cannot be dilated"):
    conv(rhs_dilation=(2, 2))
  with pytest.raises(ValueError, match="int8 convolutions cannot have batch groups"):
    conv(batch_group_count=2)
  with pytest.raises(ValueError, match="int8 convolutions take channels-last images"):
    int8().conv_general_dilated(x, w, (1, 1), "SAME")
  long = jax.ShapeDtypeStruct((1, 133_145), jnp.float32)
  with pytest.raises(ValueError, match="an int8 product over 133145 elements could overflow int32"):
    jax.eval_shape(lambda x: int8().dot_general(x, x, (((1,), (1,)), ((), ()))), long)
  with pytest.raises(ValueError, match="unknown act_rounding 'up' of int8; there are nearest, sto"):
    int8(Int8Config(act_rounding="up"))
  with pytest.raises(ValueError, match="unknown backend 'int4' of int8; there are None, int8"):
    int8(Int8Config(backend="int4"))
  with pytest.raises(ValueError, match="the int8 gradient 'ui8' needs the scale 'tensor'"):
    int8(Int8Config(gradient="ui8", grad_scale="channel"))
  with pytest.raises(ValueError, match="scale_groups of int8 must be at least 1, not 0"):
    int8(Int8Config(scale_groups=0))
  with pytest.raises(ValueError, match="the int8 gradient 'ui8' needs one group of scales"):
    int8(Int8Config(gradient="ui8", scale_groups=2))
  grouped = int8(Int8Config(scale_groups=2)).dot_general
  mapped = jnp.zeros((2, 4, 4))
  with pytest.raises(ValueError, match="cannot part a batch of 1 into equal groups"):
    grouped(mapped, mapped, (((2,), (1,)), ((0,), (0,))), key=KEY)
