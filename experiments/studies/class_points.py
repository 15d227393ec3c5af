"""Points of the class sweep: every seed's net in one program; differences between methods."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import cli, config
from experiments.assembly import Experiment, build
from experiments.studies.contrast import contrast
from fflax.training.chunk import chunk_function
from fflax.types import Array, Batch, TrainState

_CHUNK = 500
_EVAL = 1000


def point(
  chosen: config.ExperimentConfig, seeds: Sequence[int], steps: int, members: int = 1
) -> dict[str, list[float]]:
  """Trains every seed's net, all in one program, and returns accuracies, one a seed.

  Args:
    chosen: its data must be preprocessed in the same way for every seed.
    seeds: each draws teacher, data, initialisation and batches.
    steps: of training.
    members: nets of an ensemble a seed, which answers by the mean of their softmax.

  Returns:
    "train" and "test": by the first readout, a fraction; "layers": per seed those of each layer on
    the test set (of single nets).

  Raises:
    ValueError: the configuration is impossible or its preprocessing depends on the seed's data.
    Stopped: a loss was not finite.
  """
  if chosen.data.normalization not in ("none", "half") or chosen.data.name != "synthetic":
    raise ValueError("a sweep needs data 'synthetic' with normalization 'none' or 'half'")
  experiments = [build(dataclasses.replace(chosen, seed=s)) for s in seeds]
  first = experiments[0]
  images, labels, test_images, test_labels = (
    jnp.stack([jnp.asarray(get(e)) for e in experiments for _ in range(members)])
    for get in (
      lambda e: e.images,
      lambda e: e.labels,
      lambda e: e.dataset.test.image,
      lambda e: e.dataset.test.label,
    )
  )
  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
  if members > 1:
    keys = jax.vmap(lambda k: jax.random.split(k, members))(keys).reshape(-1)
  example = Batch(jax.vmap(lambda x: first.preprocess(None, x))(images[:, :2]), labels[:, :2])
  states = jax.jit(jax.vmap(first.trainer.init))(keys, example)
  step = jax.vmap(chunk_function(first.trainer, first.feed, _CHUNK), in_axes=(0, 0, 0, None))
  chunk = jax.jit(step, donate_argnums=0)
  done = 0
  while done < steps:
    length = min(_CHUNK, steps - done)
    states, (_, failed) = chunk(states, images, labels, length)
    if any(bool(f[:, :length].any()) for f in jax.tree.leaves(failed)):
      raise cli.Stopped(f"a loss was not finite between steps {done} and {done + length}")
    done += length
  answer = _answers(first, members)
  train, _ = answer(states, images, labels)
  test, layers = answer(states, test_images, test_labels)
  return {"train": train.tolist(), "test": test.tolist(), "layers": layers.T.tolist()}


def _answers(experiment: Experiment, members: int):
  """The jitted `(states, images, labels) -> (accuracy [S], layers' accuracies [L, S])`."""
  trainer, name = experiment.trainer, experiment.config.readouts[0]

  def scores(state: TrainState, images: Array) -> tuple[Array, list[Array]]:
    def part(x: Array) -> tuple[Array, list[Array]]:
      found = trainer.answer(state, experiment.preprocess(None, x))
      return found.readouts[name], [s for s in found.layers if s is not None]

    parts = images.reshape(-1, min(_EVAL, len(images)), *images.shape[1:])
    return jax.tree.map(lambda x: x.reshape(-1, x.shape[-1]), jax.lax.map(part, parts))

  @jax.jit
  def answer(states: TrainState, images: Array, labels: Array) -> tuple[Array, Array]:
    total, layers = jax.vmap(scores)(states, images)
    if members > 1:
      total = jax.nn.softmax(total).reshape(-1, members, *total.shape[1:]).mean(axis=1)
    own = [jnp.mean(s.argmax(-1) == labels, axis=1) for s in layers]
    right = total.argmax(-1) == labels[::members]
    return jnp.mean(right, axis=1), jnp.stack(own) if own else jnp.zeros((0, len(labels)))

  return answer


def analysis(accuracy: dict[str, dict[int, list[float]]], low: int) -> list[dict[str, Any]]:
  """The first method's differences to each other, by number of classes, and their contrast.

  Args:
    accuracy: method -> number of classes -> test accuracy of every seed, a fraction.
    low: numbers of classes up to this one are low.
  """
  (name, mine), *others = accuracy.items()
  classes = list(mine)
  sides = (
    [i for i, k in enumerate(classes) if k <= low],
    [i for i, k in enumerate(classes) if k > low],
  )
  found = []
  for rival, theirs in others:
    d = 100 * np.array([np.subtract(mine[k], theirs[k]) for k in classes]).T
    one: dict[str, Any] = {
      "method": name,
      "rival": rival,
      "differences": {str(k): [round(float(x), 3) for x in d[:, i]] for i, k in enumerate(classes)},
      "wins": {str(k): int((d[:, i] > 0).sum()) for i, k in enumerate(classes)},
    }
    if all(sides):
      one["contrast"] = contrast(d, *sides)._asdict()
    found.append(one)
  return found
