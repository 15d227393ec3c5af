"""Accuracy of the outside rival: the digits' perceptron trained in int8 by qwix, by our recipe.

  python -m experiments.benchmarks.qwix_accuracy [--seeds=0,1,2] [--epochs=60]

Sizes, optimiser, batches and epochs are those of the grid "ffint8_digits" (see
experiments/results/ffint8_digits.md for the library's own numbers); initial weights are linen's.
Rows go to experiments/results/qwix_accuracy.json. Needs `pip install -r requirements-bench.txt`.
"""

import dataclasses
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jax import lax

from experiments import cli, results
from experiments.assembly import build
from experiments.config import load_preset
from experiments.console import console
from fflax.random import Role, role_key
from fflax.training.optimizers import make_optimizer
from fflax.types import Batch

_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_EPOCHS = flags.DEFINE_integer("epochs", None, "epochs of every run; default: the preset's")
PRESET = "ffint8_digits"


def test_error(seed: int, epochs: int | None) -> float:
  """Trains once; test error in percent."""
  from experiments.benchmarks import qwix_rival

  config = dataclasses.replace(load_preset(PRESET), seed=seed)
  config = config if epochs is None else dataclasses.replace(config, epochs=epochs)
  experiment = build(config)
  plan = experiment.plan
  optimizer = make_optimizer(
    config.optimizer, epochs=config.epochs, steps_per_epoch=int(plan.steps_per_epoch)
  )
  sizes = config.networks["mlp"]["sizes"]
  step, state, logits = qwix_rival.make_step(sizes, 10, optimizer, experiment.example(), seed)
  order = experiment.feed.indices(
    role_key(jax.random.key(seed), Role.BATCH), jnp.int32(0), plan.num_steps
  )

  images, labels = jnp.asarray(experiment.images), jnp.asarray(experiment.labels)

  def one(state, index):
    batch = Batch(experiment.preprocess(None, images[index]), labels[index])
    return step(state, batch)

  state, losses = jax.jit(lambda s, i: lax.scan(one, s, i))(state, order)
  if not np.isfinite(np.asarray(losses)).all():
    raise RuntimeError(f"the rival's run with seed {seed} diverged")
  test = experiment.dataset.test
  answer = np.argmax(logits(state, experiment.preprocess(None, jnp.asarray(test.image))), axis=-1)
  return 100 * float(np.mean(answer != test.label))


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    if importlib.util.find_spec("qwix") is None:
      raise ValueError("qwix is the rival here: pip install -r requirements-bench.txt")
    seeds = cli.parse_seeds(_SEEDS.value)
  errors = [test_error(seed, _EPOCHS.value) for seed in seeds]
  preset = load_preset(PRESET)
  short = "" if _EPOCHS.value is None else f"_short_{_EPOCHS.value}_epochs"
  columns = {
    **results.choices(dataclasses.replace(preset, epochs=_EPOCHS.value or preset.epochs)),
    "method": "backprop (qwix)",
    "numerics": "int8",
    "preset": "qwix int8 backprop",
    "seeds": seeds,
    "command": f"python -m experiments.benchmarks.qwix_accuracy --seeds={','.join(_SEEDS.value)}",
  }
  row = results.row("test_error_percent", errors, locality="global", **columns)
  console.print(f"qwix int8 backprop: {row['mean']:.2f} +- {row['std'] or 0:.2f} % test error")
  console.print(f"results   {results.write_study('qwix_accuracy' + short, [row])}")
  return 0


if __name__ == "__main__":
  cli.run(main)
