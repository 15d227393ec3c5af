"""The work of a sweep: which points go into one program, who runs them, and what is done already.

One JSON file stands for one finished point in `points/`, named by a hash of the run and written
atomically, so that a sweep may be cut anywhere and a finished point is never run again, whichever
command, slice or search asks for it. A run whose loss is not finite is finished, too.
"""

import concurrent.futures
import concurrent.futures.process
import itertools
import json
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from experiments import config, sweep_points, workdir
from experiments.assembly import build, prove_locality
from experiments.sweep_axes import Point, Settings, make_point
from experiments.sweep_points import Rows


class Job(NamedTuple):
  """Points of one program, as they travel to another process.

  Attributes:
    base: the configuration that all start from, as a dictionary.
    settings: of every point.
    traced: float axes that the program takes as arguments.
    folder: of the sweep.
  """

  base: Mapping[str, Any]
  settings: Sequence[Settings]
  traced: Sequence[str]
  folder: str


Failed = dict[str, str]
"""Key of a point -> the sentence of what went wrong."""


def point_file(folder: str | os.PathLike, key: str) -> pathlib.Path:
  return pathlib.Path(folder) / "points" / f"{key}.json"


def read_point(folder: str | os.PathLike, key: str) -> dict[str, Any] | None:
  """What a finished point has left; None if it is not finished.

  Raises:
    ValueError: its file is damaged.
  """
  path = point_file(folder, key)
  try:
    return json.loads(path.read_text())
  except FileNotFoundError:
    return None
  except ValueError as error:
    raise ValueError(
      f"{path} is damaged ({error}): delete it, and its point is run again"
    ) from None


# --- one job --------------------------------------------------------------------------------------


def run_job(job: Job, on_evaluation: Callable[[float, Rows], None] | None = None) -> Failed:
  """Runs the points of a job and writes their files; the sentences of those that failed.

  A program that cannot be run is taken apart, so that one point does not stop the others.
  """
  base = config.from_mapping(job.base)
  points = [make_point(base, settings) for settings in job.settings]
  points = [p for p in points if read_point(job.folder, p.key) is None]
  if not points:
    return {}
  try:
    told = _run(points, job, on_evaluation)
  except Stop:
    raise
  except Exception as error:  # whatever it is, the other points have a right to be run
    if len(points) == 1:
      said = " ".join(str(error).split())[:300]
      name = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
      return {points[0].key: f"{name}{said or 'no reason given'}"}
    parts = [run_job(job._replace(settings=[p.settings]), on_evaluation) for p in points]
    return {key: sentence for part in parts for key, sentence in part.items()}
  for point, one in zip(points, told, strict=True):  # a full disk is not the points' fault
    path = point_file(job.folder, point.key)
    path.parent.mkdir(parents=True, exist_ok=True)
    workdir.write_json(path, one)
  return {}


class Stop(Exception):
  """Raised by `on_evaluation` to end a job before its time; its points stay unfinished."""


def _run(
  points: Sequence[Point], job: Job, on_evaluation: Callable[[float, Rows], None] | None
) -> list[dict[str, Any]]:
  """What is kept of every point."""
  start = time.perf_counter()
  first = build(points[0].config)
  datasets = {p.config.seed: first.dataset for p in points}
  if sweep_points.data_differ(points):
    by_seed = {p.config.seed: p.config for p in points if p.config.seed != first.config.seed}
    datasets |= {seed: build(own).dataset for seed, own in by_seed.items()}
  matrix = prove_locality(first)
  found = sweep_points.run_together(points, job.traced, datasets, on_evaluation)
  common = {
    "layers": list(first.trainer.layer_names),
    "locality": first.trainer.locality,
    "locality_matrix": matrix.astype(int).tolist(),
    "points_in_program": len(points),
    "program_seconds": round(time.perf_counter() - start, 3),
    "commit": workdir.commit(),
    "versions": workdir.versions(),
    "device": workdir.device(),
  }
  return [
    {"settings": p.settings, "fingerprint": config.fingerprint(p.config), **one, **common}
    for p, one in zip(points, found, strict=True)
  ]


# --- which points go together ---------------------------------------------------------------------


def _grouped(points: Iterable[Point], key: Callable[[Point], Any]) -> list[list[Point]]:
  """In order of first appearance."""
  found: dict[str, list[Point]] = {}
  for point in points:
    found.setdefault(repr(key(point)), []).append(point)
  return list(found.values())


class Group(NamedTuple):
  """Points that go into one program, and the float axes in which they differ."""

  points: list[Point]
  traced: list[str]


class Planned(NamedTuple):
  """A sweep before its work.

  Attributes:
    groups: one program each.
    lines: which axes are not vmappable, and why.
    refused: points that their data make impossible.
  """

  groups: list[Group]
  lines: list[str]
  refused: list[tuple[Settings, str]]


def plan(points: Sequence[Point]) -> Planned:
  """Finds the programs of a sweep, by tracing one for every choice of names (methods, networks).

  Raises:
    ValueError, OSError: no point is possible, or its data are missing.
  """
  groups: list[Group] = []
  lines: list[str] = []
  refused: list[tuple[Settings, str]] = []
  problems: list[ValueError | OSError] = []
  for kind in _grouped(points, lambda p: [v for v in p.settings.values() if isinstance(v, str)]):
    floats = sweep_points.candidates(kind)
    sample = _grouped(kind, lambda p: _without(p, [*floats, "seed"]))[0]  # noqa: B023
    try:
      dataset = build(sample[0].config).dataset
    except (ValueError, OSError) as error:
      problems.append(error)
      refused += [(p.settings, str(error)) for p in kind]
      continue
    traced, said = sweep_points.traceable(sample, floats, dataset)
    together = [*traced, "seed"]
    if not sweep_points.seeds_together(sample[0]):
      together = traced
      said = [*said, "axis seed is not vmappable: the data are standardised by each seed's own"]
    lines += [line for line in said if line not in lines]
    for own in _grouped(kind, lambda p: _without(p, together)):  # noqa: B023
      groups.append(Group(own, traced))
  if not groups:
    raise problems[0]
  return Planned(groups, lines, refused)


def _without(point: Point, names: Sequence[str]) -> list[tuple[str, Any]]:
  return [(n, v) for n, v in point.settings.items() if n not in names]


def parse_slice(text: str, environment: Mapping[str, str]) -> tuple[int, int]:
  """`i/n`, i from 0, or "slurm": this task of a job array.

  Raises:
    ValueError: it is neither; one sentence.
  """
  if text == "slurm":
    names = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")
    missing = [name for name in names if name not in environment]
    if missing:
      raise ValueError(f"--slice=slurm needs a job array: {missing[0]} is not set")
    task, least, count = (int(environment[name]) for name in names)
    highest = int(environment.get("SLURM_ARRAY_TASK_MAX", least + count - 1))
    if highest - least != count - 1:
      raise ValueError("--slice=slurm needs an array without gaps, as in sbatch --array=0-7")
    return task - least, count
  first, slash, second = text.partition("/")
  if not (slash and first.isdecimal() and second.isdecimal() and int(first) < int(second)):
    raise ValueError(f"--slice takes i/n with i from 0 to n - 1, or slurm, not {text!r}")
  return int(first), int(second)


def take_slice(groups: Sequence[Group], index: int, count: int) -> list[Group]:
  """The `index`-th of `count` nearly equal parts of all points, groups kept whole where it goes.

  It depends on the sweep alone, not on what is finished: parts never overlap.
  """
  total = sum(len(g.points) for g in groups)
  first, last = index * total // count, (index + 1) * total // count
  found, start = [], 0
  for group in groups:
    own = group.points[max(first - start, 0) : max(last - start, 0)]
    found += [group._replace(points=own)] if own else []
    start += len(group.points)
  return found


def make_jobs(
  base: config.ExperimentConfig, groups: Sequence[Group], folder: pathlib.Path, most: int
) -> list[Job]:
  """What is left to do, at most `most` points a program."""
  jobs = []
  for group in groups:
    left = [p.settings for p in group.points if read_point(folder, p.key) is None]
    parts = -(-len(left) // most)
    cuts = [i * len(left) // parts for i in range(parts)] + [len(left)] if parts else []
    for start, stop in itertools.pairwise(cuts):
      jobs.append(Job(config.as_dict(base), left[start:stop], group.traced, str(folder)))
  return jobs


# --- who runs them --------------------------------------------------------------------------------


def run_jobs(
  jobs: Sequence[Job], workers: int, on_evaluation: Callable[[float, Rows], None] | None = None
) -> Iterator[tuple[Job, Failed]]:
  """Runs all jobs, here (and tells evaluations) or in `workers` processes; gives each when done.

  A process that dies takes the others of its pool with it: what they had not finished is run once
  more, each job in a process of its own, so that only the one to blame is lost.
  """
  if workers == 1 or len(jobs) < 2:
    yield from ((job, run_job(job, on_evaluation)) for job in jobs)
    return
  lost: list[Job] = []
  for job, found in _in_pool(jobs, workers):
    if found is None:
      lost.append(job)
    else:
      yield job, found
  for job in lost:
    ((_, found),) = _in_pool([job], 1)
    if found is None:
      base, why = config.from_mapping(job.base), "its process died (killed, or out of memory)"
      keys = [make_point(base, s).key for s in job.settings]
      found = {k: why for k in keys if read_point(job.folder, k) is None}
    yield job, found


def end_with_parent() -> None:
  """Ends this process when the one that started it is gone, even if that was killed."""
  parent = multiprocessing.parent_process()
  assert parent is not None

  def watch() -> None:
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)

  threading.Thread(target=watch, daemon=True).start()


def _in_pool(jobs: Sequence[Job], workers: int) -> Iterator[tuple[Job, Failed | None]]:
  """None for a job whose process died."""
  context = multiprocessing.get_context("spawn")  # JAX's threads do not survive a fork
  with concurrent.futures.ProcessPoolExecutor(workers, context, end_with_parent) as pool:
    futures = {pool.submit(run_job, job): job for job in jobs}
    try:
      for future in concurrent.futures.as_completed(futures):
        try:
          yield futures[future], future.result()
        except concurrent.futures.process.BrokenProcessPool:
          yield futures[future], None
    finally:
      pool.shutdown(wait=True, cancel_futures=True)
