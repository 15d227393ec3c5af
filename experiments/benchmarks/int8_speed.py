"""Speed and memory of int8 training: strict layers against backprop in every numerics, and qwix.

  python -m experiments.benchmarks.int8_speed [--rounds=10] [--only=mlp]

One process, turn by turn, one training step each on the same images:

- `mlp`: 4 x 2000 on 2000 inputs, batch 512. Strict single-view training (a softmax head at every
  layer, the heads of BP-DeepSup, with the gradient stopped between layers) in int8, bfloat16 and
  float32; backprop in float32, bfloat16, direct int8 and int8 with the rivals'
  gradient quantisers; the same perceptron trained in int8 by qwix.
- `vgg8`: 3x3 convolutions, 32x32x3, batch 64. The same without qwix.

An int8 figure without its bfloat16 neighbour says little: both are printed. Rows go to
experiments/results/int8_speed.json.
"""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import cli, results
from experiments.console import console
from fflax.core.numerics import Numerics
from fflax.core.numerics_registry import make_numerics
from fflax.core.readouts import ReadoutConfig, make_readout
from fflax.methods.backprop import BackpropConfig
from fflax.methods.registry import make_method
from fflax.networks.registry import make_network
from fflax.training.optimizers import for_numerics
from fflax.training.step import make_trainer
from fflax.types import Batch, Method

_ROUNDS = flags.DEFINE_integer("rounds", 10, "rounds of every rival", lower_bound=3)
_ONLY = flags.DEFINE_enum("only", "", ["", "mlp", "vgg8"], "one network alone")
_COMMAND = "python -m experiments.benchmarks.int8_speed"
SIZES = (2000,) * 4
BASE, DAI8, QWIX = "backprop float32", "backprop int8_dai8", "qwix int8 backprop"

Step = Callable[[], float]


def shapes(network: str) -> tuple[tuple[int, ...], int, dict]:
  """Shape of an image, batch size and options of the network."""
  return ((2000,), 512, {"sizes": SIZES}) if network == "mlp" else ((32, 32, 3), 64, {})


def rivals() -> dict[str, tuple[str, str]]:
  """Label -> (method, numerics)."""
  return {
    "strict int8": ("local", "int8"),
    "strict int8, nearest": ("local", "int8_nearest"),
    "strict bfloat16": ("local", "bfloat16"),
    "strict float32": ("local", "float32"),
    BASE: ("backprop", "float32"),
    "backprop bfloat16": ("backprop", "bfloat16"),
    "backprop int8": ("backprop", "int8"),
    DAI8: ("backprop", "int8_dai8"),
    "backprop int8_ui8": ("backprop", "int8_ui8"),
  }


def make_rule(name: str, numerics: Numerics) -> Method:
  """Backprop with one head, or (local) a head at every layer and no gradient between layers."""
  if name == "backprop":
    return make_method("backprop", BackpropConfig(), 10, numerics)
  method = make_method("backprop", BackpropConfig(heads="all"), 10, numerics)
  return method._replace(name="local cross-entropy", locality="strict")


def example(network: str) -> Batch:
  shape, size, _ = shapes(network)
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.normal(size=(size, *shape)), jnp.float32)
  return Batch(image, jnp.asarray(rng.integers(0, 10, size), jnp.int32))


def library_step(network: str, method: str, numerics: str) -> tuple[Callable, object]:
  """The jitted, state-donating step of a run, and its first state."""
  shape, _, options = shapes(network)
  found = make_numerics(numerics)
  trainer = make_trainer(
    make_network(network, numerics=found, **options),
    make_rule(method, found),
    [make_readout("score_sum", ReadoutConfig(), 10)],
    image_shape=shape,
    optimizer=for_numerics(optax.sgd(1e-2), found),
  )
  state = jax.jit(trainer.init)(jax.random.key(0), example(network))
  return jax.jit(trainer.step, donate_argnums=0), state


def qwix_step() -> tuple[Callable, object]:
  from experiments.benchmarks import qwix_rival

  step, state, _ = qwix_rival.make_step(SIZES, 10, optax.sgd(1e-2), example("mlp"))
  return jax.jit(step, donate_argnums=0), state


def timed(step: Any, state: object, batch: Batch) -> tuple[Step, int]:
  """A function that takes one more step and says how long it took; temporary bytes of the step."""
  compiled = step.lower(state, batch).compile()
  held = [state]

  def once() -> float:
    start = time.perf_counter()
    held[0], result = compiled(held[0], batch)
    jax.block_until_ready((held[0], result))
    return time.perf_counter() - start

  once()
  once()
  return once, compiled.memory_analysis().temp_size_in_bytes


def compare(network: str) -> list[dict]:
  """Rows of one network: times as fast as backprop in float32, and temporary memory."""
  made = {label: library_step(network, *choice) for label, choice in rivals().items()}
  if network == "mlp":
    made[QWIX] = qwix_step()
  batch = example(network)
  steps, memory = {}, {}
  for label, (step, state) in made.items():
    steps[label], memory[label] = timed(step, state, batch)
  seconds: dict[str, list[float]] = {label: [] for label in steps}
  for _ in range(_ROUNDS.value):
    for label, once in steps.items():
      seconds[label].append(once())
  rows = []
  for label, own in seconds.items():
    method = rivals()[label][0] if label in rivals() else "qwix"
    columns = {
      "method": method,
      "preset": label,
      "network": network,
      "numerics": rivals()[label][1] if label in rivals() else "int8",
      "locality": "strict" if method == "local" else "global",
      "dataset": f"random images, batch {shapes(network)[1]}",
      "command": _COMMAND,
    }
    rows += results.speedups(seconds, label, (BASE, DAI8, QWIX), **columns)
    rows.append(results.row("step_ms", [1e3 * s for s in own], **columns))
    rows.append(results.row("temporary_bytes", [memory[label]], **columns))
    console.print(
      f"{network} {label:22s} {1e3 * np.median(own):8.1f} ms  "
      f"{np.median(np.asarray(seconds[BASE]) / np.asarray(own)):5.2f} times as fast as {BASE}  "
      f"{memory[label] / 2**20:7.1f} MiB temporary"
    )
  return rows


def main(argv: list[str]) -> int:
  del argv
  chosen = [_ONLY.value] if _ONLY.value else ["mlp", "vgg8"]
  rows = [row for network in chosen for row in compare(network)]
  name = "int8_speed" + (f"_{_ONLY.value}" if _ONLY.value else "")
  console.print(f"results   {results.write_study(name, rows)}")
  return 0


if __name__ == "__main__":
  cli.run(main)
