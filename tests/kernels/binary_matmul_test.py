"""One set of cases for every implementation: against numpy's int64 and float64, bit for bit where
the numbers are integers. Kernels run in Pallas' interpreter; that they lower for their own machine
is checked here, too, that they are fast there is not.
"""

import contextlib
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.analysis.cost import count
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import draw, seeds_per_sample
from fflax.core.quantize import seed_words
from fflax.kernels.binary_matmul import (
  IMPLEMENTATIONS,
  Packed,
  binary_matmul,
  pack,
  pallas_gpu,
  pallas_tpu,
  planes_of,
  sampled_matmul,
  shapes,
  unpack,
)

FORMS = ("counts", "k", "rows", "sampled")
WEIGHTS = ("int8", "float32", "bfloat16")
# (R, K, N, M): below one tile, across tiles of K and N, across tiles of R; nothing is a multiple.
SIZES = ((5, 70, 9, 1), (33, 600, 270, 3), (300, 129, 20, 7), (40, 33, 130, 2))
EVERY = pytest.mark.parametrize("implementation", IMPLEMENTATIONS)


def random_counts(rows: int, length: int, units: int) -> np.ndarray:
  return np.random.default_rng(rows).integers(0, units + 1, (rows, length)).astype(np.int8)


def random_weights(length: int, columns: int, dtype: str) -> jax.Array:
  rng = np.random.default_rng(columns)
  if dtype == "int8":
    return jnp.asarray(rng.integers(-127, 128, (length, columns)), jnp.int8)
  return jnp.asarray(rng.normal(size=(length, columns)), jnp.dtype(dtype))


def numpy_counts(seeds, v, config: PbitConfig) -> np.ndarray:
  return np.bitwise_count(np.asarray(jax.jit(draw, static_argnums=2)(seeds, v, config)))


def refused(implementation: str, form: str) -> bool:
  return implementation == "pallas_tpu" and form == "k"


def multiply(implementation, form, x, w, config=None, seeds=None):
  options = {"implementation": implementation, "interpret": True}
  if form == "sampled":
    return sampled_matmul(seeds, x, w, config, **options)
  if form != "counts":
    x = pack(x, planes_of(config.units), form)
  return binary_matmul(x, w, **options)


def check_product(got, counts, w, units: int):
  """Exact for int8; for floats as near as sums of so many rounded terms are."""
  if w.dtype == jnp.int8:
    assert got.dtype == jnp.int32
    np.testing.assert_array_equal(got, counts.astype(np.int64) @ np.asarray(w, np.int64))
    return
  assert got.dtype == jnp.float32
  exact = counts.astype(np.float64) @ np.asarray(w, np.float64)
  bound = 4 * 2.0**-23 * np.sqrt(counts.shape[1]) * float(jnp.max(jnp.abs(w))) * units
  np.testing.assert_allclose(got, exact, rtol=0, atol=bound)


def check_case(implementation, form, size, dtype, noise="independent"):
  rows, length, columns, units = size
  config = PbitConfig(units=units, noise=noise)
  w = random_weights(length, columns, dtype)
  seeds = seed_words(jax.random.key(1), seeds_per_sample(config))
  if form == "sampled":
    x = jnp.asarray(np.random.default_rng(2).normal(1, 3, (rows, length)), jnp.float32)
    counts = numpy_counts(seeds, x, config)
    assert counts.max() == units
  else:
    counts = random_counts(rows, length, units)
    x = jnp.asarray(counts)
  run = jax.jit(functools.partial(multiply, implementation, form, config=config))
  check_product(run(x, w, seeds=seeds), counts, w, units)


@EVERY
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_integers_are_exact(implementation, form, size):
  if refused(implementation, form):
    pytest.skip("refused, see test_refusals")
  check_case(implementation, form, size, "int8")


@EVERY
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_floats_are_near(implementation, form, dtype):
  if refused(implementation, form):
    pytest.skip("refused, see test_refusals")
  check_case(implementation, form, SIZES[1], dtype)


@EVERY
def test_shared_noise(implementation):
  check_case(implementation, "sampled", SIZES[2], "int8", "shared")


@EVERY
def test_samples_one_by_one(implementation):
  """With the identity as weights the product is the counts: none may differ, nor move."""
  config = PbitConfig(units=16)
  v = jnp.asarray(np.random.default_rng(0).normal(4, 8, (37, 150)), jnp.float32)
  seeds = seed_words(jax.random.key(3), 8)
  run = jax.jit(functools.partial(multiply, implementation, "sampled", config=config))
  got = run(v, jnp.eye(150, dtype=jnp.int8), seeds=seeds)
  np.testing.assert_array_equal(got, numpy_counts(seeds, v, config))


@EVERY
def test_float32_weights_keep_all_their_bits(implementation):
  """Were they rounded to bfloat16 or tf32, one count alone would show it."""
  w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 16)), jnp.float32)
  got = binary_matmul(jnp.eye(64, dtype=jnp.int8), w, implementation=implementation, interpret=True)
  np.testing.assert_array_equal(got, w)


def test_reference_asks_for_float32():
  """A CPU has no faster product to fall for; accelerators do, unless the program says no."""
  x, w = jnp.asarray(random_counts(4, 40, 3)), random_weights(40, 7, "float32")
  assert "Precision.HIGHEST" in str(jax.make_jaxpr(binary_matmul)(x, w))


@EVERY
@pytest.mark.parametrize("form", FORMS)
def test_gradients(implementation, form):
  """dw is counts transposed times g; v has none."""
  if refused(implementation, form):
    pytest.skip("refused, see test_refusals")
  config = PbitConfig(units=3)
  seeds = seed_words(jax.random.key(0), 2)
  v = jnp.asarray(np.random.default_rng(0).normal(1, 2, (6, 40)), jnp.float32)
  counts = numpy_counts(seeds, v, config).astype(np.int8)
  x = v if form == "sampled" else jnp.asarray(counts)
  w, g = random_weights(40, 7, "float32"), random_weights(6, 7, "float32")

  def loss(w, x):
    return jnp.vdot(g, multiply(implementation, form, x, w, config, seeds))

  dw, dx = jax.jit(jax.grad(loss, (0, 1), allow_int=True))(w, x)
  np.testing.assert_allclose(dw, counts.T.astype(np.float64) @ np.asarray(g), atol=1e-4)
  if form == "sampled":
    np.testing.assert_array_equal(dx, jnp.zeros_like(v))


def test_gradient_of_bfloat16_and_of_none():
  x = jnp.asarray(random_counts(6, 40, 3))
  for dtype in ("bfloat16", "int8"):
    w = random_weights(40, 7, dtype)
    out, pull = jax.vjp(binary_matmul, x, w)
    if dtype == "int8":
      assert pull(np.zeros(out.shape, jax.dtypes.float0))[1].dtype == jax.dtypes.float0
      continue
    dw = pull(jnp.ones_like(out))[1]
    assert dw.dtype == w.dtype
    np.testing.assert_allclose(dw[:, 0], np.asarray(x, np.float64).sum(0), rtol=2**-8)


@EVERY
@pytest.mark.parametrize("form", FORMS)
def test_leading_axes_and_vmap(implementation, form):
  """Each slice has the product of its own; sampled noise is that of the whole array."""
  if refused(implementation, form):
    pytest.skip("refused, see test_refusals")
  config = PbitConfig(units=3)
  seeds = seed_words(jax.random.key(0), 2)
  v = jnp.asarray(np.random.default_rng(0).normal(1, 2, (2, 5, 40)), jnp.float32)
  counts = numpy_counts(seeds, v, config).astype(np.int8)
  w = random_weights(40, 7, "int8")
  x = v if form == "sampled" else jnp.asarray(counts)
  run = jax.jit(functools.partial(multiply, implementation, form, config=config))
  got = run(x, w, seeds=seeds)
  want = counts.astype(np.int64) @ np.asarray(w, np.int64)
  np.testing.assert_array_equal(got, want)
  if form != "sampled":  # a batch of groups, each with its weights
    groups = jnp.stack([w, -w])
    mapped = jax.jit(jax.vmap(lambda x, w: run(x, w)))(x, groups)
    np.testing.assert_array_equal(mapped, want * np.array([1, -1])[:, None, None])


@pytest.mark.parametrize("axis", ["k", "rows"])
@pytest.mark.parametrize(("rows", "length", "planes"), [(1, 45, 1), (33, 32, 3), (64, 1, 5)])
def test_packing(axis, rows, length, planes):
  """Bit by bit, and there and back."""
  rng = np.random.default_rng(length)
  counts = rng.integers(0, 2**planes, (2, rows, length)).astype(np.int8)
  packed = jax.jit(pack, static_argnums=(1, 2))(jnp.asarray(counts), planes, axis)
  assert (packed.rows, packed.length) == (rows, length)
  np.testing.assert_array_equal(jax.jit(unpack)(packed), counts)
  words = np.asarray(packed.words if axis == "k" else jnp.swapaxes(packed.words, -1, -2))
  bits = (words[..., None] >> np.arange(32, dtype=np.uint32)) & 1
  bits = bits.reshape(*bits.shape[:-2], -1)
  units = counts if axis == "k" else np.swapaxes(counts, -1, -2)
  assert not bits[..., units.shape[-1] :].any()
  for plane in range(planes):
    np.testing.assert_array_equal(bits[:, plane, :, : units.shape[-1]], (units >> plane) & 1)


def test_planes():
  assert [planes_of(units) for units in (1, 2, 3, 4, 7, 8, 16)] == [1, 2, 2, 3, 3, 4, 5]


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda x, w: binary_matmul(x, w, implementation="cuda"), "unknown implementation 'cuda'"),
    (lambda x, w: binary_matmul(x, w.astype(jnp.float16)), "weights are float32, bfloat16, int8"),
    (lambda x, w: binary_matmul(x[:, 1:], w), "counts are int8 [..., R, 40]"),
    (lambda x, w: binary_matmul(x.astype(jnp.float32), w), "counts are int8"),
    (lambda x, w: binary_matmul(x, w[0]), "weights are [K, N]"),
    (lambda x, w: binary_matmul(pack(x, 2), w[1:]), "packed counts of K = 40"),
    (
      lambda x, w: binary_matmul(pack(x, 2), w, implementation="pallas_tpu", interpret=True),
      "pack with axis='rows'",
    ),
    (
      lambda x, w: binary_matmul(x[:0], w, implementation="pallas_gpu", interpret=True),
      "an axis is empty",
    ),
    (lambda x, w: pack(x, 8), "1 to 7 planes"),
    (lambda x, w: pack(x, 2, "columns"), "unknown axis 'columns'"),
    (lambda x, w: pack(x[0], 2), "int8 [..., R, K] is packed"),
    (
      lambda x, w: sampled_matmul(jnp.zeros((3, 2), jnp.uint32), x * 1.0, w, PbitConfig(3)),
      "seeds are uint32 (2, 2)",
    ),
    (
      lambda x, w: sampled_matmul(jnp.zeros((2, 2), jnp.uint32), x[0] * 1.0, w, PbitConfig(3)),
      "[..., R, K] times [K, N] is needed",
    ),
    (lambda x, w: sampled_matmul(x, x, w, PbitConfig(0)), "units must be"),
  ],
)
def test_refusals(call, message):
  x, w = jnp.asarray(random_counts(4, 40, 3)), random_weights(40, 7, "int8")
  with pytest.raises(ValueError, match=re.escape(message)):
    call(x, w)


def test_refusals_by_size_and_machine():
  wide = shapes.Problem(2**20, 2**12, 8, "float32", "counts")
  with pytest.raises(ValueError, match="addresses with 32 bits"):
    shapes.check("pallas_gpu", wide, interpret=True)
  shapes.check("pallas_tpu", wide, interpret=True)
  with pytest.raises(ValueError, match="sums over 200000 could overflow"):
    shapes.check("reference", shapes.Problem(8, 200_000, 8, "int8", "counts"), interpret=False)
  if jax.default_backend() == "cpu":
    for kernel, wanted in (("pallas_tpu", "tpu"), ("pallas_gpu", "gpu")):
      with pytest.raises(ValueError, match=f"needs a {wanted}, and the default backend is cpu"):
        shapes.check(kernel, wide._replace(rows=8), interpret=False)


def test_empty_products():
  w = random_weights(40, 7, "int8")
  assert binary_matmul(jnp.zeros((0, 40), jnp.int8), w).shape == (0, 7)


@pytest.mark.parametrize("size", [(1, 1, 1), (25088, 720, 240), (4096, 4096, 4096)])
@pytest.mark.parametrize("form", ["counts", "packed along rows", "sampled"])
def test_tiles_are_what_the_machines_take(size, form):
  problem = shapes.Problem(*size, "int8", form)
  tpu, gpu = shapes.tpu_tile(problem), shapes.gpu_tile(problem)
  assert tpu.rows % 256 == 0 and tpu.columns % 128 == 0 and tpu.length % 128 == 0
  assert all(side.bit_count() == 1 and side >= 16 for side in gpu)
  assert gpu.rows % 32 == gpu.length % 32 == 0
  # Two buffers of every operand and the result, at four bytes: well within 16 MiB of vector memory.
  area = tpu.rows * tpu.length + tpu.length * tpu.columns + tpu.rows * tpu.columns
  assert 2 * 4 * area < 8 * 2**20


def example(form: str, dtype: str):
  """Shapes of a layer, and the call of a kernel's module."""
  shape = jax.ShapeDtypeStruct
  w = shape((720, 240), jnp.dtype(dtype))
  if form == "sampled":
    config = PbitConfig(units=3)
    arrays = (shape((2, 2), jnp.uint32), shape((300, 720), jnp.float32), w)
    return lambda module: functools.partial(module.sampled_matmul, config=config), arrays
  x = shape((300, 720), jnp.int8)
  if form != "counts":
    x = jax.eval_shape(lambda c: pack(c, 2, form), x)
  return lambda module: module.matmul, (x, w)


def lowered_for(platform: str) -> contextlib.AbstractContextManager:
  """Where Triton asks for the GPU that it lowers for, as from jax 0.12 on, names one."""
  if platform != "cuda" or not hasattr(jax.sharding, "AbstractDevice"):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice("NVIDIA H100 80GB HBM3", num_cores=None, platform="cuda")
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_lowers_for_its_machine(form, dtype, platform):
  """On any machine; what the TPU's and the GPU's own compilers make of it, only they know."""
  if platform == "tpu" and form == "k":
    pytest.skip("refused, see test_refusals")
  function, arrays = example(form, dtype)
  module, target = {
    "tpu": (pallas_tpu, "tpu_custom_call"),
    "cuda": (pallas_gpu, "triton"),
  }[platform]
  if platform == "cuda" and pallas_gpu.triton is None:
    pytest.skip("this JAX has no Triton dialect")
  with lowered_for(platform):
    try:
      traced = jax.jit(function(module)).trace(*arrays)
      text = traced.lower(lowering_platforms=(platform,)).as_text()
    except RuntimeError as error:  # JAX 0.11 compiles where it lowers, which needs its CUDA plugin
      if "Triton compilation handler" not in str(error):
        raise
      pytest.skip("this JAX compiles Triton with its CUDA plugin only")
  assert target in text


@pytest.mark.parametrize("dtype", ["int8", "float32"])
@EVERY
def test_costs_of_every_implementation_are_the_same(implementation, dtype):
  x, w = jnp.asarray(random_counts(33, 70, 3)), random_weights(70, 9, dtype)
  multiply = functools.partial(binary_matmul, implementation=implementation, interpret=True)
  kind = "count_int8" if dtype == "int8" else "count_real"
  counts = count(multiply, x, w)
  macs = {key.kind: n for key, n in counts.items.items() if key.what == "macs"}
  assert macs == {kind: 33 * 70 * 9}


def test_packed_is_a_pytree_of_its_words():
  packed = pack(jnp.asarray(random_counts(4, 40, 3)), 2)
  (words,), structure = jax.tree.flatten(packed)
  assert words is packed.words
  again = jax.tree.unflatten(structure, [words])
  assert isinstance(again, Packed) and (again.size, again.axis) == (40, "k")
