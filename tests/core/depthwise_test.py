"""Depthwise convolution against numpy, and where the numerics use it."""

import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fflax.core.depthwise import depthwise_conv
from fflax.core.numerics import bfloat16, float32

NUMBERS = ("NHWC", "HWIO", "NHWC")


def by_hand(x, w, strides, pads):
  """The sum over the window, one output pixel at a time."""
  x = np.pad(x, ((0, 0), *pads, (0, 0)))
  sizes = [(n - k) // s + 1 for n, k, s in zip(x.shape[1:3], w.shape[:2], strides, strict=True)]
  out = np.zeros((x.shape[0], *sizes, x.shape[-1]), x.dtype)
  for r in range(sizes[0]):
    for c in range(sizes[1]):
      top, left = r * strides[0], c * strides[1]
      window = x[:, top : top + w.shape[0], left : left + w.shape[1]]
      out[:, r, c] = (window * w[None, :, :, 0]).sum((1, 2))
  return out


@settings(max_examples=10)
@given(
  size=st.tuples(st.integers(3, 7), st.integers(3, 7)),
  kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  pads=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
  channels=st.integers(1, 3),
)
def test_integers_are_exact(size, kernel, strides, pads, channels):
  """Every window, at every edge; an off-by-one span would drop the last row."""
  rng = np.random.default_rng(0)
  x = rng.integers(-127, 128, (2, *size, channels), dtype=np.int32)
  w = rng.integers(-127, 128, (*kernel, 1, channels), dtype=np.int32)
  out = depthwise_conv(jnp.asarray(x), jnp.asarray(w), strides, pads)
  np.testing.assert_array_equal(out, by_hand(x, w, strides, pads))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("numerics", [float32(), bfloat16()], ids=["float32", "bfloat16"])
def test_numerics_and_gradients(numerics, kernel, stride):
  """The numerics' grouped convolution: operands, result and both gradients, as XLA's own."""
  rng = np.random.default_rng(1)
  x = rng.standard_normal((2, 6, 5, 4)).astype(np.float32)
  w = rng.standard_normal((kernel, kernel, 1, 4)).astype(np.float32)
  if numerics.name == "bfloat16":
    operands = [a.astype(ml_dtypes.bfloat16).astype(np.float32) for a in (x, w)]
  else:
    operands = [x, w]
  options = {"dimension_numbers": NUMBERS, "feature_group_count": 4}
  args = ((stride, stride), "SAME")
  exact = functools.partial(lax.conv_general_dilated, window_strides=args[0], padding=args[1])
  ours = functools.partial(numerics.conv_general_dilated, window_strides=args[0], padding=args[1])

  @jax.jit
  def both(x, w, a, b):
    want, pull = jax.vjp(functools.partial(exact, **options), a, b)
    got, our_pull = jax.vjp(functools.partial(ours, **options), x, w)
    return want, pull(jnp.cos(want)), got, our_pull(jnp.cos(want))

  want, gradients, got, our_gradients = both(x, w, *operands)
  np.testing.assert_allclose(got, want, atol=2e-5)
  step = 2**-7 if numerics.name == "bfloat16" else 1e-5  # the finished gradient is rounded
  for a, b in zip(our_gradients, gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=step, atol=2e-5 if step < 1e-4 else 2e-3)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only CPUs are slow there")
@pytest.mark.parametrize("make", [float32, bfloat16])
def test_no_grouped_convolution_is_left_on_a_cpu(make):
  """In a training step one of them would take longer than all the rest."""
  x, w = jnp.zeros((2, 6, 6, 4)), jnp.zeros((3, 3, 1, 4))

  def run(x, w, groups):
    out = make().conv_general_dilated(
      x, w, (1, 1), "SAME", dimension_numbers=NUMBERS, feature_group_count=groups
    )
    return out.sum()

  assert "conv_general" not in str(jax.make_jaxpr(jax.grad(run, (0, 1)), static_argnums=2)(x, w, 4))
  two = jnp.zeros((3, 3, 2, 4))  # gradients of groups of two channels are no shifts
  assert "conv_general" in str(jax.make_jaxpr(jax.grad(run, (0, 1)), static_argnums=2)(x, two, 2))


@settings(max_examples=5)
@given(
  size=st.tuples(st.integers(3, 6), st.integers(3, 6)),
  kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
  pads=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)
def test_gradients_are_the_adjoint(size, kernel, strides, pads):
  """`<g, conv(x, w)> = <dx, x> = <dw, w>` for every geometry: the product is linear in each."""
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 2, *size, 3)).astype(np.float32)
  w, v = rng.standard_normal((2, *kernel, 1, 3)).astype(np.float32)
  g = rng.standard_normal(by_hand(x, w, strides, pads).shape).astype(np.float32)
  f = functools.partial(depthwise_conv, strides=strides, pads=pads)
  _, pull = jax.vjp(f, jnp.asarray(x), jnp.asarray(w))
  dx, dw = pull(jnp.asarray(g))
  # Against other arguments than those it was differentiated at.
  want = [(g * by_hand(y, w, strides, pads)).sum(), (g * by_hand(x, v, strides, pads)).sum()]
  np.testing.assert_allclose([(dx * y).sum(), (dw * v).sum()], want, rtol=1e-4, atol=1e-4)
