"""Points of a sweep as one program: states, seeds and float hyper-parameters under one `jax.vmap`.

Each point is the run that `experiments.train` makes of its configuration, up to rounding: the same
initialisation, batches, updates and evaluations. Points are spread over the devices there are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.assembly import Experiment, build
from experiments.sweep_axes import Point, with_values
from experiments.traced import TracedFloat, weak
from fflax.data.dataset import Dataset, Split
from fflax.training.chunk import chunk_function
from fflax.training.evaluate import make_evaluate
from fflax.training.loop import first_failure, is_broken
from fflax.training.sharding import make_mesh
from fflax.types import Array, Batch, TrainState

_CHUNK = 500
Rows = list[dict[str, float]]
"""Flat accuracies (fractions), one dictionary a point."""


class Program(NamedTuple):
  """The pure functions of all points; all take and return a leading axis of points.

  Attributes:
    init: `(keys, values, images, labels) -> states`.
    chunk: `(states, values, images, labels, steps) -> (states, failed)`.
    evaluate: `(states, values, images, labels) -> (flat accuracies of a split, broken)`, with
      `broken [P, learners]`: whether a parameter of a layer, or of a readout, is not finite.
    capacity: the most steps of a chunk.
    experiment: the first point's, alone.
  """

  init: Callable[..., TrainState]
  chunk: Callable[..., tuple[TrainState, Mapping[str, Array]]]
  evaluate: Callable[..., tuple[dict[str, Array], Array]]
  capacity: int
  experiment: Experiment


def data_differ(points: Sequence[Point]) -> bool:
  """Whether the points learn from different examples."""
  seeds = {p.config.seed for p in points}
  return len(seeds) > 1 and points[0].config.data.drawn_by_seed


def make_program(points: Sequence[Point], traced: Sequence[str], dataset: Dataset) -> Program:
  """The program of points that differ in their seeds and in the float axes `traced`, alone.

  Args:
    points: P of them.
    traced: axes that enter the program as arguments, `values [P, len(traced)]`.
    dataset: of one of the points.
  """
  first, alone = points[0].config, build(points[0].config, dataset)
  numbers = {name: [p.settings[name] for p in points] for name in traced}
  each = 0 if data_differ(points) else None
  capacity = min(_CHUNK, alone.plan.eval_every or _CHUNK, alone.plan.num_steps)

  def experiment(values: Array) -> Experiment:
    """Of one point, whose hyper-parameters are tracers."""
    own = {n: TracedFloat(n, weak(values[i]), numbers[n]) for i, n in enumerate(traced)}
    return build(with_values(first, own) if own else first, dataset)

  def init(key: Array, values: Array, images: Array, labels: Array) -> TrainState:
    own = experiment(values)
    return own.trainer.init(key, Batch(own.preprocess(None, images[:2]), labels[:2]))

  def chunk(
    state: TrainState, values: Array, images: Array, labels: Array, steps: Array
  ) -> tuple[TrainState, Mapping[str, Array]]:
    own = experiment(values)
    new, (_, failed) = chunk_function(own.trainer, own.feed, capacity)(state, images, labels, steps)
    return new, failed

  def evaluate(
    state: TrainState, values: Array, images: Array, labels: Array
  ) -> tuple[dict[str, Array], Array]:
    own = experiment(values)
    answer = make_evaluate(
      own.trainer,
      lambda x: own.preprocess(None, x),
      len(labels),
      first.eval_batch_size,
      dataset.num_classes,
    )
    found = answer(state, images, labels)
    layers = [s.params for s in own.trainer.layer_states(state)]
    broken = [is_broken(p) for p in [*layers, *(s.params for s in state.readouts)]]
    return {name: x for name, x in found.items() if "accuracy" in name}, jnp.stack(broken)

  return Program(
    jax.jit(jax.vmap(init, in_axes=(0, 0, each, each))),
    jax.jit(jax.vmap(chunk, in_axes=(0, 0, each, each, None)), donate_argnums=0),
    jax.jit(jax.vmap(evaluate, in_axes=(0, 0, each, each))),
    capacity,
    alone,
  )


def traceable(
  points: Sequence[Point], names: Sequence[str], dataset: Dataset
) -> tuple[list[str], list[str]]:
  """Which float axes can enter one program of these points; found by tracing, nothing is run.

  Returns:
    Their names, and one sentence for each of the others.
  """

  def objection(some: Sequence[str]) -> str:
    try:
      _trace(points, some, dataset)
    except Exception as error:  # whatever it is: alone, every point is possible
      return " ".join(str(error).split())[:200]
    return ""

  if not names or not objection(names):
    return list(names), []
  found, lines = [], []
  for name in names:
    # The other axes stand still; all points of these that are left differ in this one alone.
    why = objection([name])
    if why:
      lines.append(f"axis {name} is not vmappable, its values run one after another: {why}")
    else:
      found.append(name)
  why = objection(found) if len(found) > 1 else ""
  if why:
    lines.append(f"axes {', '.join(found)} do not go into one program: {why}")
  return ([] if why else found), lines


def _trace(points: Sequence[Point], names: Sequence[str], dataset: Dataset) -> None:
  """Traces the whole program of the points as if they differed in `names` alone."""
  program, count = make_program(points, names, dataset), len(points)
  each = (count,) if data_differ(points) else ()
  image, label = dataset.train
  images = jax.ShapeDtypeStruct((*each, *image.shape), image.dtype)
  labels = jax.ShapeDtypeStruct((*each, *label.shape), label.dtype)
  keys = jax.eval_shape(jax.vmap(jax.random.key), jax.ShapeDtypeStruct((count,), jnp.uint32))
  values = jax.ShapeDtypeStruct((count, len(names)), jnp.float32)
  states = jax.eval_shape(program.init, keys, values, images, labels)
  new, _ = jax.eval_shape(program.chunk, states, values, images, labels, 1)
  jax.eval_shape(program.evaluate, new, values, images, labels)


def _placed(tree: Any, mesh: jax.sharding.Mesh | None, over: bool) -> Any:
  """On the device; with a mesh, split over it along the axis of points, or whole on each device."""
  if mesh is None:
    return jax.tree.map(jnp.asarray, tree)
  spec = jax.sharding.PartitionSpec("sweep") if over else jax.sharding.PartitionSpec()
  return jax.device_put(tree, jax.sharding.NamedSharding(mesh, spec))


def run_together(
  points: Sequence[Point],
  traced: Sequence[str],
  datasets: Mapping[int, Dataset],
  on_evaluation: Callable[[float, Rows], None] | None = None,
  program: Program | None = None,
) -> list[dict[str, Any]]:
  """Trains all points to the end of their plan.

  Args:
    points: differ in seeds and in the axes `traced` alone.
    traced: see `make_program`.
    datasets: by seed.
    on_evaluation: is told every evaluation, as epoch and flat accuracies; it may raise to stop.
    program: of these points, if it is made already.

  Returns:
    A dictionary a point: "accuracy" (split -> flat accuracies; fractions), "history" (evaluations
    between epochs, with "epoch"), and "diverged" (None or a sentence).
  """
  count = len(points)
  width = min(count, jax.device_count())
  mesh = make_mesh(sweep=width) if width > 1 else None
  # A point more than once fills up the devices; what it gives is left out.
  everyone = [*points, *[points[0]] * (-count % width)]
  own = [datasets[p.config.seed] for p in everyone]
  program = program or make_program(everyone, traced, own[0])
  alone = program.experiment
  differ = data_differ(points)

  def arrays(get: Callable[[Dataset], Split | None]) -> tuple[Any, Any]:
    splits = [s for s in map(get, own if differ else own[:1]) if s is not None]
    pairs = [[s[i] for s in splits] for i in range(2)]
    images, labels = (np.stack(p) if differ else np.asarray(p[0]) for p in pairs)
    return _placed((images, labels), mesh, over=differ)

  table = np.array([[p.settings[n] for n in traced] for p in everyone], np.float32)
  values = _placed(table.reshape(len(everyone), len(traced)), mesh, over=True)
  seeds = np.array([p.config.seed for p in everyone], np.uint32)
  keys = _placed(jax.vmap(jax.random.key)(jnp.asarray(seeds)), mesh, over=True)
  train, plan, names = arrays(lambda d: d.train), alone.plan, alone.trainer.layer_names
  splits = {"test": arrays(lambda d: d.test)}
  if own[0].validation is not None:
    splits = {"validation": arrays(lambda d: d.validation), **splits}
  monitor = next(iter(splits))

  def evaluation(name: str) -> tuple[Rows, np.ndarray]:
    found, broken = jax.tree.map(np.asarray, program.evaluate(states, values, *splits[name]))
    return [{k: float(v[i]) for k, v in found.items()} for i in range(count)], broken

  states = program.init(keys, values, *train)
  history: list[list[dict[str, float]]] = [[] for _ in points]
  diverged: list[str | None] = [None] * count
  step, bad = 0, np.zeros((count, 1), bool)
  rows: Rows = []
  while step < plan.num_steps:
    due = plan.num_steps
    if plan.eval_every:
      due = min(due, (step // plan.eval_every + 1) * plan.eval_every)
    length = min(due - step, program.capacity)
    states, failed = program.chunk(states, values, *train, length)
    flags = {n: np.asarray(x)[:, :length] for n, x in failed.items()}
    for i in range(count):
      failure = first_failure({n: x[i] for n, x in flags.items()}, names)
      if failure is not None and diverged[i] is None:
        at = step + failure[0]
        diverged[i] = f"the loss of {failure[1]} is not finite in step {at} (counted from 0)"
    step += length
    if step == due and not all(diverged):
      (rows, bad), epoch = evaluation(monitor), step / plan.steps_per_epoch
      for old, row in zip(history, rows, strict=True):
        old.append({"epoch": epoch, **row})
      if on_evaluation is not None:
        on_evaluation(epoch, rows)
    if all(diverged):
      break
  readouts = [f"readout {r.name}" for r in alone.readouts]
  for i in range(count):
    if diverged[i] is None and bad[i].any():
      who = [*names, *readouts][int(bad[i].argmax())]
      diverged[i] = f"a parameter of {who} is not finite in step {step - 1} (counted from 0)"
  final = {name: rows if name == monitor else evaluation(name)[0] for name in splits}
  return [
    {
      "accuracy": None if diverged[i] else {name: found[i] for name, found in final.items()},
      "history": history[i],
      "diverged": diverged[i],
    }
    for i in range(count)
  ]


def candidates(points: Sequence[Point]) -> list[str]:
  """Axes whose values are floats, and differ."""
  fields = points[0].settings
  floats = [n for n in fields if isinstance(fields[n], float) and n != "seed"]
  return [n for n in floats if len({p.settings[n] for p in points}) > 1]


def seeds_together(point: Point) -> bool:
  """Whether runs with other seeds fit into the program of this one."""
  data = point.config.data
  # Statistics of the training split are constants of the preprocessing.
  by_seed = data.validation or data.name == "synthetic"
  return not (data.normalization == "dataset" and by_seed)
