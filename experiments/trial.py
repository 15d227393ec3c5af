"""One point of the product, tried: it trains two steps and answers, or is refused in one sentence.

"Traced" makes the run and follows two steps and an answer by shape alone (`jax.eval_shape`), which
costs a second and finds whatever cannot be assembled; "trained" compiles and takes them, and also
looks at the numbers. A refusal is a ValueError of this project's own, of one line, before a step is
traced; anything else that is raised is a failure.
"""

import dataclasses
import pathlib
import traceback
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from experiments import product
from experiments.assembly import Experiment, build, check
from experiments.product import Point
from fflax.types import Answers, Array, Metrics

Verdict = Literal["works", "refused", "fails"]

_OWN = pathlib.Path(__file__).resolve().parents[1]
_LONGEST = 500  # characters of a sentence


class Outcome(NamedTuple):
  """What became of a point.

  Attributes:
    point: that was tried.
    verdict: see the module.
    reason: the sentence of a refusal, or the last line of a failure.
    trained: whether numbers were computed.
  """

  point: Point
  verdict: Verdict
  reason: str = ""
  trained: bool = False


def refusal_fault(error: Exception) -> str | None:
  """Why `error` is no refusal that a person can use; None if it is one."""
  if not isinstance(error, ValueError):
    return f"{type(error).__name__}, not ValueError"
  text = str(error)
  if not text.strip() or "\n" in text or len(text) > _LONGEST:
    return f"not one sentence but {len(text)} characters in {len(text.splitlines())} lines"
  frames = traceback.extract_tb(error.__traceback__)
  if frames and not _is_own(frames[-1].filename):
    return f"raised by {pathlib.Path(frames[-1].filename).name}, not by a check of ours"
  return None


def _is_own(file: str) -> bool:
  path = pathlib.Path(file).resolve()
  return any(path.is_relative_to(_OWN / room) for room in ("fflax", "experiments"))


def _failure(point: Point, error: Exception, why: str, trained: bool) -> Outcome:
  last = traceback.format_exception_only(error)[0].strip().splitlines()[0]
  own = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename)]
  place = f" at {pathlib.Path(own[-1].filename).name}:{own[-1].lineno}" if own else ""
  return Outcome(point, "fails", f"{why}{place}: {last[:_LONGEST]}", trained)


def two_steps(experiment: Experiment) -> Any:
  """`() -> (metrics [2, ...], answers)` of a fresh state; its types must not change in a step."""
  trainer, batch = experiment.trainer, experiment.example(product.BATCH_SIZE)

  def run(key: Array) -> tuple[Metrics, Answers]:
    state = trainer.init(key, batch)
    state, metrics = lax.scan(lambda s, _: trainer.step(s, batch), state, length=2)
    return metrics, trainer.answer(state, batch.image)

  return run


def _wrong_answers(experiment: Experiment, metrics: Any, answers: Answers) -> str | None:
  """What is wrong with shapes, and with the numbers where there are any."""
  expected = (product.BATCH_SIZE, experiment.dataset.num_classes)
  for name, scores in answers.readouts.items():
    if scores.shape != expected or not jnp.issubdtype(scores.dtype, jnp.floating):
      return f"readout {name} gives {scores.dtype}{list(scores.shape)}, not {list(expected)}"
  if metrics["loss"].shape != (2, len(experiment.network.layers)):
    return f"the losses have shape {list(metrics['loss'].shape)}"
  if isinstance(metrics["loss"], jax.ShapeDtypeStruct):
    return None
  if experiment.schedule.active is None and not np.isfinite(metrics["loss"]).all():
    return f"after two steps the losses are {np.asarray(metrics['loss'][-1]).tolist()}"
  losses = np.asarray(metrics["loss"])
  if not np.isfinite(losses).any(axis=1).all():
    return f"no layer reports a loss: {losses.tolist()}"
  for name, scores in answers.readouts.items():
    if not np.isfinite(scores).all():
      return f"readout {name} answers with NaN or infinity"
  return None


def attempt(points: Sequence[Point], train: bool = False) -> list[Outcome]:
  """Tries points that differ in nothing but the readout, assembled once as one run has them all.

  Points that can be seen to be impossible are refused one by one; if the others are refused
  together, or fail, each is tried alone. So every outcome is that of the point by itself: what a
  readout needs beside it is looked at in the first check.

  Args:
    points: of one network, numerics, method, schedule and extra.
    train: compile and take the steps.
  """
  outcomes, left = {}, []
  for point in points:
    try:
      check(product.configuration(point))
      left.append(point)
    except Exception as error:
      outcomes[point] = _refused_or_failed(point, error, train)
  if left:
    together = _attempt_together(left, train)
    if len(left) > 1 and any(o.verdict != "works" for o in together):
      together = [_attempt_together([point], train)[0] for point in left]
    outcomes |= {outcome.point: outcome for outcome in together}
  return [outcomes[point] for point in points]


def _refused_or_failed(point: Point, error: Exception, train: bool) -> Outcome:
  fault = refusal_fault(error)
  if fault is None:
    return Outcome(point, "refused", str(error), train)
  return _failure(point, error, fault, train)


def _attempt_together(points: Sequence[Point], train: bool) -> list[Outcome]:
  config = product.configuration(points[0])
  names = tuple(point.readout for point in points)
  try:
    experiment = build(dataclasses.replace(config, readouts=names), product.dataset())
  except Exception as error:
    return [_refused_or_failed(point, error, train) for point in points]
  try:
    run, key = two_steps(experiment), jax.random.key(0)
    if train:
      options = {"xla_backend_optimization_level": 0}
      found = jax.jit(run, compiler_options=options)(key)
    else:
      found = jax.eval_shape(run, key)
    wrong = _wrong_answers(experiment, *found)
  except Exception as error:
    return [_failure(point, error, "not before the work began", train) for point in points]
  verdict: Verdict = "works" if wrong is None else "fails"
  return [Outcome(point, verdict, wrong or "", train) for point in points]
