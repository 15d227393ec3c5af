"""Speed of the products with counts: every implementation that applies here, against dense ones.

  python -m experiments.benchmarks.binary_matmul [--rounds=10] [--only=square]

One process, turn by turn, on the sizes of two layers of binary stochastic FF (as patches times
weights: a full layer, a layer of ten groups) and on a square:

- counts at hand: dense float32 and bfloat16 products, against counts in int8 or packed, times
  weights in int8, bfloat16 and float32; packed counts once with their packing and once without;
- counts to be drawn: sampling and then a dense product, against sampling inside the product.

All weights are small integers, so that every right answer is the same one: a wrong product is an
error, not a speed. On an accelerator a turn is many products in one program, because one alone is
shorter than its call. Rows go to experiments/results/binary_matmul.json; a kernel becomes the
default (`fflax/kernels/binary_matmul/api.py`) where they show it ahead of the dense product.
"""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from experiments import cli, results
from experiments.console import console
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbit_units import seeds_per_sample
from fflax.core.quantize import seed_words
from fflax.kernels.binary_matmul import (
  IMPLEMENTATIONS,
  Implementation,
  binary_matmul,
  pack,
  planes_of,
  reference,
  sampled_matmul,
  shapes,
)
from fflax.kernels.binary_matmul.packing import Axis

LAYERS: Mapping[str, tuple[int, int, int, int]] = {
  "full": (1, 25088, 720, 240),
  "grouped": (10, 6272, 216, 48),
  "square": (1, 4096, 4096, 4096),
}
"""Name -> groups, R, K, N: layers 3 and 4 of the network for 28x28 images at batch 128."""

SQUARE_ON_CPU = (1, 2048, 2048, 2048)
"""An eighth of the work: with ten rounds the whole benchmark takes two minutes of one core."""

DENSE, DENSE_BF16 = "dense float32", "dense bfloat16"
DRAWN, DRAWN_BF16 = "sample, then dense float32", "sample, then dense bfloat16"
_COMMAND = "python -m experiments.benchmarks.binary_matmul"

Product = tuple[Callable[..., jax.Array], tuple]


def dense(x: jax.Array, w: jax.Array) -> jax.Array:
  """What one would write without this library."""
  return jnp.matmul(x, w, preferred_element_type=jnp.float32)


def products(size: tuple[int, int, int, int], config: PbitConfig) -> dict[str, Product]:
  """Label -> a function and its arguments."""
  groups, rows, length, columns = size
  rng = np.random.default_rng(0)
  lead = () if groups == 1 else (groups,)
  v = jnp.asarray(rng.normal(size=(*lead, rows, length)), jnp.float32)
  weights = jnp.asarray(rng.integers(-127, 128, (*lead, length, columns)), jnp.int8)
  seeds = seed_words(jax.random.key(0), seeds_per_sample(config))
  by_group = jax.vmap if groups > 1 else lambda function: function
  counts = jax.jit(by_group(lambda v: reference.sample(seeds, v, config)))(v)
  w = {name: weights.astype(name) for name in shapes.WEIGHTS}

  def drawn(dtype: str) -> Callable[..., jax.Array]:
    return by_group(lambda v, w: dense(reference.sample(seeds, v, config).astype(dtype), w))

  found: dict[str, Product] = {
    DENSE: (dense, (counts.astype(jnp.float32), w["float32"])),
    DENSE_BF16: (dense, (counts.astype(jnp.bfloat16), w["bfloat16"])),
    DRAWN: (drawn("float32"), (v, w["float32"])),
    DRAWN_BF16: (drawn("bfloat16"), (v, w["bfloat16"])),
  }
  for name in IMPLEMENTATIONS:
    reason = refusal(name, size)
    if reason is not None:
      console.print(reason)
      continue
    axis: Axis = "rows" if name == "pallas_tpu" else "k"
    plane = functools.partial(pack, planes=planes_of(config.units), axis=axis)
    multiply = functools.partial(binary_matmul, implementation=name)
    sampled = functools.partial(sampled_matmul, config=config, implementation=name)
    for kind in shapes.WEIGHTS:
      found[f"{name}: counts x {kind}"] = by_group(multiply), (counts, w[kind])
      found[f"{name}: sampled x {kind}"] = (
        by_group(lambda v, w, sampled=sampled: sampled(seeds, v, w)),
        (v, w[kind]),
      )
    found[f"{name}: packed x int8"] = by_group(multiply), (by_group(plane)(counts), w["int8"])
    found[f"{name}: packing, packed x int8"] = (
      by_group(lambda x, w, plane=plane, multiply=multiply: multiply(plane(x), w)),
      (counts, w["int8"]),
    )
  return found


def refusal(name: Implementation, size: tuple[int, int, int, int]) -> str | None:
  """Why an implementation cannot run here."""
  try:
    shapes.check(name, shapes.Problem(*size[1:], "float32", "counts"), interpret=False)
  except ValueError as error:
    return str(error)
  return None


def is_drawn(label: str) -> bool:
  return "sample" in label


def compare(
  layer: str, size: tuple[int, int, int, int], *, units: int, rounds: int, repeats: int
) -> list[dict]:
  """Rows of one layer: times as fast as its rivals, milliseconds and temporary memory."""
  config = PbitConfig(units=units)
  made = products(size, config)
  answer = np.asarray(jax.jit(made[DENSE][0])(*made[DENSE][1]))
  turns, memory = {}, {}
  for label, (function, arguments) in made.items():
    verify(label, np.asarray(jax.jit(function)(*arguments)), answer)
    compiled: Any = jax.jit(repeated(function, repeats)).lower(*arguments).compile()
    turns[label] = functools.partial(timed, compiled, arguments, repeats)
    memory[label] = compiled.memory_analysis().temp_size_in_bytes
  for once in turns.values():
    once()
    once()
  seconds: dict[str, list[float]] = {label: [] for label in turns}
  for _ in range(rounds):
    for label, once in turns.items():
      seconds[label].append(once())
  return [
    row for label in made for row in rows_of(label, layer, size, units, seconds, memory[label])
  ]


def verify(label: str, found: np.ndarray, answer: np.ndarray) -> None:
  """Raises if a product is wrong; where counts are drawn, a machine's `exp` may move a few."""
  wrong = float(np.mean(np.any(found != answer, axis=-1)))
  if wrong > (0.01 if is_drawn(label) else 0):
    raise AssertionError(f"{label}: {100 * wrong:.3g} % of the rows are wrong")


def repeated(function: Callable[..., jax.Array], repeats: int) -> Callable[..., jax.Array]:
  """The function so many times in a row, none of them hoisted or left out."""
  if repeats == 1:
    return function

  def many(*arguments: Any) -> jax.Array:
    def again(_: jax.Array, out: jax.Array) -> jax.Array:
      return function(*lax.optimization_barrier((arguments, out))[0])

    return lax.fori_loop(1, repeats, again, function(*arguments))

  return many


def timed(compiled: Any, arguments: tuple, repeats: int) -> float:
  """Seconds of one product."""
  start = time.perf_counter()
  jax.block_until_ready(compiled(*arguments))
  return (time.perf_counter() - start) / repeats


def rows_of(
  label: str,
  layer: str,
  size: tuple[int, int, int, int],
  units: int,
  seconds: Mapping[str, list[float]],
  temporary: int,
) -> list[dict]:
  own = seconds[label]
  columns = {
    "method": "binary_matmul",
    "preset": label,
    "network": "{} x [{}, {}] x [{}, {}]".format(*size[:3], *size[2:]),
    "dataset": f"random counts of {units} p-bits, {layer}",
    "command": _COMMAND,
  }
  rows, medians = [], []
  for rival in (DRAWN, DRAWN_BF16) if is_drawn(label) else (DENSE, DENSE_BF16):
    ratios = np.asarray(seconds[rival]) / np.asarray(own)
    medians.append(float(np.median(ratios)))
    if rival != label:
      rows.append(results.row("speedup", ratios, rival=rival, locality="strict", **columns))
      rows[-1]["median"] = float(f"{medians[-1]:.4g}")
  milliseconds = [1e3 * s for s in own]
  rows.append(results.row("product_ms", milliseconds, locality="strict", **columns))
  rows.append(results.row("temporary_bytes", [temporary], locality="strict", **columns))
  console.print(
    f"{layer:8s} {label:34s} {np.median(milliseconds):9.3f} ms  {medians[0]:6.2f} times as fast as "
    f"the dense float32, {medians[1]:6.2f} the bfloat16  {temporary / 2**20:8.1f} MiB temporary"
  )
  return rows


def main(argv: list[str]) -> int:
  del argv
  values = flags.FLAGS
  repeats = values.repeats or (1 if jax.default_backend() == "cpu" else 20)
  rows = []
  for layer in [values.only] if values.only else LAYERS:
    small = layer == "square" and jax.default_backend() == "cpu"
    size = SQUARE_ON_CPU if small else LAYERS[layer]
    rows += compare(layer, size, units=values.units, rounds=values.rounds, repeats=repeats)
  name = "binary_matmul" + (f"_{values.only}" if values.only else "")
  console.print(f"results   {results.write_study(name, rows)}")
  return 0


if __name__ == "__main__":
  # Here, so that a test may import this module beside another benchmark with the same flags.
  flags.DEFINE_integer("rounds", 10, "rounds of every rival", lower_bound=3)
  flags.DEFINE_integer("repeats", 0, "products a turn; 0: 1 on a CPU, else 20", lower_bound=0)
  flags.DEFINE_integer("units", 3, "p-bits of a unit", lower_bound=1, upper_bound=16)
  flags.DEFINE_enum("only", "", ["", *LAYERS], "one layer alone")
  cli.run(main)
