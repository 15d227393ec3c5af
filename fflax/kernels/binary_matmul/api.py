"""Products whose left operand holds counts of p-bits, by whichever implementation applies.

A count is how many of M binary units are on, so on hardware that can, its product is additions of
weights alone: `w[k]` as often as unit k is on. On matrix units it is a product of small integers,
exact in int8 and in bfloat16.

Paper: Jaiswal, Datta, Makin, "Energy-Efficient Supervised Learning with a Binary Stochastic
Forward-Forward Algorithm", 2025, arXiv 2507.06461, which has no program for it; the kernels are
ours.

No network calls it yet. Layers that read counts are convolutions, for which these products would
have to write patches nine times the input's size, and numerics `int8_counts` already multiplies
their counts by the same exact int8 product that is the reference here. A dense layer would gain
only where a kernel is ahead of that reference, which no benchmark shows so far.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import seeds_per_sample
from fflax.kernels.binary_matmul import pallas_gpu, pallas_tpu, reference
from fflax.kernels.binary_matmul.packing import WORD, Packed
from fflax.kernels.binary_matmul.shapes import Implementation, check, problem_of, sampled_problem
from fflax.types import Array

DEFAULT: Implementation = "reference"
"""What `None` means, on every machine until a benchmark there shows a kernel ahead."""

_KERNELS = {"pallas_tpu": pallas_tpu, "pallas_gpu": pallas_gpu}


class _Run(NamedTuple):
  """How, not what."""

  implementation: str
  interpret: bool


def binary_matmul(
  x: Array | Packed,
  w: Array,
  *,
  implementation: Implementation | None = None,
  interpret: bool = False,
) -> Array:
  """Counts times weights. Reverse mode in float weights; no gradient into counts.

  Args:
    x: int8 counts `[..., R, K]`, not negative, or `Packed`.
    w: `[K, N]` int8 in [-127, 127], float32 or bfloat16.
    implementation: "reference", "pallas_tpu", "pallas_gpu"; None for the default.
    interpret: run a kernel in Pallas' interpreter, which is slow and runs anywhere.

  Returns:
    `[..., R, N]`: the exact int32 sums if `w` is int8, else float32.

  Raises:
    ValueError: if the operands do not fit, or the implementation does not apply.
  """
  if w.ndim != 2:
    raise ValueError(f"weights are [K, N], not {w.shape}")
  run = _Run(implementation or DEFAULT, interpret)
  if isinstance(x, Packed):
    return _packed_matmul(run, x, w)
  if x.dtype != jnp.int8 or x.ndim < 2 or x.shape[-1] != w.shape[0]:
    raise ValueError(
      f"counts are int8 [..., R, {w.shape[0]}] for weights {w.shape}, not {x.dtype} {x.shape}"
    )
  flat = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
  check(run.implementation, problem_of(flat, w), interpret)
  return _matmul(run, flat, w).reshape(*x.shape[:-1], w.shape[1])


def sampled_matmul(
  seeds: Array,
  v: Array,
  w: Array,
  config: PbitConfig,
  *,
  implementation: Implementation | None = None,
  interpret: bool = False,
) -> Array:
  """Samples p-bits and multiplies their counts with weights; kernels never store the counts.

  The counts are those of `fflax.core.pbit_units.draw`, bit for bit, wherever `exp` is the same: a
  machine's own may move a bit whose probability lies within its error of the random number.
  Reverse mode in float weights, for which the counts are drawn again; no gradient into `v`.

  Args:
    seeds: `[ceil(M / 2), 2]` uint32, as `draw` takes them.
    v: pre-activation `[..., R, K]`, a float dtype.
    w: as in `binary_matmul`.
    config: of the units.
    implementation: as in `binary_matmul`.
    interpret: as in `binary_matmul`.

  Returns:
    As `binary_matmul`.

  Raises:
    ValueError: if the operands do not fit, or the implementation does not apply.
  """
  config.check()
  number = seeds_per_sample(config)
  if seeds.shape != (number, 2) or seeds.dtype != jnp.uint32:
    raise ValueError(f"seeds are uint32 {(number, 2)}, not {seeds.dtype} {seeds.shape}")
  if w.ndim != 2 or v.ndim < 2 or v.shape[-1] != w.shape[0]:
    raise ValueError(f"[..., R, K] times [K, N] is needed, not {v.shape} times {w.shape}")
  run = _Run(implementation or DEFAULT, interpret)
  flat = v.astype(jnp.float32).reshape(math.prod(v.shape[:-1]), v.shape[-1])
  check(run.implementation, sampled_problem(flat, w), interpret)
  return _sampled(run, config, seeds, flat, w).reshape(*v.shape[:-1], w.shape[1])


def _packed_matmul(run: _Run, x: Packed, w: Array) -> Array:
  """Leading axes become rows; along rows, each has its own padding, which the result then drops."""
  if x.length != w.shape[0]:
    raise ValueError(f"packed counts of K = {x.length} do not fit weights {w.shape}")
  *lead, planes, high, wide = x.words.shape
  words = jnp.moveaxis(x.words, -3, 0).reshape(planes, math.prod(lead) * high, wide)
  each = x.rows if x.axis == "k" else high * WORD
  flat = Packed(words, x.size if x.axis == "k" else math.prod(lead) * each, x.axis)
  check(run.implementation, problem_of(flat, w), run.interpret)
  return _matmul(run, flat, w).reshape(*lead, each, w.shape[1])[..., : x.rows, :]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _matmul(run: _Run, x: Array | Packed, w: Array) -> Array:
  if run.implementation == "reference":
    return reference.matmul(x, w)
  return _KERNELS[run.implementation].matmul(x, w, interpret=run.interpret)


def _matmul_backward(run: _Run, residuals: tuple, g: Array) -> tuple[None, Array | None]:
  del run
  x, w = residuals
  return None, _weight_gradient(x, w, g)


_matmul.defvjp(lambda run, x, w: (_matmul(run, x, w), (x, w)), _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sampled(run: _Run, config: PbitConfig, seeds: Array, v: Array, w: Array) -> Array:
  if run.implementation == "reference":
    return reference.sampled_matmul(seeds, v, w, config)
  kernel = _KERNELS[run.implementation]
  return kernel.sampled_matmul(seeds, v, w, config, interpret=run.interpret)


def _sampled_backward(
  run: _Run, config: PbitConfig, residuals: tuple, g: Array
) -> tuple[None, None, Array | None]:
  del run
  seeds, v, w = residuals
  return None, None, _weight_gradient(reference.sample(seeds, v, config), w, g)


_sampled.defvjp(
  lambda run, config, *args: (_sampled(run, config, *args), args),
  _sampled_backward,
)


def _weight_gradient(x: Array | Packed, w: Array, g: Array) -> Array | None:
  """Counts transposed times `g`, as the reference has it: there is no kernel for it."""
  if w.dtype == jnp.int8:
    return None
  _, pull = jax.vjp(functools.partial(reference.matmul, x), w)
  return pull(g)[0]
