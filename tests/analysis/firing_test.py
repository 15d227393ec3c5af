"""Measured firing against brute force in numpy, and readers found in a trace."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fflax.analysis.cost import count
from fflax.analysis.firing import Reader, find_readers, measure
from fflax.core import tags
from fflax.core.numerics import float32
from fflax.core.pbit_config import PbitConfig
from fflax.networks import make_network

NHWC = ("NHWC", "HWIO", "NHWC")


def conv(x, w, strides, padding, groups):
  with tags.counts(7):
    return lax.conv_general_dilated(
      x, w, strides, padding, dimension_numbers=NHWC, feature_group_count=groups
    )


def abstract(*shape):
  return jax.ShapeDtypeStruct(shape, jnp.float32)


@pytest.mark.parametrize(
  ("strides", "padding", "groups"), [((1, 1), "SAME", 2), ((2, 1), "VALID", 1)]
)
def test_additions_of_a_convolution_are_those_of_a_loop(strides, padding, groups):
  counts = np.random.default_rng(0).integers(0, 8, (2, 5, 4, 6))
  w = abstract(3, 2, 6 // groups, 4)
  (reader,) = find_readers(
    lambda x, w: jax.jit(conv, static_argnums=(2, 3, 4))(x, w, strides, padding, groups),
    abstract(1, 5, 4, 6),
    w,
  )
  pads = lax.padtype_to_pads((5, 4), (3, 2), strides, padding)
  sides = [
    (n + low + high - k) // s + 1
    for n, (low, high), k, s in zip((5, 4), pads, (3, 2), strides, strict=True)
  ]
  thermo = code = macs = 0
  places = itertools.product(*map(range, (*sides, 3, 2)), range(4), range(6 // groups))
  for i, j, a, b, out, inside in places:
    y, x = i * strides[0] + a - pads[0][0], j * strides[1] + b - pads[1][0]
    if 0 <= y < 5 and 0 <= x < 4:
      read = counts[:, y, x, out // (4 // groups) * (6 // groups) + inside]
      thermo += int(read.sum())
      code += sum(int(c).bit_count() for c in read)
      macs += 1
  assert reader._replace(conv=None) == Reader(4 // groups, 6 * 6 // groups, macs)
  for dtype in (jnp.float32, jnp.int8):
    found = measure(jnp.asarray(counts, dtype), 7, (reader,))
    assert (found.thermo, found.code) == ((thermo,), (code,))


def test_rates_are_numpys():
  counts = np.random.default_rng(1).integers(0, 4, (3, 4, 5))
  with_two = measure(jnp.asarray(counts[:2], jnp.float32), 3, (Reader(10, 20, 200),))
  found = with_two + measure(jnp.asarray(counts[2:], jnp.float32), 3, (Reader(10, 20, 200),))
  assert (found.units, found.examples, found.sites) == (3, 3, 20)
  assert (found.on, found.nonzero) == (counts.sum(), np.count_nonzero(counts))
  assert found.ones == sum(int(c).bit_count() for c in counts.ravel())
  assert found.lines == tuple(int((counts >= m).sum()) for m in (1, 2, 3))
  assert sum(found.lines) == found.on
  assert found.thermo == (10 * counts.sum(),)
  assert found.rates == {
    "mean_count": counts.mean(),
    "code_ones": found.ones / 60,
    "nonzero": (counts > 0).mean(),
    "lines": [(counts >= m).mean() for m in (1, 2, 3)],
  }
  assert found.index_adds("code") == [10 * found.ones / 3]
  with pytest.raises(ValueError, match="same layer"):
    _ = found + measure(jnp.zeros((1, 4)), 3)


def test_sums_beyond_32_bits_are_exact():
  counts = jnp.full((3, 40, 40, 4), 7, jnp.int8).at[0, 0, 0, 0].set(6)
  reader = Reader(10**6 + 1, 4, 0, ((1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1)))
  want = (3 * 40 * 40 * 4 * 7 - 1) * (10**6 + 1)
  assert measure(counts, 7, (reader,)).thermo == (want,) > (2**36,)


def test_full_counts_add_m_times_the_valid_products():
  """Of every layer of a network: what its trace counts is what its readers are."""
  options = {"channels": (4, 8, 6), "groups": (1, 2, 1), "pool_after": (2,)}
  network = make_network(
    "cfse", numerics=float32()._replace(conv_general_dilated=lax.conv_general_dilated),
    activation="pbits", pbits=PbitConfig(3), **options,
  )  # fmt: skip
  x, key = abstract(1, 6, 6, 2), jax.eval_shape(lambda: jax.random.key(0))
  assert [layer.counts for layer in network.layers] == [3, 3, 3]
  for index, layer in enumerate(network.layers):
    params, stats = jax.eval_shape(layer.init, key, x)

    def forward(params, stats, x, key, layer=layer):
      return layer.apply(params, stats, x, train=False, key=key)[0]

    readers = find_readers(forward, params, stats, x, key)
    # `act` and `out` of a pooled layer are two uses of one sample.
    traced = count(lambda *a, f=forward: f(*a).out, params, stats, x, key)
    out = jax.eval_shape(forward, params, stats, x, key)
    assert traced.total("pbits") == 3 * out.act.size
    valid = traced.total("macs_valid", kind="count_real")
    if index == 0:
      assert (readers, valid) == ((), 0)  # it reads the image
    else:
      (reader,) = readers
      assert reader.macs == valid == traced.total("macs_valid")
      assert measure(jnp.full(x.shape, 3), 3, readers).thermo == (3 * valid,)
    # Without a key units answer with their expectation, and the products are real.
    plain = lambda p, s, x, f=layer.apply: f(p, s, x, train=False)[0].out  # noqa: E731
    assert find_readers(plain, params, stats, x) == ()
    assert count(plain, params, stats, x).total("pbits") == 0
    x = out.out


def test_unknown_layouts_are_refused():
  def batched(x, w):
    with tags.counts(3):
      return jnp.einsum("bij,bjk->bik", x, w)

  with pytest.raises(ValueError, match="does not contract the last axis"):
    find_readers(batched, abstract(2, 3, 4), abstract(2, 4, 5))

  def odd(x, w):
    with tags.counts(3):
      return lax.conv(x, w, (1, 1), "SAME")

  with pytest.raises(ValueError, match="not NHWC"):
    find_readers(odd, abstract(1, 3, 8, 8), abstract(2, 3, 3, 3))
