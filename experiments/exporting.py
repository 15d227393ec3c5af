"""A trained run as a program that needs no fflax: StableHLO, its weights, what to know of them.

The weights are arguments of the program, not constants in it: the program stays a few kilobytes
that anyone can read, is compiled without folding them, and int8 kernels stay int8 until they are
used. `experiments/load_exported.py` is the other end.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from experiments.assembly import Experiment, trainer_parts
from experiments.batches import in_batches
from fflax.analysis.liveness import live_equations
from fflax.core import early_exit
from fflax.core.early_exit import ExitRule
from fflax.core.readouts import make_readout
from fflax.data.dataset import Split
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.training.weight_store import int8_store
from fflax.types import Array, Readout, TrainState

PLATFORMS = ("cpu", "cuda", "tpu")
WEIGHTS = ("float32", "int8")

Weights = dict[str, np.ndarray]
Predict = Callable[[Weights, Array], dict[str, Array]]


class Exit(NamedTuple):
  """When an answer of the program counts as clear.

  Attributes:
    readout: whose answers by depth are looked at.
    rule: of which.
    fitted_on: the split that its threshold was fitted on, or "" if it was given.
  """

  readout: Readout
  rule: ExitRule
  fitted_on: str = ""


# --- the state ------------------------------------------------------------------------------------


def exported_state(experiment: Experiment, state: TrainState, weights: str) -> TrainState:
  """What a prediction needs of a state: layers unstacked, no optimisers, key and kernels as stored.

  `weights`: "float32", or "int8": kernels as `Int8Weight`, those of a run that keeps them so as
  they are, others rounded to nearest, at most half a scale away.
  """
  store = int8_store(room=1.0)
  change = jax.jit(store.pack if weights == "int8" else store.load)
  layers = experiment.trainer.layer_states(state, stored=True)
  return TrainState(
    state.step,
    jax.random.key_data(state.key),
    tuple(dataclasses.replace(s, params=change(s.params), opt_state=()) for s in layers),
    tuple(dataclasses.replace(s, params=change(s.params), opt_state=()) for s in state.readouts),
  )


def usable_state(experiment: Experiment, exported: TrainState) -> TrainState:
  """The state, of floats, that a trainer takes; the inverse of `exported_state` up to rounding."""
  impl = jax.random.key_impl(jax.random.key(experiment.config.seed))
  found: TrainState = int8_store().load(exported)
  return dataclasses.replace(found, key=jax.random.wrap_key_data(found.key, impl=impl))


def named_weights(exported: TrainState) -> Weights:
  """The arrays of an exported state by their paths."""
  leaves = jax.tree_util.tree_leaves_with_path(exported)
  name = functools.partial(jax.tree_util.keystr, simple=True, separator=".")
  return {name(path): np.asarray(leaf) for path, leaf in leaves}


def unstacked_trainer(experiment: Experiment) -> Trainer:
  """The run's trainer for states of unstacked layers."""
  parts = trainer_parts(experiment.config, experiment.dataset.num_classes, 1)
  shape = experiment.dataset.train.image.shape[1:]
  return make_trainer(image_shape=shape, stack=False, **parts)


# --- the program ----------------------------------------------------------------------------------


def outputs_of(
  experiment: Experiment, trainer: Trainer, clear: Exit | None, state: TrainState, image: Array
) -> dict[str, Array]:
  """What the program answers to images as the data set has them, `[N, ...]`.

  "scores/<readout>" and "layers/<layer>" `[N, K]`; with `clear` also "exit/depth", how many layers
  would have been enough, and "exit/class", what they would have answered, `[N]` int32.
  """
  answers = trainer.answer(state, experiment.preprocess(None, image))
  found = {f"scores/{name}": scores for name, scores in answers.readouts.items()}
  layers = zip(trainer.layer_names, answers.layers, strict=True)
  found |= {f"layers/{name}": scores for name, scores in layers if scores is not None}
  if clear is not None:
    numbers, by_depth = early_exit.answers_by_depth(clear.readout, answers.layers)
    depth, scores = early_exit.stop(clear.rule, by_depth)
    found["exit/depth"] = jnp.asarray(numbers, jnp.int32)[depth] + 1
    found["exit/class"] = jnp.argmax(scores, axis=-1).astype(jnp.int32)
  return found


def predictor(experiment: Experiment, exported: TrainState, clear: Exit | None) -> Predict:
  """The program: `(weights, images) -> outputs`; weights that it is not given are zeros."""
  trainer, tree = unstacked_trainer(experiment), jax.tree.structure(exported)
  own = {
    name: np.broadcast_to(np.zeros((), array.dtype), array.shape)
    for name, array in named_weights(exported).items()
  }

  def predict(weights: Weights, image: Array) -> dict[str, Array]:
    leaves = [weights.get(name, array) for name, array in own.items()]
    state = usable_state(experiment, jax.tree.unflatten(tree, leaves))
    return outputs_of(experiment, trainer, clear, state, image)

  return predict


def lowered(
  predict: Predict, weights: Weights, image: jax.ShapeDtypeStruct, platforms: Sequence[str]
) -> tuple[jax.export.Exported, Weights]:
  """The exported program, and those of the weights that it reads.

  Raises:
    ValueError: it cannot be traced for a batch of any size, or lowered for a platform.
  """
  program = jax.jit(predict, keep_unused=True)
  try:
    traced = program.trace(weights, image).jaxpr.jaxpr
  except Exception as error:  # whatever a function raises that cannot take a size without a number
    if not jax.export.is_symbolic_dim(image.shape[0]):
      raise
    raise ValueError(
      f"this model cannot take batches of any size ({_brief(error)}): fix it with --batch_size"
    ) from error
  _, reads = live_equations(traced, (True,) * len(traced.outvars))
  read = {
    name: weights[name] for name, used in zip(sorted(weights), reads[:-1], strict=True) if used
  }
  if len(read) < len(weights):
    return lowered(predict, read, image, platforms)
  try:
    found = jax.export.export(program, platforms=tuple(platforms))(weights, image)
  except Exception as error:
    bad = dict(_unlowered(program, weights, image, platforms))
    rest = [p for p in platforms if p not in bad]
    if not bad:
      raise
    raise ValueError(
      f"the program cannot be lowered for {' and '.join(f'{p} ({why})' for p, why in bad.items())}"
      + (f": leave that out with --platforms={','.join(rest)}" if rest else "")
    ) from error
  return found, weights


def _unlowered(
  program: Any, weights: Weights, image: jax.ShapeDtypeStruct, platforms: Sequence[str]
) -> Iterator[tuple[str, str]]:
  """The platforms that a program cannot be lowered for, and why."""
  for platform in platforms:
    try:
      jax.export.export(program, platforms=[platform])(weights, image)
    except Exception as error:  # each rule of each platform has its own
      yield platform, _brief(error)


def _brief(error: Exception) -> str:
  """The first line of an error, without its full stop."""
  return (str(error) or type(error).__name__).splitlines()[0].rstrip(" .:")


def input_spec(experiment: Experiment, batch_size: int) -> jax.ShapeDtypeStruct:
  """Of the program's images; batch size 0: any."""
  image = experiment.dataset.test.image
  size = batch_size or jax.export.symbolic_shape("b")[0]
  return jax.ShapeDtypeStruct((size, *image.shape[1:]), image.dtype)


# --- early exit -----------------------------------------------------------------------------------


def layer_scores(
  experiment: Experiment, trainer: Trainer, state: TrainState, split: Split
) -> tuple[Array | None, ...]:
  """The class scores of every layer on a split, `[N, K]` or None."""

  @jax.jit
  def scores(image: Array) -> tuple[Array | None, ...]:
    return trainer.answer(state, experiment.preprocess(None, image)).layers

  return in_batches(scores, experiment.config.eval_batch_size, split.image)


def exit_readout(experiment: Experiment) -> Readout | None:
  """The run's own readout if it reads class scores, else their sum.

  None if there are none, or if layers hear those above them before they answer.
  """
  if experiment.method.score_views is None or experiment.method.heard_scores is not None:
    return None
  chosen = experiment.config
  for readout in (*experiment.readouts[:1], make_readout("score_sum", chosen.readout, 2)):
    if readout.view == "scores":
      return readout
  return None


def find_exit(
  experiment: Experiment, trainer: Trainer, state: TrainState, epsilon: float, threshold: float
) -> Exit | None:
  """When answers are clear: as `early_exit.fit` finds it on the validation split, if there is one.

  Else `threshold` is taken as it is, after temperatures of the training split, whose labels are
  smoothed: on what they were trained on, layers are sure of everything.
  """
  readout, data = exit_readout(experiment), experiment.dataset
  if readout is None:
    return None
  split = data.validation or data.train
  scores = layer_scores(experiment, trainer, state, split)
  _, answers = early_exit.answers_by_depth(readout, scores)
  label = jnp.asarray(split.label)
  if data.validation:
    return Exit(readout, early_exit.fit(answers, label, epsilon), "validation")
  temperature = early_exit.fit_temperature(answers, label, 0.01)
  return Exit(readout, ExitRule(jnp.float32(threshold), temperature), "")
