"""Compiled memory of one training step against depth: local rules stay flat, backprop grows.

  python -m experiments.benchmarks.memory

The figure is the compiler's own: temporary bytes of the jitted, state-donating step, parameters,
optimiser state and batch apart (they are arguments and outputs). Deterministic; nothing is run.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import optax

from experiments import cli, results
from experiments.console import console
from fflax.core.numerics import float32
from fflax.core.readouts import ReadoutConfig, make_readout
from fflax.methods.registry import METHODS, make_method
from fflax.networks.registry import make_network
from fflax.training.step import make_trainer
from fflax.types import Batch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DEPTHS = (4, 8, 16, 32)
WIDTH, BATCH = 512, 512


def temp_bytes(name: str, config, depth: int, *, stack: bool = True) -> int:
  """Temporary bytes of one compiled step of `depth` equal layers of `WIDTH` units."""
  network = make_network("mlp", numerics=float32(), sizes=(WIDTH,) * depth)
  trainer = make_trainer(
    network,
    make_method(name, config, 10),
    [make_readout("score_sum", ReadoutConfig(), 10)],
    image_shape=(WIDTH,),
    optimizer=optax.sgd(1e-2, momentum=0.9),
    stack=stack,
  )
  batch = jax.eval_shape(lambda: Batch(jnp.zeros((BATCH, WIDTH)), jnp.zeros((BATCH,), jnp.int32)))
  state = jax.eval_shape(trainer.init, jax.random.key(0), batch)
  compiled = jax.jit(trainer.step, donate_argnums=0).lower(state, batch).compile()
  analysis = compiled.memory_analysis()
  if analysis is None:
    raise RuntimeError(f"the {jax.default_backend()} compiler gives no memory analysis")
  return analysis.temp_size_in_bytes


def cases() -> dict:
  """Label -> (method, configuration, stack)."""
  found = {}
  for name, entry in METHODS.items():
    found[name] = (name, entry.config(), True)
  found["forward_forward, unrolled"] = (
    "forward_forward",
    METHODS["forward_forward"].config(),
    False,
  )
  found["hyperspherical, unrolled"] = ("hyperspherical", METHODS["hyperspherical"].config(), False)
  found["backprop, heads=all"] = ("backprop", METHODS["backprop"].config(heads="all"), False)
  return found


def main(argv: list[str]) -> int:
  del argv
  rows, table, localities = [], {}, {}
  for label, (name, config, stack) in cases().items():
    table[label] = [temp_bytes(name, config, d, stack=stack) for d in DEPTHS]
    console.print(
      f"{label:28s}"
      + "  ".join(
        f"{d:2d} layers {b / 2**20:7.2f} MiB" for d, b in zip(DEPTHS, table[label], strict=True)
      )
      + f"  32 over 4: {table[label][-1] / table[label][0]:.2f}"
    )
    localities[label] = make_method(name, config, 10).locality
    columns = {
      "method": name,
      "locality": localities[label],
      "preset": label,
      "network": f"mlp {WIDTH} wide",
      "numerics": "float32",
      "dataset": f"batch {BATCH}",
      "command": "python -m experiments.benchmarks.memory",
    }
    rows += [
      results.row("peak_bytes", [b], depth=d, **columns)
      for d, b in zip(DEPTHS, table[label], strict=True)
    ]
  for label, values in table.items():
    rows.append(
      results.row(
        "memory_ratio",
        [values[-1] / table["backprop"][-1]],
        depth=DEPTHS[-1],
        preset=label,
        locality=localities[label],
        rival="backprop, same network and depth",
        command="python -m experiments.benchmarks.memory",
      )
    )
  figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
  for label, values in table.items():
    style = "--" if label.startswith("backprop") else "-"
    axes.plot(DEPTHS, [v / 2**20 for v in values], style, marker="o", label=label)
  axes.set(
    xlabel=f"layers of {WIDTH} units",
    ylabel="temporary memory of a step (MiB)",
    title=f"Compiled peak memory, batch {BATCH}",
    xticks=DEPTHS,
    ylim=(0, None),
  )
  axes.legend(frameon=False, fontsize=8)
  path = results.write_study("memory", rows)
  figure.savefig(pathlib.Path(path).with_suffix(".png"), dpi=120)
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
