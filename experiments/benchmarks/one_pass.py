"""Prediction by one pass against a pass for every candidate label, for 10 and for 100 classes.

  python -m experiments.benchmarks.one_pass [--classes=10,100] [--batch=200] [--rounds=9]

The same perceptron 784-3x1000, untrained, on random images (time does not depend on either), the
answer of readout "score_sum", jitted, turn by turn in one process:

- hyperspherical FF: one pass, and K prototypes a layer;
- Forward-Forward by goodness: K passes, one a candidate label;
- the same with the first layer shared: candidates differ in K pixels only, so that its product is
  done once and a row of the kernel added; checked to answer the same.

Rows: times as fast (`speedup`, medians of rounds), multiplications (`macs_ratio`), ms a batch.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags

from experiments import cli, results
from experiments.console import console
from fflax.analysis.cost import count
from fflax.core.normalize import rms_normalize
from fflax.core.numerics import float32
from fflax.core.readouts import score_sum
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.methods.registry import make_method
from fflax.networks.registry import make_network
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.types import Array, Batch, TrainState

_COMMAND = "python -m experiments.benchmarks.one_pass"
ONE, EACH, SHARED = (
  "hyperspherical, one pass",
  "goodness, a pass a label",
  "goodness, first layer shared",
)


class Rival(NamedTuple):
  """A way to predict: its jitted `answer(state, image) -> [B, K]`, and its state."""

  method: str
  answer: Callable[[TrainState, Array], Array]
  state: TrainState


def rivals(num_classes: int, sizes: Sequence[int], image: Array) -> dict[str, Rival]:
  """The three ways, of untrained networks.

  Raises:
    RuntimeError: the shared first layer does not answer what the candidates' own passes do.
  """
  found = {}
  for label, name, config in (
    (ONE, "hyperspherical", HypersphericalConfig()),
    (EACH, "forward_forward", ForwardForwardConfig()),
  ):
    trainer = make_trainer(
      make_network("mlp", numerics=float32(), sizes=tuple(sizes)),
      make_method(name, config, num_classes),
      [score_sum()],
      image_shape=image.shape[1:],
      optimizer=optax.sgd(0.1),
    )
    batch = Batch(image[:2], jnp.zeros(2, jnp.int32))
    state = jax.jit(trainer.init)(jax.random.key(0), batch)
    answer = jax.jit(functools.partial(_answer, trainer))
    found[label] = Rival(name, answer, state)
    if label == EACH:
      shared = jax.jit(functools.partial(shared_answer, trainer, num_classes))
      found[SHARED] = Rival(name, shared, state)
  few = image[:4]
  want, got = (found[label].answer(found[label].state, few) for label in (EACH, SHARED))
  if not np.allclose(got, want, rtol=1e-4, atol=1e-3 * float(jnp.std(want))):
    raise RuntimeError("the shared first layer answers otherwise than a pass a label")
  return found


def _answer(trainer: Trainer, state: TrainState, image: Array) -> Array:
  return trainer.answer(state, image).readouts["score_sum"]


def shared_answer(trainer: Trainer, num_classes: int, state: TrainState, image: Array) -> Array:
  """Summed goodness of every candidate label, `[B, K]`, the image's part of layer 1 computed once.

  The label takes the first K pixels, one of them 1: all candidates of an image have one length.
  """
  flat = image.reshape(len(image), -1).at[:, :num_classes].set(0.0)
  size = jax.vmap(lambda x: jnp.sqrt(jnp.mean(jnp.square(x)) + 1 / x.size + 1e-12))(flat)
  first, *others = (s.params["layer"]["dense"] for s in trainer.layer_states(state))
  image_part = flat @ first["kernel"]
  candidates = image_part[:, None, :] + first["kernel"][None, :num_classes, :]
  h = jax.nn.relu(candidates / size[:, None, None] + first["bias"][None, None, :])
  total = jnp.sum(jnp.square(h), axis=-1)
  for dense in others:
    u = jax.vmap(jax.vmap(rms_normalize))(h)
    h = jax.nn.relu(u @ dense["kernel"] + dense["bias"][None, None, :])
    total += jnp.sum(jnp.square(h), axis=-1)
  return total


def compare(
  num_classes: int, sizes: Sequence[int], image_shape: tuple[int, ...], batch: int, rounds: int
) -> list[dict[str, Any]]:
  """The rows of one number of classes."""
  image = jax.random.uniform(jax.random.key(1), (batch, *image_shape))
  runs = rivals(num_classes, sizes, image)
  seconds: dict[str, list[float]] = {label: [] for label in runs}
  for run in runs.values():
    jax.block_until_ready(run.answer(run.state, image))
  for _ in range(rounds):
    for label, run in runs.items():
      start = time.perf_counter()
      jax.block_until_ready(run.answer(run.state, image))
      seconds[label].append(time.perf_counter() - start)
  macs = {label: count(r.answer, r.state, image).total("macs") for label, r in runs.items()}
  rows: list[dict[str, Any]] = []
  for label, run in runs.items():
    columns: dict[str, Any] = {
      "method": run.method,
      "preset": f"{label}, {num_classes} classes",
      "network": f"mlp {'-'.join(map(str, sizes))}",
      "numerics": "float32",
      "readout": "score_sum",
      "dataset": f"random images {'x'.join(map(str, image_shape))}, batch {batch}",
      "classes": num_classes,
      "locality": "strict",
      "command": _COMMAND,
    }
    rows += results.speedups(seconds, label, (EACH, SHARED), **columns)
    for rival in (EACH, SHARED):
      if rival != label:
        ratio = macs[rival] / macs[label]
        rows.append(results.row("macs_ratio", [ratio], rival=rival, **columns))
    rows.append(results.row("predict_ms", [1e3 * s for s in seconds[label]], **columns))
  return rows


def main(argv: list[str]) -> int:
  del argv
  values = flags.FLAGS
  with cli.checking():
    classes = [int(c) if c.strip().isdigit() else 0 for c in values.classes]
    if not classes or min(classes) < 2 or max(classes) >= 784:
      raise ValueError(f"--classes takes numbers from 2 to 783, not {values.classes}")
  rows = []
  for number in classes:
    rows += compare(number, (1000, 1000, 1000), (28, 28, 1), values.batch, values.rounds)
  for r in rows:
    if r["metric"] == "speedup":
      console.print(f"{r['preset']:45s} {r['median']:8.2f} times as fast as {r['rival']}")
  console.print(f"results   {results.write_study('one_pass', rows)}")
  return 0


if __name__ == "__main__":
  # Here, so that a test may import this module beside another benchmark with the same flags.
  flags.DEFINE_list("classes", ["10", "100"], "numbers of classes")
  flags.DEFINE_integer("batch", 200, "images at a time", lower_bound=1)
  flags.DEFINE_integer("rounds", 9, "rounds of every rival", lower_bound=3)
  cli.run(main)
