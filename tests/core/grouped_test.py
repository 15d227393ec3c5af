"""Grouped convolution against numpy and XLA, and where the numerics use it."""

import functools
import re

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fflax.core.float_conv import FloatConv
from fflax.core.grouped import FEW_CHANNELS, UNROLLED, by_groups, is_thin
from fflax.core.numerics import bfloat16, float32

NUMBERS = ("NHWC", "HWIO", "NHWC")
ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="only CPUs need it")
CASES = [
  ((1, 1), "SAME"),
  ((2, 2), "SAME"),
  ((2, 1), ((2, 0), (0, 1))),
  ((1, 1), ((0, -1), (1, 2))),
]


def conv(product, x, w, groups, strides=(1, 1), padding="SAME"):
  return product(
    x, w, strides, padding, dimension_numbers=NUMBERS, feature_group_count=groups, precision=None
  )


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def rounded(x):
  """To bfloat16, nearest even, by a library that is not XLA."""
  return np.asarray(x).astype(ml_dtypes.bfloat16).astype(np.float32)


@settings(max_examples=8)
@given(
  groups=st.integers(1, 4), inside=st.integers(1, 3), outside=st.integers(1, 3), seed=st.integers()
)
def test_groups_own_neighbouring_channels(groups, inside, outside, seed):
  """1x1 kernels of integers against numpy, one group at a time: which channel belongs to whom."""
  rng = np.random.default_rng(abs(seed))
  x = rng.integers(-9, 9, (2, 3, 2, groups * inside)).astype(np.float32)
  w = rng.integers(-9, 9, (1, 1, inside, groups * outside)).astype(np.float32)
  out = by_groups(lambda x, w: x @ w[0, 0], jnp.asarray(x), jnp.asarray(w), groups)
  for q in range(groups):
    own, result = slice(q * inside, (q + 1) * inside), slice(q * outside, (q + 1) * outside)
    np.testing.assert_array_equal(out[..., result], x[..., own] @ w[0, 0, :, result])


@pytest.mark.parametrize(("strides", "padding"), CASES)
@pytest.mark.parametrize("numerics", [float32(), bfloat16()], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("inside", [FEW_CHANNELS, FEW_CHANNELS + 1])
def test_values_and_gradients_in_a_loop(numerics, strides, padding, inside):
  """As XLA's own grouped convolution, outside of any loop, of the same rounded numbers."""
  x, w = normal(0, 2, 2, 7, 6, 3 * inside), normal(1, 3, 3, inside, 12)
  ours = functools.partial(
    conv, numerics.conv_general_dilated, groups=3, strides=strides, padding=padding
  )
  exact = functools.partial(
    conv, lax.conv_general_dilated, groups=3, strides=strides, padding=padding
  )
  g = normal(2, 2, *jax.eval_shape(ours, x[0], w).shape)

  def pullback(product, x, w, g):
    out, pull = jax.vjp(product, x, w)
    return out, *pull(g)

  @jax.jit
  def steps(x, w, g):
    return lax.scan(lambda _, xg: (None, pullback(ours, xg[0], w, xg[1])), None, (x, g))[1]

  cast = rounded if numerics.name == "bfloat16" else np.asarray
  want = jax.jit(functools.partial(pullback, exact))
  for n, got in enumerate(zip(*steps(x, w, g), strict=True)):
    for a, b in zip(got, want(cast(x[n]), cast(w), cast(g[n])), strict=True):
      np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)
      assert a.dtype == jnp.float32


def test_many_groups_are_a_loop_and_equal_few():
  x, w = normal(0, 2, 4, 4, 2 * (UNROLLED + 1)), normal(1, 3, 3, 2, UNROLLED + 1)
  dense = functools.partial(conv, lax.conv_general_dilated, groups=1)
  many = functools.partial(by_groups, dense, groups=UNROLLED + 1)
  assert "scan" in str(jax.make_jaxpr(many)(x, w))
  few = functools.partial(by_groups, dense, groups=UNROLLED)
  assert "scan" not in str(jax.make_jaxpr(few)(x[..., :-2], w[..., :-1]))
  np.testing.assert_allclose(many(x, w)[..., :-1], few(x[..., :-2], w[..., :-1]), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [float32, bfloat16])
def test_no_group_meets_another(make):
  """Exact zeros: in the Jacobian, and of what another group's infinities do to this one."""
  x, w, groups = normal(0, 1, 3, 2, 6), normal(1, 3, 3, 2, 9), 3

  def by_channel(x, w):
    return conv(make().conv_general_dilated, x, w, groups).sum((0, 1, 2))

  dx, dw = jax.jit(jax.jacobian(by_channel, (0, 1)))(x, w)
  reads = np.abs(dx).sum((1, 2, 3)).reshape(3, 3, 3, 2).sum((1, 3))  # [out group, in group]
  np.testing.assert_array_equal(reads > 0, np.eye(3, dtype=bool))
  learns = np.abs(dw).sum((1, 2, 3)).reshape(9, 9)  # [out channel, channel of the kernel]
  np.testing.assert_array_equal(learns > 0, np.eye(9, dtype=bool))
  x[..., :2] = np.inf
  out = jax.jit(by_channel)(x, w)
  assert np.isfinite(out[3:]).all() and not np.isfinite(out[:3]).any()


@ON_CPU
@pytest.mark.parametrize("make", [float32, bfloat16])
@pytest.mark.parametrize(("inside", "products"), [(FEW_CHANNELS + 1, 3), (FEW_CHANNELS, 2)])
def test_no_grouped_convolution_is_left(make, inside, products):
  """Inside a loop only dense convolutions, in the one order that XLA compiles well.

  A group's forward, input gradient and weight gradient; the forward of thin ones is none.
  """

  def steps(x, w):
    def one(_, state):
      x, w = state
      product = make().conv_general_dilated
      g, h = jax.grad(lambda x, w: jnp.sum(conv(product, x, w, 2) ** 2), (0, 1))(x, w)
      return x - g, w - h

    return lax.fori_loop(0, 3, one, (x, w))

  x, w = jnp.ones((2, 6, 6, 2 * inside)), jnp.ones((3, 3, inside, 4))
  compiled = jax.jit(steps).lower(x, w).compile().as_text()
  convolutions = re.findall(r" convolution\(.*", compiled)
  assert len(convolutions) == 2 * products
  assert all("dim_labels=b01f_01io->b01f" in c for c in convolutions)
  assert not any("group_count" in c for c in convolutions)


@ON_CPU
def test_an_unused_input_gradient_is_not_computed():
  """A strictly local layer never needs it, and it is a third of the work."""

  def step(x, w):
    return jax.grad(lambda w: jnp.sum(conv(float32().conv_general_dilated, x, w, 2) ** 2))(w)

  x, w = jnp.ones((2, 6, 6, 10)), jnp.ones((3, 3, 5, 4))
  compiled = jax.jit(step).lower(x, w).compile().as_text()
  assert len(re.findall(r" convolution\(", compiled)) == 2 * 2


@pytest.mark.parametrize("make", [float32, bfloat16])
@pytest.mark.parametrize("inside", [FEW_CHANNELS, FEW_CHANNELS + 1])
def test_a_batch_in_parts(monkeypatch, make, inside):
  """Values and gradients of six images, two by two in a loop, as of one grouped convolution."""
  monkeypatch.setattr("fflax.core.float_conv._PART_BYTES", 2 * 4 * 36 * (3 * inside + 6))
  x, w = normal(0, 6, 6, 6, 3 * inside), normal(1, 3, 3, inside, 6)
  g = normal(2, 6, 6, 6, 6)

  def pullback(product, x, w, g):
    out, pull = jax.vjp(functools.partial(conv, product, groups=3), x, w)
    return out, *pull(g)

  got = jax.jit(functools.partial(pullback, make().conv_general_dilated))
  if jax.default_backend() == "cpu":
    assert str(jax.make_jaxpr(got)(x, w, g)).count("length=3") == 3  # all three products
  cast = rounded if make is bfloat16 else np.asarray
  want = jax.jit(functools.partial(pullback, lax.conv_general_dilated))(cast(x), cast(w), cast(g))
  for a, b in zip(got(x, w, g), want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ("channels", "kernel", "groups"),
  [(5, (3, 3, 2, 4), 2), (4, (3, 3, 2, 5), 2), (4, (3, 3, 4, 4), 2)],
)
def test_channels_that_do_not_divide(channels, kernel, groups):
  with pytest.raises(ValueError, match=f"Got {groups} groups for images of shape"):
    FloatConv((1, 1), ((1, 1), (1, 1)), groups)(jnp.ones((1, 4, 4, channels)), jnp.ones(kernel))


@ON_CPU
@pytest.mark.parametrize("inside", [2, FEW_CHANNELS + 1])
@pytest.mark.parametrize("batch", [0, 3])
def test_many_groups_and_an_empty_batch(batch, inside):
  """More groups than are written out, values and gradients."""
  groups = UNROLLED + 1
  x, w = normal(0, batch, 4, 4, inside * groups), normal(1, 3, 3, inside, groups)
  g = normal(2, batch, 4, 4, groups)

  def pullback(product, x, w, g):
    out, pull = jax.vjp(functools.partial(conv, product, groups=groups), x, w)
    return out, *pull(g)

  got = jax.jit(functools.partial(pullback, float32().conv_general_dilated))(x, w, g)
  want = jax.jit(functools.partial(pullback, lax.conv_general_dilated))(x, w, g)
  for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ("kernel", "groups", "thin"),
  [
    ((3, 3, 2, 80), 10, True),
    ((3, 3, 4, 80), 10, True),
    ((3, 3, 5, 50), 10, False),
    ((3, 3, 4, 512), 2, False),
    ((5, 5, 4, 128), 2, False),
  ],
)
def test_thin_groups_are_those_that_gain(kernel, groups, thin):
  assert is_thin(kernel, groups) == thin
