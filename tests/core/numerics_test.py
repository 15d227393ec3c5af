"""How layers multiply, against numpy in float64 on operands rounded by ml_dtypes."""

import functools
import itertools
import math
import pathlib
import re
import statistics
import time

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from fflax.core import numerics

NATIVE = pytest.mark.parametrize("native", [False, True])


def rounded(x) -> np.ndarray:
  """To bfloat16, nearest even, by a library that is not XLA."""
  return np.asarray(x, np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def normal(seed: int, *shape: int) -> np.ndarray:
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def linen_dot(dot_general, x, w):
  """As flax.linen.Dense calls it."""
  return dot_general(x, w, (((x.ndim - 1,), (0,)), ((), ())), precision=None)


def linen_conv(conv_general_dilated, x, w, strides=(1, 1), padding="SAME", **kwargs):
  """As flax.linen.Conv calls it for images."""
  n = x.ndim
  image = (0, n - 1, *range(1, n - 1))
  numbers = lax.ConvDimensionNumbers(image, (n - 1, n - 2, *range(n - 2)), image)
  return conv_general_dilated(
    x,
    w,
    strides,
    padding,
    **{"lhs_dilation": (1,) * (n - 2), "rhs_dilation": (1,) * (n - 2), **kwargs},
    dimension_numbers=numbers,
    precision=None,
  )


def tolerance(terms: int) -> float:
  """Float32 accumulation of that many products of unit-normal numbers, worst case seen x 10."""
  return 3e-6 * math.sqrt(terms) + 3e-6


@functools.partial(jax.jit, static_argnums=0)  # one compilation instead of one per operation
def value_and_pullback(function, x, w, g):
  out, pullback = jax.vjp(function, x, w)
  return out, *pullback(g)


def numpy_conv(x, w, g, strides, pads):
  """Forward, input gradient and weight gradient in float64, one kernel tap at a time."""
  (kh, kw), (_, oh, ow, _) = w.shape[:2], g.shape
  padded = np.pad(x, ((0, 0), *pads, (0, 0)))
  out, dpadded, dw = np.zeros(g.shape), np.zeros(padded.shape), np.zeros(w.shape)
  for i, j in itertools.product(range(kh), range(kw)):
    rows = slice(i, i + strides[0] * (oh - 1) + 1, strides[0])
    columns = slice(j, j + strides[1] * (ow - 1) + 1, strides[1])
    out += padded[:, rows, columns] @ w[i, j]
    dpadded[:, rows, columns] += g @ w[i, j].T
    dw[i, j] = np.einsum("bhwi,bhwo->io", padded[:, rows, columns], g)
  (top, _), (left, _) = pads
  return out, dpadded[:, top : top + x.shape[1], left : left + x.shape[2]], dw


def test_registry_names():
  """A numerics under another's name would be reported wrongly in every result table."""
  assert {name: make().name for name, make in numerics.FLOAT_NUMERICS.items()} == {
    "float32": "float32",
    "bfloat16": "bfloat16",
  }


@pytest.mark.parametrize("name", list(numerics.FLOAT_NUMERICS))
def test_equal_settings_compare_equal(name):
  """Layers with unequal products would never be stacked, and every call would compile anew."""
  a, b = numerics.FLOAT_NUMERICS[name](), numerics.FLOAT_NUMERICS[name]()
  assert a == b
  assert hash(a) == hash(b)
  assert numerics.bfloat16(True) != numerics.bfloat16(False)


@settings(max_examples=5)  # every example compiles
@given(
  lead=st.lists(st.integers(1, 5), max_size=3), k=st.integers(1, 70), columns=st.integers(1, 40)
)
def test_float32_dot_is_numpy(lead, k, columns):
  x, w = normal(0, *lead, k), normal(1, k, columns)
  out = linen_dot(numerics.float32().dot_general, jnp.asarray(x), jnp.asarray(w))
  np.testing.assert_allclose(out, x.astype(float) @ w.astype(float), rtol=0, atol=tolerance(k))


@pytest.mark.parametrize("native", [False, True])
@settings(max_examples=5)  # every example compiles
@given(
  lead=st.lists(st.integers(0, 5), max_size=3), k=st.integers(1, 70), columns=st.integers(1, 40)
)
def test_bfloat16_dot_is_the_product_of_rounded_operands(native, lead, k, columns):
  """Value and both gradients; unrounded operands or a bfloat16 accumulator would pass by eye."""
  x, w, g = normal(0, *lead, k), normal(1, k, columns), normal(2, *lead, columns)
  out, dx, dw = value_and_pullback(
    functools.partial(linen_dot, numerics.bfloat16(native).dot_general), x, w, g
  )
  rows = math.prod(lead)
  flat_x, flat_g = rounded(x).reshape(rows, k), rounded(g).reshape(rows, columns)
  np.testing.assert_allclose(out, rounded(x) @ rounded(w), rtol=0, atol=tolerance(k))
  np.testing.assert_allclose(dx, rounded(g) @ rounded(w).T, rtol=0, atol=tolerance(columns))
  np.testing.assert_allclose(dw, flat_x.T @ flat_g, rtol=0, atol=tolerance(rows))
  assert out.dtype == dx.dtype == dw.dtype == jnp.float32


@NATIVE
def test_bfloat16_rounds_under_jit(native):
  """XLA may remove a cast to bfloat16 and back; then "bfloat16" results would be float32 ones."""
  x, w = normal(0, 16, 256), normal(1, 256, 32)
  out = jax.jit(functools.partial(linen_dot, numerics.bfloat16(native).dot_general))(x, w)
  exact = x.astype(float) @ w.astype(float)
  assert np.abs(out - rounded(x) @ rounded(w)).max() < tolerance(256)
  # 2^-9 relative error of each operand, uniform: sd of a term about 2^-9 * sqrt(2/3).
  assert np.abs(out - exact).std() == pytest.approx(2**-9 * math.sqrt(2 / 3 * 256), rel=0.5)


def test_long_contraction_accumulates_in_float32():
  """A bfloat16 accumulator stops counting at 256."""
  x, w = np.ones((1, 4096), np.float32), np.ones((4096, 1), np.float32)
  for native in (False, True):
    assert linen_dot(numerics.bfloat16(native).dot_general, x, w)[0, 0] == 4096


@NATIVE
def test_bfloat16_transformations_agree(native):
  """Eager, jit, vmap (of one or both operands) and scan are the same function and gradient."""
  x, w, g = normal(0, 3, 8, 20), normal(1, 3, 20, 12), normal(2, 3, 8, 12)
  dot = functools.partial(linen_dot, numerics.bfloat16(native).dot_general)

  def both(x, w, g):
    out, pullback = jax.vjp(dot, x, w)
    return out, *pullback(g)

  eager = [both(*(jnp.asarray(a[i]) for a in (x, w, g))) for i in range(3)]
  expected = [np.stack(parts) for parts in zip(*eager, strict=True)]
  jitted = [np.stack(p) for p in zip(*map(jax.jit(both), x, w, g), strict=True)]
  mapped = jax.vmap(both)(x, w, g)
  other_axes = jax.vmap(both, in_axes=(1, 2, 2), out_axes=1)(
    x.swapaxes(0, 1), np.moveaxis(w, 0, 2), np.moveaxis(g, 0, 2)
  )
  _, scanned = lax.scan(lambda c, a: (c, both(*a)), 0, (x, w, g))
  for results in (jitted, mapped, [a.swapaxes(0, 1) for a in other_axes], scanned):
    for result, value in zip(results, expected, strict=True):
      np.testing.assert_allclose(result, value, rtol=0, atol=tolerance(20))
  shared = jax.vmap(dot, in_axes=(0, None))(x, w[0])
  np.testing.assert_allclose(shared[0], expected[0][0], rtol=0, atol=tolerance(20))
  summed = jax.grad(lambda w: jax.vmap(dot, in_axes=(0, None))(x, w).sum())(jnp.asarray(w[0]))
  np.testing.assert_allclose(
    summed, rounded(x).sum((0, 1))[:, None] * np.ones((1, 12)), rtol=0, atol=tolerance(24)
  )


@NATIVE
def test_transposed_results_run(native):
  """XLA's CPU thunk for bfloat16 cannot write a transposed result: it fails when called."""
  x, w = normal(0, 64, 128), normal(1, 128, 96)
  dot = functools.partial(linen_dot, numerics.bfloat16(native).dot_general)
  out = jax.jit(lambda x, w: dot(x, w).T * 2)(x, w)
  np.testing.assert_allclose(out, 2 * (rounded(x) @ rounded(w)).T, rtol=0, atol=1e-4)
  dx, dw = jax.jit(jax.grad(lambda x, w: dot(x, w).sum(), (0, 1)))(x, w)
  dx_t, dw_t = jax.jit(
    lambda x, w: [g.T for g in jax.grad(lambda x, w: dot(x, w).sum(), (0, 1))(x, w)]
  )(x, w)
  np.testing.assert_array_equal(dx_t.T, dx)
  np.testing.assert_array_equal(dw_t.T, dw)


@NATIVE
def test_second_derivative(native):
  """sum((x w)^2) has the constant second derivative 2 x^T x in every column."""
  x, w = normal(0, 6, 4), normal(1, 4, 3)
  dot = functools.partial(linen_dot, numerics.bfloat16(native).dot_general)
  slope = jax.grad(lambda w: (dot(x, w) ** 2).sum())
  second = jax.grad(lambda w: slope(w)[0, 0])(jnp.asarray(w))
  expected = np.zeros((4, 3))
  expected[:, 0] = 2 * x.T.astype(float) @ x[:, 0]
  np.testing.assert_allclose(second, expected, rtol=0.03, atol=0.03)


@NATIVE
@pytest.mark.parametrize(
  ("x_shape", "w_shape", "dimensions", "einsum"),
  [
    ((5, 7), (6, 7), (((1,), (1,)), ((), ())), "mk,nk->mn"),
    ((7, 5), (7, 6), (((0,), (0,)), ((), ())), "km,kn->mn"),
    ((2, 5, 7), (2, 7, 6), (((2,), (1,)), ((0,), (0,))), "bmk,bkn->bmn"),
    ((4, 5, 7), (5, 7, 6), (((1, 2), (0, 1)), ((), ())), "abc,bcd->ad"),
    ((4, 7), (7, 2, 3), (((1,), (0,)), ((), ())), "ak,kbc->abc"),
    ((7,), (7, 3), (((0,), (0,)), ((), ())), "k,kn->n"),
  ],
)
def test_other_contractions(native, x_shape, w_shape, dimensions, einsum):
  """Contractions that Dense never asks for: right values, gradients to bfloat16 precision."""
  x, w = normal(0, *x_shape), normal(1, *w_shape)
  dot = numerics.bfloat16(native).dot_general
  out, pullback = jax.vjp(lambda x, w: dot(x, w, dimensions), jnp.asarray(x), jnp.asarray(w))
  left, rest = einsum.split(",")
  right, result = rest.split("->")
  g = normal(2, *out.shape)
  np.testing.assert_allclose(out, np.einsum(einsum, rounded(x), rounded(w)), rtol=0, atol=3e-5)
  dx, dw = pullback(jnp.asarray(g))
  np.testing.assert_allclose(dx, np.einsum(f"{result},{right}->{left}", g, w), atol=0.1)
  np.testing.assert_allclose(dw, np.einsum(f"{result},{left}->{right}", g, x), atol=0.1)
  assert dx.dtype == dw.dtype == jnp.float32


def test_preferred_element_type_sets_the_result():
  x, w = normal(0, 4, 8), normal(1, 8, 2)
  n = numerics.bfloat16()
  dims = (((1,), (0,)), ((), ()))
  assert n.dot_general(x, w, dims, preferred_element_type=jnp.bfloat16).dtype == jnp.bfloat16
  images, kernel = normal(0, 1, 4, 4, 2), normal(1, 3, 3, 2, 2)
  out = linen_conv(n.conv_general_dilated, images, kernel, preferred_element_type=jnp.bfloat16)
  assert out.dtype == jnp.bfloat16


def test_without_layout_control(monkeypatch):
  """A JAX without the experimental layouts still gives the same numbers."""
  x, w = normal(0, 9, 30), normal(1, 30, 5)

  def gradient():
    dot = numerics.bfloat16(True).dot_general
    return jax.grad(lambda w: (linen_dot(dot, x, w) ** 2).sum())(jnp.asarray(w))

  with_layouts = gradient()
  monkeypatch.setattr(numerics, "_HAS_LAYOUTS", False)
  np.testing.assert_allclose(gradient(), with_layouts, rtol=1e-5, atol=1e-4)
  assert numerics._use_native_dot(True) == (jax.default_backend() != "cpu")


@pytest.mark.parametrize(
  ("backend", "flags", "expected"),
  [
    ("gpu", "", True),
    ("cpu", "flags : sse2 avx512_bf16 amx_bf16 amx_tile", True),
    ("cpu", "flags : sse2 avx2 avx512_bf16", True),
    ("cpu", "flags : sse2 avx2 avx512f", False),
    ("cpu", "flags : sse2 amx_bf16x", False),
    ("cpu", None, False),
  ],
)
def test_has_bfloat16_units(monkeypatch, backend, flags, expected):
  """A CPU wrongly taken for one with such units would be about twice slower than in float32."""

  def read_text(self):
    if flags is None:
      raise FileNotFoundError(self)
    return flags

  monkeypatch.setattr(jax, "default_backend", lambda: backend)
  monkeypatch.setattr(pathlib.Path, "read_text", read_text)
  monkeypatch.setattr(numerics, "cpu_flags", numerics.cpu_flags.__wrapped__)
  assert numerics.has_bfloat16_units.__wrapped__() is expected


CONV_CASES = [
  ((7, 8), (3, 3), (1, 1), "SAME"),
  ((7, 8), (3, 3), (2, 2), "SAME"),
  ((7, 8), (3, 3), (2, 3), "VALID"),
  ((7, 8), (3, 3), (2, 2), ((2, 1), (0, 3))),
  ((6, 5), (2, 4), (1, 1), ((2, 1), (0, 3))),
  ((6, 5), (2, 4), (3, 2), "SAME"),
  ((5, 5), (1, 1), (1, 1), "VALID"),
  ((5, 5), (1, 1), (3, 2), "SAME"),
]


@pytest.mark.parametrize("native", [False, True])
@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CONV_CASES)
def test_bfloat16_conv_is_the_product_of_rounded_operands(native, size, kernel, strides, padding):
  """Value and both gradients, also where a stride leaves rows unread or the padding is uneven."""
  x, w = normal(0, 2, *size, 3), normal(1, *kernel, 3, 4)
  conv = functools.partial(
    linen_conv,
    numerics.bfloat16(native).conv_general_dilated,
    strides=strides,
    padding=padding,
  )
  g = normal(2, *jax.eval_shape(conv, x, w).shape)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, kernel, strides, padding)
  expected = numpy_conv(rounded(x), rounded(w), rounded(g), strides, padding)
  results = value_and_pullback(conv, x, w, g)
  terms = (12 * math.prod(kernel), 12 * math.prod(kernel), 2 * math.prod(g.shape[1:3]))
  for result, value, count in zip(results, expected, terms, strict=True):
    np.testing.assert_allclose(result, value, rtol=0, atol=tolerance(count))
    assert result.dtype == jnp.float32


def test_default_is_one_of_the_two():
  x, w = normal(0, 5, 60), normal(1, 60, 4)
  out = linen_dot(numerics.bfloat16().dot_general, x, w)
  same = linen_dot(numerics.bfloat16(numerics.has_bfloat16_units()).dot_general, x, w)
  np.testing.assert_array_equal(out, same)
  x, w = normal(0, 2, 6, 6, 3), normal(1, 3, 3, 3, 4)
  out = linen_conv(numerics.bfloat16().conv_general_dilated, x, w)
  chosen = jax.default_backend() != "cpu"
  same = linen_conv(numerics.bfloat16(chosen).conv_general_dilated, x, w)
  np.testing.assert_array_equal(out, same)


@NATIVE
def test_bfloat16_conv_under_jit_and_vmap(native):
  """Seeds under vmap must equal seeds run alone, kernels included."""
  x, w = normal(0, 3, 2, 6, 6, 3), normal(1, 3, 3, 3, 3, 4)
  conv = functools.partial(linen_conv, numerics.bfloat16(native).conv_general_dilated)

  def both(x, w):
    return conv(x, w), *jax.grad(lambda x, w: (conv(x, w) ** 2).sum(), (0, 1))(x, w)

  alone = [jax.jit(both)(a, b) for a, b in zip(x, w, strict=True)]
  expected = [np.stack(parts) for parts in zip(*alone, strict=True)]
  for result, value in zip(jax.jit(jax.vmap(both))(x, w), expected, strict=True):
    np.testing.assert_allclose(result, value, rtol=0, atol=2e-3)


@NATIVE
@pytest.mark.parametrize(
  ("kernel", "options"),
  [
    ((3, 3, 1, 4), {"feature_group_count": 4}),
    ((3, 3, 4, 2), {"rhs_dilation": (2, 2)}),
    ((3, 3, 4, 2), {"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 2))}),
  ],
)
def test_other_convolutions(native, kernel, options):
  """Grouped and dilated forms: right values, gradients to bfloat16 precision."""
  x, w = jnp.asarray(normal(0, 2, 7, 7, 4)), jnp.asarray(normal(1, *kernel))
  bfloat16 = functools.partial(
    linen_conv, numerics.bfloat16(native).conv_general_dilated, **options
  )
  plain = functools.partial(linen_conv, lax.conv_general_dilated, **options)
  rounded_x, rounded_w = (jnp.asarray(rounded(a), jnp.float32) for a in (x, w))
  np.testing.assert_allclose(bfloat16(x, w), plain(rounded_x, rounded_w), rtol=0, atol=3e-5)
  gradient = jax.grad(lambda x, w: (bfloat16(x, w) ** 2).sum(), (0, 1))(x, w)
  expected = jax.grad(lambda x, w: (plain(x, w) ** 2).sum(), (0, 1))(rounded_x, rounded_w)
  for a, b in zip(gradient, expected, strict=True):
    np.testing.assert_allclose(a, b, rtol=0.02, atol=0.02 * np.abs(b).max())


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="a fault of XLA's CPU compiler")
@pytest.mark.parametrize("name", list(numerics.FLOAT_NUMERICS))
@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
def test_convolutions_inside_loops_have_the_order_that_is_compiled_well(name, strides):
  """Any other order is a naive loop there: the same numbers, some forty times slower."""
  conv = functools.partial(
    linen_conv, numerics.FLOAT_NUMERICS[name]().conv_general_dilated, strides=strides
  )

  def steps(x, w):
    def one(_, state):
      x, w = state
      g, h = jax.grad(lambda x, w: jnp.sum(jnp.square(conv(x, w))), (0, 1))(x, w)
      return x - g, w - h

    return lax.fori_loop(0, 3, one, (x, w))

  x, w = jnp.ones((2, 6, 6, 3)), jnp.ones((3, 3, 3, 3))
  compiled = jax.jit(steps).lower(x, w).compile().as_text()
  orders = re.findall(r" convolution\(.*dim_labels=([^ ,]+)", compiled)
  assert len(orders) == 3  # forward, input gradient, weight gradient
  assert set(orders) == {"b01f_01io->b01f"}


@pytest.mark.parametrize(("size", "kernel", "strides", "padding"), CONV_CASES)
def test_float32_conv_and_its_gradients(size, kernel, strides, padding):
  """Value and both gradients against numpy: on a CPU the gradients are our own formulas."""
  x, w = normal(0, 2, *size, 3), normal(1, *kernel, 3, 4)
  conv = functools.partial(
    linen_conv, numerics.float32().conv_general_dilated, strides=strides, padding=padding
  )
  g = normal(2, *jax.eval_shape(conv, x, w).shape)
  if isinstance(padding, str):
    padding = lax.padtype_to_pads(size, kernel, strides, padding)
  numbers = [np.asarray(a, np.float64) for a in (x, w, g)]
  expected = numpy_conv(*numbers, strides, padding)
  terms = (12 * math.prod(kernel), 12 * math.prod(kernel), 2 * math.prod(g.shape[1:3]))
  for result, value, count in zip(value_and_pullback(conv, x, w, g), expected, terms, strict=True):
    np.testing.assert_allclose(result, value, rtol=0, atol=tolerance(count))
    assert result.dtype == jnp.float32


@pytest.mark.parametrize(
  "options", [{"lhs_dilation": (2, 1), "padding": ((1, 1), (1, 2))}, {"rhs_dilation": (2, 2)}]
)
def test_other_float32_convolutions_are_jax(options):
  x, w = jnp.asarray(normal(0, 2, 7, 7, 4)), jnp.asarray(normal(1, 3, 3, 4, 4))
  ours, jax_own = (
    functools.partial(linen_conv, conv, **options)
    for conv in (numerics.float32().conv_general_dilated, lax.conv_general_dilated)
  )
  np.testing.assert_array_equal(ours(x, w), jax_own(x, w))


def cpu_seconds(functions, args, repeats=8):
  """Median process CPU time of each function, interleaved; stable on a busy machine."""
  times = [[] for _ in functions]
  for repeat in range(repeats + 2):
    for i, function in enumerate(functions):
      start = time.process_time()
      jax.block_until_ready(function(*args))
      if repeat >= 2:
        times[i].append(time.process_time() - start)
  return [statistics.median(t) for t in times]


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="ratios of CPU time")
@pytest.mark.parametrize(("rows", "k", "columns"), [(512, 784, 1000), (512, 2000, 2000)])
def test_dense_speed(rows, k, columns):
  """With bfloat16 units clearly faster than float32 (a lost layout fix is not); else no slower."""
  x, w = jnp.asarray(normal(0, rows, k)), jnp.asarray(normal(1, k, columns))

  def step(dot):
    return jax.jit(jax.value_and_grad(lambda w, x: (linen_dot(dot, x, w) ** 2).mean()))

  dots = (numerics.float32().dot_general, numerics.bfloat16().dot_general)
  plain, fast = cpu_seconds([step(dot) for dot in dots], (w, x))
  print(f"\n{rows}x{k}x{columns}: float32 {1e3 * plain:.1f} ms, bfloat16 {1e3 * fast:.1f} ms")
  assert plain / fast > (1.8 if numerics.has_bfloat16_units() else 0.75)


@pytest.mark.slow
@pytest.mark.skipif(jax.default_backend() != "cpu", reason="ratios of CPU time")
@pytest.mark.parametrize("shape", [(32, 16, 16, 64), (32, 8, 8, 256)])
def test_conv_speed(shape):
  """At most 1.3 times the time of float32, gradients included."""
  x, w = jnp.asarray(normal(0, *shape)), jnp.asarray(normal(1, 3, 3, shape[-1], shape[-1]))

  def step(conv):
    return jax.jit(
      jax.value_and_grad(lambda w, x: (linen_conv(conv, x, w) ** 2).mean(), argnums=(0, 1))
    )

  convs = (numerics.float32().conv_general_dilated, numerics.bfloat16().conv_general_dilated)
  plain, rounding = cpu_seconds([step(conv) for conv in convs], (w, x))
  print(f"\n{shape}: float32 {1e3 * plain:.1f} ms, bfloat16 {1e3 * rounding:.1f} ms")
  assert rounding < 1.3 * plain
