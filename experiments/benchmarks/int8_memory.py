"""Compiled memory of one training step: FF-INT8 against backprop in DAI8 and float32.

  python -m experiments.benchmarks.int8_memory [--batch=32]

On the paper's four networks. The peak is what the compiler plans for a state-donating step:
weights, optimiser state and batch with the temporaries. Nothing is trained; rows go to
experiments/results/int8_memory.json, a table beside it.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments import cli, results
from experiments.assembly import trainer_parts
from experiments.config import ExperimentConfig, load_preset
from experiments.console import console
from fflax.analysis.memory import MemoryUse, compiled_memory
from fflax.training.lookahead import LookaheadConfig
from fflax.training.step import make_trainer
from fflax.types import Batch

_BATCH = flags.DEFINE_integer("batch", 32, "examples a step", lower_bound=1)
NETWORKS = {
  "MLP": ("ffint8_mlp", (28, 28, 1)),
  "MobileNet-V2": ("ffint8_mobilenetv2", (32, 32, 3)),
  "EfficientNet-B0": ("ffint8_efficientnetb0", (32, 32, 3)),
  "ResNet-18": ("ffint8_resnet18", (32, 32, 3)),
}
RIVAL = "backprop int8_dai8"
# FF-INT8, Table V: MB on its board, everything included.
PUBLISHED = {
  "MLP": {"exact look-ahead int8": 140.7, "backprop float32": 247.6},
  "MobileNet-V2": {"exact look-ahead int8": 437.0, "backprop float32": 649.8},
  "EfficientNet-B0": {"exact look-ahead int8": 505.2, "backprop float32": 861.0},
  "ResNet-18": {"exact look-ahead int8": 682.3, "backprop float32": 1096.4},
}


def cases(preset: ExperimentConfig) -> dict[str, ExperimentConfig]:
  """Label -> configuration, all on the preset's network and optimiser."""
  exact = dataclasses.replace(preset, numerics="int8")
  strict = dataclasses.replace(exact, lookahead=LookaheadConfig())
  control = dataclasses.replace(strict, method="backprop")
  return {
    "strict int8": strict,
    "strict int8, int8 weights": dataclasses.replace(strict, weight_store="int8"),
    "exact look-ahead int8": exact,
    "exact look-ahead int8, rematerialised": dataclasses.replace(exact, rematerialize=True),
    "scalar look-ahead int8, rematerialised": dataclasses.replace(
      exact, lookahead=LookaheadConfig("scalar"), rematerialize=True
    ),
    RIVAL: dataclasses.replace(control, numerics="int8_dai8"),
    f"{RIVAL}, rematerialised": dataclasses.replace(
      control, numerics="int8_dai8", rematerialize=True
    ),
    "backprop float32": dataclasses.replace(control, numerics="float32"),
  }


def memory(
  config: ExperimentConfig, image_shape: tuple[int, ...], batch_size: int
) -> tuple[MemoryUse, str]:
  """Of the compiled, state-donating step, and the run's locality."""
  parts = trainer_parts(config, num_classes=10, steps_per_epoch=100)
  trainer = make_trainer(image_shape=image_shape, **parts)
  image = jnp.zeros((batch_size, *image_shape))
  batch = jax.eval_shape(lambda: Batch(image, jnp.zeros((batch_size,), jnp.int32)))
  state = jax.eval_shape(trainer.init, jax.random.key(0), batch)
  lowered = jax.jit(trainer.step, donate_argnums=0).lower(state, batch)
  # Memory is planned before machine code is made: its quality does not matter.
  fast: Any = {"xla_backend_optimization_level": 0} if jax.default_backend() == "cpu" else None
  return compiled_memory(lowered.compile(compiler_options=fast)), trainer.locality


def main(argv: list[str]) -> int:
  del argv
  rows, lines = [], []
  for network, (name, shape) in NETWORKS.items():
    preset = load_preset(name)
    used = {label: memory(config, shape, _BATCH.value) for label, config in cases(preset).items()}
    for label, (found, locality) in used.items():
      ratio = found.peak / used[RIVAL][0].peak
      method = "backprop" if "backprop" in label else "forward_forward"
      columns: dict[str, Any] = {
        "preset": label,
        "network": network,
        "method": method,
        "locality": locality,
        "dataset": f"batch {_BATCH.value}",
        "published": PUBLISHED[network].get(label),
        "command": f"python -m experiments.benchmarks.int8_memory --batch={_BATCH.value}",
      }
      rows.append(results.row("peak_bytes", [found.peak], bytes=found._asdict(), **columns))
      rows.append(results.row("memory_ratio", [ratio], rival=RIVAL, **columns))
      beside = found.temporaries / used[RIVAL][0].temporaries
      rows.append(results.row("temporary_memory_ratio", [beside], rival=RIVAL, **columns))
      line = (
        f"{network:16s} {label:26s} {found.peak / 2**20:8.1f} MiB peak  "
        f"{found.temporaries / 2**20:8.1f} MiB temporary  {ratio:5.2f} and {beside:5.2f} of {RIVAL}"
      )
      console.print(line)
      published = PUBLISHED[network].get(label, "")
      lines.append(
        f"| {network} | {label} | {found.peak / 2**20:.1f} | {found.temporaries / 2**20:.1f} "
        f"| {ratio:.2f} | {beside:.2f} | {published} |"
      )
  head = [
    "# Compiled memory of a step",
    "",
    "| network | run | peak MiB | temporary MiB | peak / DAI8 | temporary / DAI8 | published MB |",
    "|---|---|---|---|---|---|---|",
  ]
  path = results.write_study("int8_memory", rows)
  path.with_suffix(".md").write_text("\n".join([*head, *lines, ""]))
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
