"""Winograd's convolution against numpy in float64, and where the numerics use it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from jax import lax

from fflax.core import winograd
from fflax.core.float_conv import FloatConv
from fflax.core.numerics import bfloat16, float32

ON_CPU = pytest.mark.skipif(jax.default_backend() != "cpu", reason="used on CPUs only")
NUMBERS = ("NHWC", "HWIO", "NHWC")
IMAGE, KERNEL = (8, 10, 10, 32), (3, 3, 32, 64)


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def patches(x, pads):
  """`[B, H', W', 3, 3, C]` of images with zeros around them or cropped, float64."""
  x = np.asarray(x, np.float64)
  for axis, (low, high) in enumerate(pads, start=1):
    around = [(0, 0)] * 4
    around[axis] = (max(low, 0), max(high, 0))
    x = np.pad(x, around)
    x = np.take(x, np.arange(max(-low, 0), x.shape[axis] - max(-high, 0)), axis)
  return np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2)).transpose(0, 1, 2, 4, 5, 3)


# Every example is two compilations: none is made smaller.
@settings(max_examples=10, deadline=None, phases=(Phase.generate,))
@given(
  batch=st.integers(1, 6),
  size=st.tuples(st.integers(5, 8), st.integers(5, 8)),
  channels=st.tuples(st.integers(1, 4), st.integers(1, 4)),
  pads=st.tuples(*[st.tuples(st.integers(-1, 2), st.integers(-1, 2))] * 2),
  least=st.sampled_from([1, 512]),
)
def test_integers_are_exact(batch, size, channels, pads, least):
  """Any size, even and odd, any padding, whole batches and parts: sums of small numbers, exactly.

  The transforms divide by 4 only, so all intermediate numbers are exact as well.
  """
  rng = np.random.default_rng(0)
  x = rng.integers(-9, 9, (batch, *size, channels[0])).astype(np.float32)
  w = rng.integers(-9, 9, (3, 3, *channels)).astype(np.float32)
  seen = patches(x, pads)
  expected = np.einsum("bhwijc,ijco->bhwo", seen, w)
  g = rng.integers(-9, 9, expected.shape).astype(np.float32)
  with pytest.MonkeyPatch.context() as patched:
    patched.setattr(winograd, "_LEAST_TILES", least)
    patched.setattr(winograd, "_NUMBERS", least)
    out = jax.jit(lambda x, w: winograd.winograd_conv(x, w, pads))(x, w)
    dw = jax.jit(lambda x, g: winograd.winograd_weight_gradient(x, g, pads))(x, g)
  np.testing.assert_array_equal(out, expected)
  np.testing.assert_array_equal(dw, np.einsum("bhwijc,bhwo->ijco", seen, g))


def pullback(conv, x, w, g):
  out, pull = jax.vjp(conv, x, w)
  return out, *pull(g)


def linen(product, padding="SAME", strides=(1, 1)):
  return lambda x, w: product(x, w, strides, padding, dimension_numbers=NUMBERS)


@ON_CPU
@pytest.mark.parametrize("padding", ["SAME", "VALID", ((2, 0), (0, 1))])
def test_all_three_products_are_winograd_and_float32(padding):
  """The value and both gradients, in a loop as in training: errors of some roundings."""
  x, w = normal(0, 2, *IMAGE), normal(1, *KERNEL)
  ours = linen(float32().conv_general_dilated, padding)
  g = normal(2, 2, *jax.eval_shape(ours, x[0], w).shape)

  @jax.jit
  def steps(x, w, g):
    return lax.scan(lambda _, xg: (None, pullback(ours, xg[0], w, xg[1])), None, (x, g))[1]

  assert " convolution(" not in steps.lower(x, w, g).compile().as_text()
  got = steps(x, w, g)
  pads = padding
  if isinstance(padding, str):
    pads = lax.padtype_to_pads(IMAGE[1:3], (3, 3), (1, 1), padding)
  back = [(2 - low, 2 - high) for low, high in pads]
  for n in range(2):
    seen = patches(x[n], pads)
    expected = (
      np.einsum("bhwijc,ijco->bhwo", seen, w),
      np.einsum("bhwijo,ijco->bhwc", patches(g[n], back), w[::-1, ::-1]),
      np.einsum("bhwijc,bhwo->ijco", seen, g[n]),
    )
    for result, value in zip(got, expected, strict=True):
      np.testing.assert_allclose(result[n], value, rtol=0, atol=1e-6 * np.abs(value).max())
      assert result.dtype == jnp.float32


@ON_CPU
def test_rounded_operands_are_rounded_before_they_are_transformed():
  x, w, g = normal(0, *IMAGE), normal(1, *KERNEL), normal(2, *IMAGE[:3], KERNEL[-1])
  cast = lambda a: np.asarray(a.astype(jnp.bfloat16).astype(np.float32))  # noqa: E731
  got = jax.jit(lambda *a: pullback(linen(bfloat16().conv_general_dilated), *a))(x, w, g)
  same = jax.jit(lambda *a: pullback(linen(float32().conv_general_dilated), *a))(
    *map(cast, (x, w, g))
  )
  for a, b in zip(got, same, strict=True):
    np.testing.assert_array_equal(a, b)


@ON_CPU
def test_seeds_under_vmap():
  """Kernels of several seeds side by side, each with its own images; both gradients."""
  x, w = normal(0, 2, *IMAGE), normal(1, 2, *KERNEL)
  product = linen(float32().conv_general_dilated)
  both = jax.value_and_grad(lambda x, w: (product(x, w) ** 2).mean(), (0, 1))
  together = jax.jit(jax.vmap(both))(x, w)
  for n in range(2):
    alone = jax.jit(both)(x[n], w[n])
    for a, b in zip(jax.tree.leaves(together), jax.tree.leaves(alone), strict=True):
      np.testing.assert_allclose(a[n], b, rtol=1e-5, atol=1e-6)


@ON_CPU
@pytest.mark.parametrize("image", [(512, 2, 2, 32), (64, 8, 1, 32), (0, 8, 8, 32)])
def test_nothing_comes_out(image):
  """No output rows or columns, or no images: shapes as of JAX's own."""
  x, w = jnp.ones(image), jnp.ones(KERNEL)
  ours, plain = (
    linen(product, "VALID")(x, w)
    for product in (float32().conv_general_dilated, lax.conv_general_dilated)
  )
  assert ours.shape == plain.shape and ours.size == 0


@ON_CPU
@pytest.mark.parametrize(
  ("image", "kernel", "strides"),
  [
    (IMAGE, (3, 3, 32, 32), (1, 1)),
    ((8, 8, 8, 16), (3, 3, 16, 64), (1, 1)),
    (IMAGE, KERNEL, (2, 1)),
    (IMAGE, (1, 1, 32, 64), (1, 1)),
    (IMAGE, (5, 5, 32, 64), (1, 1)),
    ((2, 8, 8, 32), KERNEL, (1, 1)),
    ((1, 224, 224, 64), (3, 3, 64, 64), (1, 1)),
  ],
)
def test_where_it_would_not_pay_the_convolution_is_plain(image, kernel, strides):
  conv = FloatConv(strides, ((1, 1), (1, 1)))
  x, w = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (image, kernel))
  assert "conv_general_dilated" in str(jax.make_jaxpr(conv.forward)(x, w))
  assert "conv_general_dilated" not in str(
    jax.make_jaxpr(FloatConv((1, 1), conv.pads).forward)(jnp.zeros(IMAGE), jnp.zeros(KERNEL))
  )
