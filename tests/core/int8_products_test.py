"""Integer products, bit for bit against numpy in int64."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fflax.core import int8_conv, int8_products
from fflax.core.int8_conv import Int8Conv
from fflax.core.int8_products import (
  MAX_CONTRACTION,
  int8_dot,
  int8_dot_input_gradient,
  int8_dot_weight_gradient,
)

BACKENDS = pytest.mark.parametrize("backend", [None, "int8", "emulate", "bfloat16"])


def random(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).integers(-127, 128, shape).astype(np.int8)


def extreme(*shape: int) -> np.ndarray:
  """All entries 127 in magnitude, so that every product of two such arrays may be the largest."""
  return np.full(shape, -127, np.int8)


def equal(got, want, dtype=np.int32):
  """Exactly; a float32 result is the integer, rounded once."""
  assert got.dtype == dtype
  np.testing.assert_array_equal(np.asarray(got), want.astype(dtype))


def check_dot(a, b, g, backend):
  """Forward, input gradient, weight gradient."""

  @jax.jit
  def all_three(a, b, g):
    return (
      int8_dot(a, b, backend=backend),
      int8_dot_input_gradient(g, b, backend=backend),
      int8_dot_weight_gradient(a, g, backend=backend),
    )

  out, da, db = all_three(*map(jnp.asarray, (a, b, g)))
  a, b, g = (x.astype(np.int64) for x in (a, b, g))
  equal(out, a @ b)
  equal(da, g @ np.swapaxes(b, -1, -2))
  equal(db, np.swapaxes(a, -1, -2) @ g, np.float32)


@BACKENDS
@pytest.mark.parametrize("batch", [(), (3,)])
def test_dot(backend, batch):
  check_dot(random(0, *batch, 17, 70), random(1, *batch, 70, 9), random(2, *batch, 17, 9), backend)


@BACKENDS
def test_dot_of_extremes_over_several_chunks(backend):
  # 1041 is the first length at which one float32 sum may be inexact; all odd sums here are odd.
  a, b = extreme(3, 2083), extreme(2083, 5)
  b[0] = 126
  check_dot(a, b, extreme(3, 5), backend)


@settings(max_examples=10)
@given(m=st.integers(1, 5), k=st.integers(1, 40), n=st.integers(1, 5), seed=st.integers(0, 99))
def test_dot_of_any_shape(m, k, n, seed):
  a, b = random(seed, m, k), random(seed + 1, k, n)
  equal(int8_dot(jnp.asarray(a), jnp.asarray(b)), a.astype(np.int64) @ b.astype(np.int64))


@pytest.mark.parametrize("backend", ["int8", "emulate"])
def test_longest_contraction(backend):
  a, b = jnp.asarray(extreme(1, MAX_CONTRACTION)), jnp.asarray(extreme(MAX_CONTRACTION, 1))
  assert int(int8_dot(a, b, backend=backend)[0, 0]) == 127**2 * MAX_CONTRACTION < 2**31
  assert 127**2 * (MAX_CONTRACTION + 1) >= 2**31


def test_longer_contractions_are_refused_forward_and_chunked_backward():
  a, b = (
    jnp.zeros((1, MAX_CONTRACTION + 1), jnp.int8),
    jnp.zeros((MAX_CONTRACTION + 1, 1), jnp.int8),
  )
  with pytest.raises(ValueError, match="an int8 product over 133145 elements could overflow int32"):
    int8_dot(a, b)
  with pytest.raises(ValueError, match="at most 133144"):
    int8_dot_input_gradient(a, jnp.zeros((1, MAX_CONTRACTION + 1), jnp.int8))
  rows = 2 * MAX_CONTRACTION + 5
  x, g = extreme(rows, 1), extreme(rows, 2)
  got = int8_dot_weight_gradient(jnp.asarray(x), jnp.asarray(g))
  np.testing.assert_allclose(got, np.full((1, 2), 127.0**2 * rows), rtol=1e-6)


def test_unknown_backend():
  with pytest.raises(ValueError, match="unknown int8 backend 'int4'; there are int8, emulate"):
    int8_dot(jnp.zeros((1, 1), jnp.int8), jnp.zeros((1, 1), jnp.int8), backend="int4")


def test_dot_under_transformations():
  a, b = jnp.asarray(random(0, 3, 4, 8)), jnp.asarray(random(1, 3, 8, 2))
  want = np.asarray(a, np.int64) @ np.asarray(b, np.int64)
  equal(jax.vmap(int8_dot)(a, b), want)
  equal(jax.lax.map(lambda ab: int8_dot(*ab), (a, b)), want)
  equal(jax.jit(jax.vmap(int8_dot_weight_gradient))(jnp.swapaxes(a, 1, 2), b), want, np.float32)


def oracle(conv: Int8Conv, x, w, g):
  """Forward, input gradient and weight gradient in int64, one entry of the kernel at a time."""
  x, w, g = (a.astype(np.int64) for a in (x, w, g))
  n, groups = x.ndim - 2, conv.groups
  low = [max(0, p[0]) for p in conv.pads]
  padded = np.pad(x, ((0, 0), *((max(0, a), max(0, b)) for a, b in conv.pads), (0, 0)))
  crop = tuple(
    slice(max(0, -a), s - max(0, -b))
    for (a, b), s in zip(conv.pads, padded.shape[1:-1], strict=True)
  )
  dpadded, out, dw = np.zeros_like(padded), np.zeros_like(g), np.zeros_like(w)
  view, dview = padded[(slice(None), *crop)], dpadded[(slice(None), *crop)]
  cg, og = w.shape[-2], w.shape[-1] // groups
  for tap in itertools.product(*map(range, w.shape[:n])):
    where = tuple(
      slice(i, i + (o - 1) * s + 1, s)
      for i, o, s in zip(tap, g.shape[1:-1], conv.strides, strict=True)
    )
    for k in range(groups):
      i, o = slice(k * cg, (k + 1) * cg), slice(k * og, (k + 1) * og)
      part = view[(slice(None), *where, i)]
      out[..., o] += part @ w[(*tap, slice(None), o)]
      dview[(slice(None), *where, i)] += g[..., o] @ w[(*tap, slice(None), o)].T
      dw[(*tap, slice(None), o)] = part.reshape(-1, cg).T @ g[..., o].reshape(-1, og)
  inner = tuple(slice(a, a + s) for a, s in zip(low, x.shape[1:-1], strict=True))
  return out, dpadded[(slice(None), *inner)], dw


def check_conv(conv: Int8Conv, make=random):
  x, w = make(0, *conv.image), make(1, *conv.kernel)
  g = make(2, *conv.out)

  @jax.jit
  def all_three(x, w, g):
    return conv.forward(x, w), conv.input_gradient(g, w), conv.weight_gradient(x, g)

  out, dx, dw = all_three(*map(jnp.asarray, (x, w, g)))
  want, want_dx, want_dw = oracle(conv, x, w, g)
  equal(out, want)
  equal(dx, want_dx)
  equal(dw, want_dw, np.float32)


SAME3, SAME5, NONE = ((1, 1), (1, 1)), ((2, 2), (2, 2)), ((0, 0), (0, 0))
PLAIN = {
  "same": ((2, 7, 6, 9), (3, 3, 9, 5), (1, 1), SAME3),
  "stride 2": ((2, 7, 8, 9), (3, 3, 9, 5), (2, 2), ((1, 1), (0, 1))),
  "stride 3": ((2, 8, 9, 8), (5, 5, 8, 3), (3, 3), SAME5),
  "strides differ": ((2, 8, 9, 8), (3, 3, 8, 3), (1, 2), SAME3),
  "valid": ((1, 9, 7, 8), (5, 3, 8, 4), (1, 1), NONE),
  "valid, stride 2, rows left over": ((2, 8, 8, 8), (3, 3, 8, 4), (2, 2), NONE),
  "explicit pads": ((2, 5, 6, 8), (3, 3, 8, 4), (1, 1), ((3, 0), (0, 4))),
  "crop": ((2, 8, 7, 8), (3, 3, 8, 4), (1, 1), ((-1, 0), (1, -2))),
  "even kernel": ((2, 5, 6, 8), (2, 4, 8, 4), (1, 1), ((0, 1), (1, 2))),
  "stem": ((2, 6, 6, 3), (3, 3, 3, 5), (1, 1), SAME3),
  "pointwise": ((2, 5, 6, 11), (1, 1, 11, 7), (1, 1), NONE),
  "pointwise, stride 2": ((2, 5, 6, 11), (1, 1, 11, 7), (2, 2), NONE),
  "one axis": ((2, 9, 8), (3, 8, 4), (2,), ((1, 1),)),
}


@pytest.mark.parametrize("case", PLAIN)
def test_conv(case):
  check_conv(Int8Conv(*PLAIN[case]))


@pytest.mark.parametrize("backend", ["emulate", "bfloat16"])
@pytest.mark.parametrize("case", ["same", "stride 2", "one axis"])
def test_conv_emulated(case, backend):
  check_conv(Int8Conv(*PLAIN[case], backend=backend))


GROUPED = {
  "grouped": ((2, 6, 5, 12), (3, 3, 4, 6), (1, 1), SAME3, 3),
  "grouped, stride 2": ((2, 6, 5, 12), (3, 3, 6, 4), (2, 2), SAME3, 2),
  "depthwise": ((2, 7, 6, 5), (3, 3, 1, 5), (1, 1), SAME3, 5),
  "depthwise, stride 2": ((3, 7, 8, 5), (5, 5, 1, 5), (2, 2), SAME5, 5),
  "depthwise, two kernels a channel": ((2, 5, 5, 4), (3, 3, 1, 8), (1, 1), SAME3, 4),
}


@pytest.mark.parametrize("case", GROUPED)
def test_grouped_conv(case):
  check_conv(Int8Conv(*GROUPED[case]))


@pytest.mark.parametrize("groups", [1, 9])
def test_conv_of_extremes(groups):
  # Sums of 9 * 1 * 1369 terms of 127 squared: above 2^24 in the depthwise weight gradient.
  conv = Int8Conv((1, 37, 37, 9), (3, 3, 9 // groups, 9), (1, 1), SAME3, groups)
  check_conv(conv, lambda seed, *shape: extreme(*shape))


@pytest.mark.parametrize("groups", [1, 8])
def test_weight_gradient_in_chunks_of_the_batch(groups, monkeypatch):
  # 288 or more bytes of patches an image: chunks of 4 of the 12 images.
  conv = Int8Conv((12, 2, 2, 8), (3, 3, 8 // groups, 8), (1, 1), SAME3, groups)
  monkeypatch.setattr(int8_conv, "_PATCH_BYTES", {"cpu": 5 * 288})
  check_conv(conv)
  text = str(jax.make_jaxpr(conv.weight_gradient)(*(jnp.zeros(conv.image, jnp.int8),) * 2))
  assert "scan" in text and "length=3" in text


@pytest.mark.parametrize("groups", [1, 2])
def test_weight_gradient_longer_than_int32(groups):
  # 2 * 300 * 300 positions: the sum of one entry of the kernel exceeds int32.
  conv = Int8Conv((2, 300, 300, 2), (1, 1, 2 // groups, 2), (1, 1), NONE, groups)
  x = jnp.asarray(extreme(*conv.image))
  got = jax.jit(conv.weight_gradient)(x, x)
  np.testing.assert_allclose(got, np.full(conv.kernel, 127.0**2 * 180_000), rtol=1e-6)
  assert 127**2 * 180_000 > 2**31


def test_conv_refuses_what_could_overflow():
  wide = Int8Conv((1, 3, 3, 14794), (3, 3, 14794, 8), (1, 1), SAME3)
  with pytest.raises(ValueError, match="over 133146 elements could overflow int32"):
    jax.eval_shape(wide.forward, *(jax.ShapeDtypeStruct(s, jnp.int8) for s in wide_shapes(wide)))
  large = Int8Conv((1, 400, 400, 8), (3, 3, 8, 8), (1, 1), SAME3)
  with pytest.raises(ValueError, match="over 160000 elements could overflow int32"):
    jax.eval_shape(
      large.weight_gradient, *(jax.ShapeDtypeStruct(large.image, jnp.int8) for _ in range(2))
    )


def wide_shapes(conv):
  return conv.image, conv.kernel


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_lowers_elsewhere_without_a_convolution_on_cuda(platform, monkeypatch):
  monkeypatch.setattr(jax, "default_backend", lambda: {"cuda": "gpu"}.get(platform, platform))
  conv = Int8Conv(*PLAIN["stride 2"])
  shapes = [jax.ShapeDtypeStruct(s, jnp.int8) for s in (conv.image, conv.kernel, conv.out)]

  def all_three(x, w, g):
    return conv.forward(x, w), conv.input_gradient(g, w), conv.weight_gradient(x, g)

  text = jax.jit(all_three).trace(*shapes).lower(lowering_platforms=(platform,)).as_text()
  assert ("stablehlo.convolution" in text) == (platform == "tpu")
  assert "stablehlo.dot_general" in text


@pytest.mark.parametrize(
  ("platform", "flags", "expected"),
  [
    ("cpu", {"avx512_vnni"}, "int8"),
    ("cpu", {"avx512_vnni", "avx512_bf16"}, "bfloat16"),
    ("cpu", {"amx_bf16", "amx_int8"}, "int8"),
    ("gpu", {"avx512_bf16"}, "int8"),
  ],
)
def test_the_default_backend_is_the_fast_one(monkeypatch, platform, flags, expected):
  """Bit-equal whichever it is; on a Zen 4 CPU the other is a quarter slower."""
  monkeypatch.setattr(jax, "default_backend", lambda: platform)
  monkeypatch.setattr(int8_products, "cpu_flags", lambda: frozenset(flags))
  monkeypatch.setattr(int8_products, "has_bfloat16_units", lambda: any("bf16" in f for f in flags))
  assert int8_products._default_backend() == expected
