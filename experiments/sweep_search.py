"""Adaptive search with Optuna: trials ask for settings, layers' accuracies say which are pruned.

The trials live in a storage of Optuna's, by default a SQLite file in the sweep's folder, so that
any number of workers may share a search and each may be cut. Every trial trains all seeds of the
sweep as one program; its runs are points of the sweep like any other, and are never run twice.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import pathlib
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from experiments import config, sweeps
from experiments.config import ExperimentConfig
from experiments.sweep_axes import Axis, Point, Range, label, make_point
from experiments.sweep_points import Rows, seeds_together

_BEAT, _GRACE = 10, 60  # seconds; a trial whose worker is silent for longer counts as failed


class Search(NamedTuple):
  """A search, as it travels to other processes.

  Attributes:
    base: the configuration that all trials start from, as a dictionary.
    axes: what is searched: values are choices, ranges are intervals.
    seeds: with which every trial is trained.
    trials: the number of trials of all workers together, the earlier ones included.
    storage: URL of Optuna's storage.
    folder: of the sweep.
  """

  base: Mapping[str, Any]
  axes: Mapping[str, Axis]
  seeds: tuple[int, ...]
  trials: int
  storage: str
  folder: str


class Found(NamedTuple):
  """What a search has found so far.

  Attributes:
    points: of the trials that were trained to the end, every seed.
    pruned: trials that were not worth going on with.
    failed: label of a trial -> what went wrong.
  """

  points: list[Point]
  pruned: int
  failed: dict[str, str]


def make_search(
  base: ExperimentConfig,
  axes: Mapping[str, Axis],
  trials: int,
  storage: str,
  folder: pathlib.Path,
) -> Search:
  """A search over `axes`; the values of axis "seed" are trained in every trial.

  Raises:
    ValueError: nothing is to be searched, or Optuna is missing; one sentence.
  """
  try:
    import optuna  # noqa: F401
  except ImportError:
    raise ValueError("--search needs Optuna: pip install 'fflax[sweep]'") from None
  searched = {name: axis for name, axis in axes.items() if name != "seed"}
  seeds = axes.get("seed", (base.seed,))
  if isinstance(seeds, Range):
    raise ValueError("axis 'seed' is not searched: every trial is trained with all of its values")
  if not searched:
    raise ValueError("a search needs an axis beside the seeds")
  url = storage or f"sqlite:///{(folder / 'optuna.db').absolute()}"
  return Search(config.as_dict(base), searched, tuple(seeds), trials, url, str(folder))


def _study(search: Search) -> Any:
  import optuna

  optuna.logging.set_verbosity(optuna.logging.ERROR)  # failed trials are told in a sentence
  if search.storage.startswith("redis"):
    storage: Any = search.storage
  else:
    with warnings.catch_warnings():
      warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
      storage = optuna.storages.RDBStorage(
        search.storage, heartbeat_interval=_BEAT, grace_period=_GRACE
      )
  fingerprint = config.fingerprint(config.from_mapping(search.base))
  what = json.dumps([fingerprint, {n: list(a) for n, a in search.axes.items()}, search.seeds])
  return optuna.create_study(
    storage=storage,
    study_name=f"fflax-{hashlib.sha256(what.encode()).hexdigest()[:16]}",
    direction="maximize",
    pruner=optuna.pruners.MedianPruner(),
    load_if_exists=True,
  )


def _suggest(trial: Any, name: str, axis: Axis) -> Any:
  if not isinstance(axis, Range):
    # Optuna keeps choices as numbers and texts; a tuple is none.
    return axis[trial.suggest_categorical(name, list(range(len(axis))))]
  if axis.whole:
    return trial.suggest_int(name, int(axis.low), int(axis.high), log=axis.log)
  return trial.suggest_float(name, axis.low, axis.high, log=axis.log)


def _worth(rows: Rows, readout: str) -> float:
  """What a trial is pruned by: the mean accuracy of the layers that answer, else the readout's."""
  layers = [v for row in rows for n, v in row.items() if n.endswith("/accuracy")]
  return float(np.mean(layers or [row[f"accuracy/{readout}"] for row in rows]))


def work(search: Search, on_trial: Callable[[str], None] | None = None) -> None:
  """Takes trials until there are enough, of all workers together."""
  import optuna

  base, study = config.from_mapping(search.base), _study(search)
  told = on_trial or (lambda line: None)

  def objective(trial: Any) -> float:
    # Of its number alone: a search that was cut goes on as it would have, and workers differ.
    own_seed = (base.seed * 1_000_003 + trial.number) % 2**32
    trial.study.sampler = optuna.samplers.TPESampler(seed=own_seed)
    settings = {name: _suggest(trial, name, axis) for name, axis in search.axes.items()}
    trial.set_user_attr("settings", settings)
    name = label(settings)
    looks = 0

    def judge(epoch: float, rows: Rows) -> None:
      nonlocal looks
      looks += 1
      trial.report(_worth(rows, points[0].config.readouts[0]), looks)
      if epoch < points[0].config.epochs and trial.should_prune():
        raise sweeps.Stop(f"{name}: pruned after epoch {epoch:g}")

    everything = [{**settings, "seed": seed} for seed in search.seeds]
    try:
      points = [make_point(base, s) for s in everything]
      parts = [everything] if seeds_together(points[0]) else [[s] for s in everything]
      for part in parts:
        judged = judge if len(parts) == 1 else None  # else the second would report steps again
        failed = sweeps.run_job(sweeps.Job(search.base, part, (), search.folder), judged)
        if failed:
          raise ValueError(next(iter(failed.values())))
    except sweeps.Stop as stop:
      told(str(stop))
      raise optuna.TrialPruned() from None
    except ValueError as error:
      trial.set_user_attr("failed", str(error))
      told(f"{name}: {error}")
      raise
    found = [sweeps.read_point(search.folder, p.key) for p in points]
    sentences = [one["diverged"] for one in found if one and one["diverged"]]
    if sentences:
      trial.set_user_attr("failed", sentences[0])
      told(f"{name}: {sentences[0]}")
      raise optuna.TrialPruned()  # the worst there is, so that the sampler stays away
    key = f"accuracy/{points[0].config.readouts[0]}"
    value = float(np.mean([next(iter(one["accuracy"].values()))[key] for one in found if one]))
    told(f"{name}: {100 * value:.2f} %")
    return value

  def enough() -> bool:
    # A trial whose worker was killed has not ended, and another one is taken in its place.
    trials = study.get_trials(deepcopy=False)
    good = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    return sum(t.state in good or "failed" in t.user_attrs for t in trials) >= search.trials

  def stop_if_enough(study: Any, trial: Any) -> None:
    del trial
    if enough():
      study.stop()

  if not enough():
    study.optimize(objective, callbacks=[stop_if_enough], catch=(ValueError,))


def run(search: Search, workers: int, on_trial: Callable[[str], None]) -> Found:
  """Runs the search, here or in `workers` processes, and collects what all workers have found.

  Raises:
    BrokenProcessPool: a worker died; the same search goes on where it was.
  """
  if workers == 1:
    work(search, on_trial)
  else:
    _study(search)  # made once, before many ask for it
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(workers, context, sweeps.end_with_parent) as pool:
      for future in [pool.submit(work, search) for _ in range(workers)]:
        future.result()
  return collect(search)


def collect(search: Search) -> Found:
  """What is there, of this and of every other worker."""
  import optuna

  base, states = config.from_mapping(search.base), optuna.trial.TrialState
  points: dict[str, Point] = {}
  pruned, failed = 0, {}
  for trial in _study(search).get_trials(deepcopy=False):
    settings = _typed(search, trial.user_attrs.get("settings", {}))
    if "failed" in trial.user_attrs:
      failed[label(settings)] = trial.user_attrs["failed"]
    elif trial.state == states.PRUNED:
      pruned += 1
    elif trial.state == states.COMPLETE:
      for seed in search.seeds:
        point = make_point(base, {**settings, "seed": seed})
        points[point.key] = point
  return Found(list(points.values()), pruned, failed)


def _typed(search: Search, settings: Mapping[str, Any]) -> dict[str, Any]:
  """Settings as they were before JSON: its lists are tuples."""
  return {n: tuple(v) if isinstance(v, list) else v for n, v in settings.items()}
