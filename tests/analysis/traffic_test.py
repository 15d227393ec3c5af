"""Optimiser traffic and index additions against brute force."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.analysis.energy import MEMORIES, energy
from fflax.analysis.traffic import code_ones, conv_index_adds, dense_index_adds, optimizer_bits


@pytest.mark.parametrize(
  ("optimizer", "arrays"), [(optax.adam(1.0), 7), (optax.sgd(1.0, 0.9), 5), (optax.sgd(1.0), 3)]
)
def test_arrays_that_an_optimizer_moves(optimizer, arrays):
  params = {"kernel": jnp.zeros((20, 30)), "bias": jnp.zeros(30)}
  state = jax.eval_shape(optimizer.init, params)
  assert optimizer_bits(params, state).total("bits", kind="optimizer") == arrays * 32 * 630


def test_adam_on_the_cifar_net():
  """0.49 Mbit per example at batch 128: 0.8 uJ on the chip, 10 uJ outside."""
  params = jax.ShapeDtypeStruct((280_920,), jnp.float32)
  bits = optimizer_bits(params, (params, params)) * (1 / 128)
  assert bits.total("bits") == pytest.approx(0.49e6, rel=0.01)
  for memory, want in (("on_chip", 0.77), ("dram_weights", 9.98)):
    assert energy(bits, memory=MEMORIES[memory]).total * 1e-6 == pytest.approx(want, rel=0.01)


CASES = [((1, 1), "SAME", (1, 1), 1), ((2, 2), "VALID", (1, 1), 2), ((2, 1), "SAME", (1, 2), 2)]


@pytest.mark.parametrize("case", CASES)
def test_index_additions_of_convolutions_are_those_of_a_loop(case):
  strides, padding, dilation, groups = case
  h = np.random.default_rng(0).integers(0, 8, (2, 6, 5, 4)).astype(np.int8)
  kernel = (3, 2, 4 // groups, 6)
  pads = jax.lax.padtype_to_pads(
    (6, 5), [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=False)], strides, padding
  )
  out = [
    (n + low + high - (k - 1) * d - 1) // s + 1
    for n, (low, high), k, d, s in zip((6, 5), pads, kernel, dilation, strides, strict=False)
  ]
  adds = ones = meetings = 0
  for i, j, a, b in itertools.product(*map(range, (*out, *kernel[:2]))):
    y = i * strides[0] + a * dilation[0] - pads[0][0]
    x = j * strides[1] + b * dilation[1] - pads[1][0]
    if 0 <= y < 6 and 0 <= x < 5:
      adds += int(h[:, y, x].sum()) * (6 // groups)
      ones += sum(int(c).bit_count() for c in h[:, y, x].ravel()) * (6 // groups)
      meetings += h[:, y, x].size * (6 // groups)
  args = (kernel, strides, padding, dilation, groups)
  assert int(conv_index_adds(jnp.asarray(h), *args)) == adds
  assert int(conv_index_adds(code_ones(jnp.asarray(h)), *args)) == ones
  # All counts M: M times the products that meet an input; none: nothing.
  assert int(conv_index_adds(jnp.full(h.shape, 7, jnp.int8), *args)) == 7 * meetings
  assert int(conv_index_adds(jnp.zeros(h.shape, jnp.int8), *args)) == 0
  assert adds > ones


def test_index_additions_of_dense_layers():
  h = jnp.asarray([[0, 1, 3], [7, 0, 2]], jnp.int8)
  assert int(dense_index_adds(h, 5)) == 5 * 13
  assert int(dense_index_adds(code_ones(h), 5)) == 5 * (1 + 2 + 3 + 1)
  bits = jnp.asarray([[0, 1, 1]], jnp.int8)
  assert int(dense_index_adds(bits, 5)) == int(dense_index_adds(code_ones(bits), 5))
