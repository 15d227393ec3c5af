"""One training step of the library against the same step in PyTorch, from the same weights.

  python -m experiments.benchmarks.step_agreement

Forward-Forward (the `loewex` recipe), hyperspherical FF and backprop on an MLP in float32. Prints
the largest difference of any weight after the step beside the least movement of any part, and fails
(exit code 1) if they differ by more than rounding. `make test` compares the same steps with numpy
in float64.
"""

import dataclasses
import importlib.util
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments import cli, config
from experiments.assembly import trainer_parts
from experiments.console import console
from fflax.core import labels as labels_lib
from fflax.core.readouts import score_sum
from fflax.methods.registry import METHODS, make_method
from fflax.random import Role, role_key, step_key
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.types import Batch, TrainState

ROWS, CLASSES, SIZES = 100, 10, (64, 48, 48)
TOLERANCE = 1e-5


def batch() -> Batch:
  rng = np.random.default_rng(0)
  image = rng.uniform(0, 1, (ROWS, 12, 12, 1)).astype(np.float32)
  return Batch(jnp.asarray(image), jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32))


def flat(image: Any) -> np.ndarray:
  return np.asarray(image).reshape(len(image), -1)


def kernels_and_biases(trainer: Trainer, state: TrainState) -> tuple[list, list]:
  layers = [s.params["layer"]["dense"] for s in trainer.layer_states(state)]
  return [np.asarray(p["kernel"]) for p in layers], [np.asarray(p["bias"]) for p in layers]


def extras(trainer: Trainer, state: TrainState, *path: str) -> list[np.ndarray]:
  found = []
  for s in trainer.layer_states(state):
    value = s.params["method"]
    for key in path:
      value = value.get(key, {})
    found += [np.asarray(v) for v in (value.values() if isinstance(value, dict) else [value])]
  return found


def take_step(trainer: Trainer, weights_of) -> tuple[Any, Any, TrainState]:
  """Weights before and after one step, and the state before it."""
  before = jax.jit(trainer.init)(jax.random.key(1), batch())
  after, _ = jax.jit(trainer.step)(before, batch())
  return weights_of(before), weights_of(after), before


def forward_forward(torch_rivals) -> tuple[Any, Any, Any]:
  base = config.load_preset("ff_mnist_loewex")
  chosen = dataclasses.replace(base, networks={"mlp": {"sizes": SIZES}}, readouts=("softmax_head",))
  trainer = make_trainer(image_shape=(12, 12, 1), **trainer_parts(chosen, CLASSES, 1))
  splits = np.cumsum(SIZES[1:])[:-1]

  def weights(state: TrainState):
    head = np.split(np.asarray(state.readouts[0].params["kernel"]), splits)
    stats = [s.stats["method"]["mean_activity"] for s in trainer.layer_states(state)]
    return torch_rivals.Weights(
      *kernels_and_biases(trainer, state), head, [np.asarray(m) for m in stats]
    )

  first, ours, state = take_step(trainer, weights)
  image, label = batch()
  key = role_key(step_key(state.key, 0), Role.VIEWS)
  wrong = labels_lib.uniform_wrong(key, label, CLASSES, None)

  def view(code: Any) -> np.ndarray:
    x = flat(image).copy()
    x[:, :CLASSES] = code
    return x

  eye = np.eye(CLASSES, dtype=np.float32)
  theirs, _ = torch_rivals.ff_step(
    first, view(eye[np.asarray(label)]), view(eye[np.asarray(wrong)]), view(1 / CLASSES),
    np.asarray(label),
  )  # fmt: skip
  return first, ours, theirs


def single_pass(torch_rivals, name: str, path: tuple[str, ...], step, **options) -> tuple:
  chosen = dataclasses.replace(config.ExperimentConfig(), networks={"mlp": {"sizes": SIZES}})
  trainer = make_trainer(
    trainer_parts(chosen, CLASSES, 1)["network"],
    make_method(name, METHODS[name].config(**options), CLASSES),
    [score_sum()],
    image_shape=(12, 12, 1),
    optimizer=optax.sgd(0.1, momentum=0.9),
  )

  def weights(state: TrainState):
    return torch_rivals.Weights(*kernels_and_biases(trainer, state), extras(trainer, state, *path))

  first, ours, _ = take_step(trainer, weights)
  if name == "backprop":  # the head as kernel, bias
    first, ours = (
      w._replace(extras=sorted(w.extras, key=lambda a: -a.ndim)) for w in (first, ours)
    )
  image, label = batch()
  theirs, _ = step(first, flat(image), np.asarray(label), **({"margin": 0.1} if options else {}))
  return first, ours, theirs


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    if importlib.util.find_spec("torch") is None:
      raise ValueError("PyTorch is the rival here: pip install -r requirements-bench.txt")
  from experiments.benchmarks import torch_rivals as rivals

  cases = {
    "forward_forward": forward_forward(rivals),
    "hyperspherical": single_pass(
      rivals, "hyperspherical", ("prototypes",), rivals.hff_step, margin=0.1, prototypes_per_class=2
    ),
    "backprop": single_pass(rivals, "backprop", ("head",), rivals.bp_step),
  }
  worst = 0.0
  for name, (first, ours, theirs) in cases.items():
    pairs = list(zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True))
    difference = max(float(np.abs(a - b).max()) for a, b in pairs)
    moved = zip(jax.tree.leaves(ours), jax.tree.leaves(first), strict=True)
    movement = min(float(np.abs(a - b).max()) for a, b in moved)
    console.print(
      f"{name:16s} largest difference {difference:.1e}; every part moved by {movement:.1e} or more"
    )
    worst = max(worst, difference)
  return int(worst > TOLERANCE)


if __name__ == "__main__":
  cli.run(main)
