"""Local learning against backprop by number of classes: Chen 2026, the teacher-student sweep.

  python -m experiments.studies.class_sweep [--classes=5,10,15,20,30,50] [--steps=8000]
    [--presets=synth_dtg,synth_deepsup,synth_bp] [--ensemble=4]

Every seed has a teacher, data and an initialisation of its own, the same for all presets; the
seeds of a point train as one program under `vmap`. Written are every point's test error and train
accuracy, the paired differences of the first preset to the others, and whether they grow with the
number of classes (`contrast.py`). A sweep that was cut goes on with the points that it lacks.

Deviation from the published analysis: intervals that resample seeds stand beside the published one.
"""

import dataclasses
import hashlib
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments import cli, config, results, workdir
from experiments.assembly import Experiment, build, prove_locality
from experiments.console import console
from experiments.row_costs import row_costs
from experiments.studies.class_figures import draw, table
from experiments.studies.contrast import contrast
from fflax.training.chunk import chunk_function
from fflax.types import Array, Batch, TrainState

_CLASSES = flags.DEFINE_list("classes", ["5", "10", "15", "20", "30", "50"], "numbers of classes")
_SEEDS = flags.DEFINE_list("seeds", ["42", "123", "456", "789", "1024"], "seeds")
_PRESETS = flags.DEFINE_list(
  "presets", ["synth_dtg", "synth_deepsup", "synth_bp"], "the method in question, then its controls"
)
_STEPS = flags.DEFINE_integer("steps", 8000, "of training", 1)
_ENSEMBLE = flags.DEFINE_integer(
  "ensemble", 0, "nets of an ensemble of the last preset; 0: none", 0
)
_LOW = flags.DEFINE_integer("low", 20, "numbers of classes up to this one count as low")
_STUDY = flags.DEFINE_string("study", "", "name of the result file; default: class_sweep")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the points that are done")

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


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    seeds, classes = cli.parse_seeds(_SEEDS.value), [int(k) for k in _CLASSES.value]
    plans = {name: config.load_preset(name) for name in _PRESETS.value}
    folder = pathlib.Path(_RUNS.value) / "class_sweep"
    folder.mkdir(parents=True, exist_ok=True)
  labels = {name: (name, 1) for name in plans}
  if _ENSEMBLE.value > 1:
    last = list(plans)[-1]
    labels[f"{last}, {_ENSEMBLE.value} nets"] = (last, _ENSEMBLE.value)
  command = cli.command_line("experiments.studies.class_sweep", sys.argv[1:])
  rows: list[dict[str, Any]] = []
  accuracy: dict[str, dict[int, list[float]]] = {label: {} for label in labels}
  for label, (name, members) in labels.items():
    for k in classes:
      data = dataclasses.replace(plans[name].data, num_classes=k)
      chosen = dataclasses.replace(plans[name], data=data, seed=seeds[0])
      with cli.checking():
        found = _done_or_run(folder, chosen, seeds, members)
      accuracy[label][k] = found["test"]
      rows.append(_row(label, chosen, seeds, members, found, command))
      console.print(f"{label:24s} {k:3d} classes  {rows[-1]['mean']:.2f} % test error")
  compared = analysis(accuracy, _LOW.value)
  study = _STUDY.value or "class_sweep"
  study += f"_short_{_STEPS.value}_steps" if _STEPS.value < 8000 else ""
  path = results.write_study(study, rows, compared=compared)
  path.with_suffix(".md").write_text(table(rows, compared))
  draw(rows, compared, path.with_suffix(".png"))
  for one in compared:
    if "contrast" in one:
      c = one["contrast"]
      console.print(f"{one['method']} - {one['rival']}: low {c['low']:+.2f}, high {c['high']:+.2f}")
  console.print(f"results   {path}")
  return 0


def _done_or_run(
  folder: pathlib.Path, chosen: config.ExperimentConfig, seeds: Sequence[int], members: int
) -> dict[str, Any]:
  """A point, from its file if an earlier sweep has left it."""
  key = {"config": config.fingerprint(chosen), "seeds": list(seeds), "members": members}
  key["steps"] = _STEPS.value
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
  path = folder / f"{name}.json"
  if path.exists():
    return json.loads(path.read_text())["accuracy"]
  found = point(chosen, seeds, _STEPS.value, members)
  workdir.write_json(path, {**key, "accuracy": found})
  return found


def _row(
  label: str,
  chosen: config.ExperimentConfig,
  seeds: Sequence[int],
  members: int,
  found: dict[str, Any],
  command: str,
) -> dict[str, Any]:
  experiment = build(chosen)
  matrix = prove_locality(experiment)
  k = chosen.data.num_classes
  return results.row(
    "test_error_percent",
    [100 * (1 - a) for a in found["test"]],
    locality=experiment.trainer.locality,
    **results.choices(chosen)
    | {"dataset": f"synthetic, {k} classes", "epochs": None, "steps": _STEPS.value},
    preset=label,
    classes=k,
    members=members,
    locality_matrix=matrix.astype(int).tolist(),
    seeds=list(seeds),
    readout=chosen.readouts[0],
    train_accuracy_percent=[round(100 * a, 3) for a in found["train"]],
    layer_accuracy_percent=[[round(100 * a, 3) for a in one] for one in found["layers"]],
    published=None,
    command=command,
    cost=row_costs(chosen, memory=False),
  )


if __name__ == "__main__":
  cli.run(main)
