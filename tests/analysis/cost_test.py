"""Counts against closed forms, against XLA's own flops, and through every transformation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from fflax.analysis.cost import TAG, count
from fflax.analysis.counts import Counts, Key, split_batch
from fflax.core.depthwise import depthwise_conv
from fflax.core.numerics import bfloat16, float32

NUMBERS = ("NHWC", "HWIO", "NHWC")
MATRIX = (((1,), (0,)), ((), ()))


def shape(*sizes: int, dtype=jnp.float32) -> jax.ShapeDtypeStruct:
  return jax.ShapeDtypeStruct(sizes, dtype)


def conv(x, w, stride=1, padding="SAME", dilation=1, groups=1):
  return lax.conv_general_dilated(
    x, w, (stride,) * 2, padding, None, (dilation,) * 2, NUMBERS, groups
  )


def test_a_matrix_product():
  counts = count(jnp.dot, shape(3, 4), shape(4, 5))
  assert counts.items == {
    Key("macs", "real", "float32", "forward"): 60,
    Key("macs_valid", "real", "float32", "forward"): 60,
    Key("bits", "products", "float32", "forward"): 32 * (12 + 20 + 15),
  }
  assert counts.notes == ()
  batched = count(jax.vmap(jnp.dot), shape(7, 3, 4), shape(7, 4, 5))
  assert batched.total("macs") == 7 * 60


def roles(forward, x, w):
  """The three products of a layer as functions of the operands that they need."""
  y = jax.eval_shape(forward, x, w)
  pull_x = lambda g, w: jax.vjp(lambda x: forward(x, w), jnp.zeros(x.shape, x.dtype))[1](g)  # noqa: E731
  pull_w = lambda g, x: jax.vjp(lambda w: forward(x, w), jnp.zeros(w.shape, w.dtype))[1](g)  # noqa: E731
  return {"forward": (forward, x, w), "dX": (pull_x, y, w), "dW": (pull_w, y, x)}


LAYERS = {
  "spec": (dict(), (1, 14, 14, 80), (3, 3, 80, 240)),
  "groups": (dict(groups=10), (2, 14, 14, 240), (3, 3, 24, 480)),
  "stride": (dict(stride=2), (2, 9, 9, 3), (3, 3, 3, 4)),
  "stride, cut": (dict(stride=2, padding="VALID"), (2, 8, 8, 3), (3, 3, 3, 4)),
  "dilation": (dict(dilation=2), (2, 9, 8, 3), (3, 3, 3, 4)),
  "all": (dict(stride=2, dilation=2, groups=3), (2, 11, 10, 6), (3, 2, 2, 9)),
}
DENSE = {  # output positions, taps, channels in of a group, channels out, batch
  "spec": 14 * 14 * 9 * 80 * 240,
  "groups": 40_642_560,
  "stride": 2 * 5 * 5 * 9 * 3 * 4,
  "stride, cut": 2 * 3 * 3 * 9 * 3 * 4,
  "dilation": 2 * 9 * 8 * 9 * 3 * 4,
  "all": 2 * 6 * 5 * 6 * 2 * 9,
}


@pytest.mark.parametrize("case", LAYERS)
def test_convolutions_in_all_roles(case):
  """Dense MACs are the closed form, valid MACs half of the flops that the compiler counts."""
  options, x, w = LAYERS[case]
  valid = set()
  for role, (fn, *args) in roles(functools.partial(conv, **options), shape(*x), shape(*w)).items():
    counts = count(fn, *args)
    flops = jax.jit(fn).lower(*args).compile().cost_analysis()["flops"]
    assert counts.total("macs") == DENSE[case], role
    assert 2 * counts.total("macs_valid") == flops, role
    valid.add(counts.total("macs_valid"))
  assert len(valid) == 1
  if case == "spec":
    assert valid == {61_440_000 // 2}
    assert DENSE[case] == 67_737_600 // 2


@pytest.mark.parametrize(
  "numerics", [float32(), bfloat16(False), bfloat16(True)], ids=["float32", "rounded", "native"]
)
def test_the_numerics_of_the_library_are_attributed(numerics):
  """Their own gradients, written as custom_vjp, are backward products; the dead dX is dropped."""

  def loss(w, kernel, x, image):
    dense = numerics.dot_general(x, w, MATRIX)
    maps = numerics.conv_general_dilated(image, kernel, (2, 2), "SAME", dimension_numbers=NUMBERS)
    return jnp.sum(dense**2) + jnp.sum(maps**2)

  args = shape(8, 5), shape(3, 3, 3, 4), shape(6, 8), shape(2, 7, 7, 3)
  macs = 6 * 8 * 5 + 2 * 4 * 4 * 9 * 3 * 4
  local = count(jax.jit(jax.grad(loss, argnums=(0, 1))), *args)
  assert local.by("macs", "phase") == {("backward",): macs, ("forward",): macs}
  full = count(jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3))), *args)
  assert full.by("macs", "phase") == {("backward",): 2 * macs, ("forward",): macs}


def tagged(w, x, kind="binary_binary"):
  with jax.named_scope(TAG + "int8"), jax.named_scope(TAG + kind):
    product = x @ w
  return jnp.sum(product**2)


@pytest.mark.parametrize(
  ("wrap", "times"),
  [
    (lambda f: f, 1),
    (jax.jit, 1),
    (lambda f: jax.vmap(f, in_axes=(None, 0)), 3),
    (lambda f: lambda w, x: lax.map(lambda one: f(w, one), x), 3),
    (lambda f: jax.jit(jax.vmap(jax.jit(f), in_axes=(None, 0))), 3),
  ],
)
def test_tags_survive_transformations_and_the_innermost_wins(wrap, times):
  x = shape(3, 4, 8) if times == 3 else shape(4, 8)
  counts = count(wrap(jax.grad(tagged, argnums=(0, 1))), shape(8, 5), x)
  assert counts.by("macs", "kind", "phase") == {
    ("binary_binary", "backward"): 2 * times * 160,
    ("binary_binary", "forward"): times * 160,
  }


def test_kinds_and_storage_without_and_with_tags():
  int8 = functools.partial(lax.dot, preferred_element_type=jnp.int32)
  eight = dict(dtype=jnp.int8)
  found = count(int8, shape(3, 4, **eight), shape(4, 5, **eight))
  assert found.by("macs", "kind", "dtype") == {("int8", "int8"): 60}
  assert found.total("bits") == 8 * 47
  whole = count(lax.dot, shape(3, 4, dtype=jnp.int32), shape(4, 5, dtype=jnp.int32))
  assert whole.by("macs", "kind", "dtype") == {("integer", "int32"): 60}
  half = count(lambda x, w: tagged(w, x, "bfloat16"), shape(3, 4), shape(4, 5))
  assert half.by("macs", "kind", "dtype") == {("real", "bfloat16"): 60}
  assert half.total("bits") == 16 * 32 + 32 * 15
  fake = count(lambda x, w: tagged(w, x, "int8"), shape(3, 4), shape(4, 5))
  assert fake.by("macs", "kind", "dtype") == {("int8", "int8"): 60}
  assert fake.total("bits") == 8 * 47


def test_a_product_of_shifted_multiplications_can_say_that_it_is_one():
  def layer(x, w):
    with jax.named_scope(TAG + "int8"):
      return depthwise_conv(x, w, (1, 1), ((1, 1), (1, 1)))

  counts = count(layer, shape(2, 6, 4, 5), shape(3, 3, 1, 5))
  assert counts.by("macs", "kind", "dtype") == {("int8", "int8"): 2 * 6 * 4 * 9 * 5}
  assert counts.total("ops") == 0
  untagged = count(jnp.multiply, shape(3), shape(3))
  assert untagged.total("macs") == 0


def test_loops_branches_and_recomputation():
  def five(w, x):
    return lax.scan(lambda x, _: (x @ w, None), x, None, length=5)[0]

  args = shape(8, 8), shape(4, 8)
  assert count(five, *args).total("macs") == 5 * 256
  counts = count(lambda w, x: lax.fori_loop(0, 5, lambda _, x: x @ w, x), *args)
  assert counts.total("macs") == 5 * 256

  branches = (lambda w, x: x, lambda w, x: x @ w, lambda w, x: x @ w @ w)
  counts = count(lambda i, w, x: lax.switch(i, branches, w, x), shape(dtype=jnp.int32), *args)
  assert counts.total("macs") == 2 * 256
  assert counts.notes == ("conditionals count as their dearest branch",)

  def until(w, x):
    return lax.while_loop(lambda x: x[0, 0] < 1, lambda x: x @ w, x)

  with pytest.raises(ValueError, match="pass while_trips"):
    count(until, *args)
  assert count(until, *args, while_trips=7).total("macs") == 7 * 256

  @jax.checkpoint
  def block(w, x):
    return jnp.tanh(jnp.tanh(x @ w) @ w)

  counts = count(jax.value_and_grad(lambda w, x: jnp.sum(block(w, x))), *args)
  assert counts.by("macs", "phase") == {
    ("backward",): 3 * 256,  # two for the weight, one for the inner activation
    ("forward",): 2 * 256,
    ("recompute",): 2 * 256,
  }


def test_what_no_result_needs_is_not_counted():
  def two(w, x):
    return x @ w, jnp.sin(x) @ w

  args = shape(8, 8), shape(4, 8)
  first = lambda f: lambda *a: f(*a)[0]  # noqa: E731
  assert count(two, *args).total("macs") == 512
  for f in (two, jax.jit(two), jax.checkpoint(two)):
    counts = count(first(f), *args)
    assert counts.total("macs") == 256 and counts.total("ops") == 0
  either = lambda w, x: lax.cond(x[0, 0] > 0, two, lambda w, x: (x, x), w, x)  # noqa: E731
  assert count(first(either), *args).total("macs") == 256

  def loop(w, x):  # the first carry feeds the second, the third nobody
    def body(carry, _):
      a, b, c = carry
      return (a @ w, b + a, c @ w @ w), c @ w

    return lax.scan(body, (x, x, x), None, length=3)

  second = count(lambda *a: loop(*a)[0][1], *args)
  assert second.total("macs") == 3 * 256
  assert second.total("ops") == 3 * 32
  assert count(loop, *args).total("macs") == 3 * 4 * 256


def test_kernels_count_as_they_say():
  pl = pytest.importorskip("jax.experimental.pallas")

  def kernel(x, out):
    out[...] = x[...]

  def call(x, **options):
    return pl.pallas_call(kernel, out_shape=shape(3), interpret=True, **options)(x)

  cost = pl.CostEstimate(flops=10, transcendentals=2, bytes_accessed=24)
  counts = count(functools.partial(call, cost_estimate=cost), shape(3))
  assert [counts.total(w) for w in ("macs", "ops", "bits")] == [5, 2, 192]
  with pytest.raises(ValueError, match="no cost_estimate"):
    count(call, shape(3))


def test_shards_multiply():
  types = (jax.sharding.AxisType.Auto,)  # from jax 0.12 on not what a mesh has by itself
  mesh = jax.make_mesh((1,), ("a",), axis_types=types)
  spec = jax.sharding.PartitionSpec("a")
  body = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=spec, out_specs=spec)
  counts = count(body, shape(4, 8))
  assert counts.total("macs") == 128
  if len(jax.devices()) == 1:  # more shards than devices: abstract mesh
    wide = jax.sharding.AbstractMesh((4,), ("a",), axis_types=types)
    body = jax.shard_map(lambda x: x @ x.T, mesh=wide, in_specs=spec, out_specs=spec)
    assert count(body, shape(8, 8)).total("macs") == 4 * 2 * 2 * 8


@pytest.mark.parametrize(
  ("fn", "kind", "number"),
  [
    (lambda x: x + x, "add", 12),
    (lambda x: x * x, "mul", 12),
    (lambda x: x / x, "div", 12),
    (lambda x: x**5, "mul", 36),
    (lambda x: jnp.maximum(x, x), "compare", 12),
    (jnp.exp, "special", 12),
    (lambda x: jnp.sum(x, axis=1), "reduce", 9),
    (lambda x: jnp.max(x), "reduce", 11),
    (lambda x: x.T.reshape(-1), None, 0),
    (lambda x: x.astype(jnp.bfloat16), None, 0),
    (lambda x: jax.random.bits(jax.random.key(0), (12,), jnp.uint32), "random", 12),
    (lambda x: jax.random.bits(jax.random.key(0), (12,), jnp.uint16), "random", 6),
    (lambda x: jnp.sort(x, axis=1), "compare", 24),
  ],
)
def test_element_wise_operations(fn, kind, number):
  counts = count(fn, shape(3, 4))
  assert counts.by("ops", "kind") == ({(kind,): number} if kind else {})
  assert counts.notes == ()


def test_what_is_unknown_is_said():
  counts = count(lambda x: jnp.fft.fft(x), shape(4, dtype=jnp.complex64))
  assert counts.notes == ("not counted: fft",)


def test_costs_are_separated_into_once_a_batch_and_each_example():
  def step(w, x):
    grad = jax.grad(lambda w: jnp.sum(jnp.tanh(x @ w)))(w)
    return w - 0.1 * grad

  once, twice = (count(step, shape(8, 5), shape(b, 8)) for b in (3, 6))
  parts = split_batch(once, twice, 3)
  for what in ("macs", "ops"):
    assert parts.each.total(what) * 3 + parts.fixed.total(what) == once.total(what)
  assert parts.fixed.total("macs") == 0
  assert parts.each.total("macs") == 2 * 40
  assert parts.fixed.by("bits", "kind") == {("weights",): 32 * 80}  # w read, its gradient written
  assert parts.each.by("bits", "kind") == {("activations",): 32 * (8 + 5 + 8 + 5)}
  assert parts.fixed.total("ops", kind="mul") + parts.fixed.total("ops", kind="add") >= 80
  per_example = parts.per_example(3)
  assert per_example.total("bits") == pytest.approx(once.total("bits") / 3)


def test_counts_are_linear():
  a, b = Counts({Key("macs", "real"): 2}, ("x",)), Counts({Key("macs", "real"): 3, Key("bits"): 1})
  for f, g in itertools.product((0, 1, 2.5), (1, 4)):
    both = f * a + g * b
    assert both.total("macs") == 2 * f + 3 * g
    assert both.total("bits") == g
  assert (a + a).notes == ("x",)
  assert (a + b).by("macs", "kind") == {("real",): 5}
  assert a.replace(phase="predict").total("macs", phase="predict") == 2
