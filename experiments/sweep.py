"""Many runs of one configuration: `python -m experiments.sweep --config=... --axis=NAME=VALUES`.

The axes are those of the configuration file's `sweep()`, replaced and extended by
`--axis=optimizer.learning_rate=0.01,0.03` (the flag may stand many times). Seeds and float
hyper-parameters run together as one program; the rest in programs of their own, `--jobs` processes
at a time. `--slice=i/n`, or `--slice=slurm` in a job array, runs a part; the same command without
it collects what all parts have left. `--search=TRIALS` lets Optuna choose: there an axis may be a
range, `--axis=optimizer.learning_rate=log:1e-4..1e-1`, and `--storage=URL` joins many workers.

The same command again goes on where it was, and never runs a finished point twice. A point that
fails is reported and does not stop the others; the exit code is then 1.
"""

import os
import pathlib
import sys
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
from absl import flags
from ml_collections import config_flags
from rich.table import Table

from experiments import (
  cli,
  config,
  distributed,
  results,
  sweep_pages,
  sweep_search,
  sweeps,
  workdir,
)
from experiments.console import console, counting
from experiments.sweep_axes import Point, grid, label, make_axes, preset_axes
from experiments.sweep_points import Rows

_DEFAULT_CONFIG = str(pathlib.Path(__file__).parent / "configs" / "ff_digits.py")
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configuration file; default: ff_digits.py"
)
_AXES = flags.DEFINE_multi_string("axis", [], "NAME=VALUE,VALUE: gives or replaces an axis")
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "folder of the sweep; empty: runs/sweeps/<name of the configuration file>"
)
_JOBS = flags.DEFINE_integer("jobs", 1, "processes at a time", 1)
_TOGETHER = flags.DEFINE_integer("together", 64, "most points of one program", 1)
_SLICE = flags.DEFINE_string("slice", "", "i/n: a part of the points, i from 0; or slurm")
_SEARCH = flags.DEFINE_integer("search", 0, "number of trials of an adaptive search; 0: all points")
_STORAGE = flags.DEFINE_string("storage", "", "Optuna's storage URL; empty: SQLite in the workdir")
_STUDY = flags.DEFINE_string("study", "", "also write a result file of this name")

Finished = list[tuple[Point, dict[str, Any]]]


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    path = config_flags.get_config_filename(flags.FLAGS["config"])
    preset = config.preset_name(path)
    base = config.from_mapping(_CONFIG.value.to_dict())
    axes = make_axes(base, preset_axes(path), _AXES.value)
    if _STUDY.value and not _STUDY.value.isidentifier():
      raise ValueError(f"--study needs a name of letters, digits and _, not {_STUDY.value!r}")
    if _SEARCH.value < 0 or (_SEARCH.value and _SLICE.value):
      raise ValueError("--search takes a number of trials and no --slice: its workers share trials")
    distributed.check_joined(base.distributed)
    if set(base.mesh.axes.values()) != {1}:
      raise ValueError("a sweep spreads its points over all devices by itself: leave mesh at 1")
    if _JOBS.value > 1 and jax.default_backend() != "cpu":
      raise ValueError(
        f"--jobs={_JOBS.value} is for CPUs: on a {jax.default_backend()} one program has all of it"
      )
    if _STORAGE.value and not _SEARCH.value:
      raise ValueError("--storage is of a search: give --search=TRIALS, too")
    overrides = config_flags.get_override_values(flags.FLAGS["config"])
    name = workdir.default_name(preset.replace(":", "_"), overrides)
    folder = pathlib.Path(_WORKDIR.value or f"runs/sweeps/{name}").expanduser()
    (folder / "points").mkdir(parents=True, exist_ok=True)
  try:
    if _SEARCH.value:
      with cli.checking():
        search = sweep_search.make_search(base, axes, _SEARCH.value, _STORAGE.value, folder)
      points, notes, failed = _search(search)
    else:
      with cli.checking():
        whole, refused = grid(base, axes)
      with cli.working(folder):
        points, notes, failed = _grid(base, whole, folder)
      failed = {**{label(settings): why for settings, why in refused}, **failed}
  except KeyboardInterrupt:
    raise cli.Stopped("stopped; the same command goes on with the points that are left") from None
  except BrokenProcessPool:
    raise cli.Stopped(
      "a worker died (killed, or out of memory): the same command goes on"
    ) from None
  for name, why in failed.items():
    console.print(f"failed    {name}: {why}")
  _close(preset, points, [*notes, *(f"failed: {n}: {w}" for n, w in failed.items())], folder)
  return int(bool(failed))


def _grid(
  base: config.ExperimentConfig, points: list[Point], folder: pathlib.Path
) -> tuple[Finished, list[str], dict[str, str]]:
  """Runs the points that are left, of the slice or of all; what is there, notes, failures."""
  notes: list[str] = []
  failed: dict[str, str] = {}
  with cli.checking():
    left = [p for p in points if sweeps.read_point(folder, p.key) is None]
    groups: list[sweeps.Group] = []
    if left or _SLICE.value:
      planned = sweeps.plan(points)
      groups, notes = planned.groups, planned.lines
      failed = {label(settings): why for settings, why in planned.refused}
    if _SLICE.value:
      index, count = sweeps.parse_slice(_SLICE.value, os.environ)
      groups = sweeps.take_slice(groups, index, count)
      mine = {p.key for g in groups for p in g.points}
      points = [p for p in points if p.key in mine]
      notes.append(f"slice {index} of {count} only: the same command without --slice collects all")
    jobs = sweeps.make_jobs(base, groups, folder, _TOGETHER.value)
  todo = sum(len(job.settings) for job in jobs)
  console.print(
    f"sweep     {len(points)} points, {len(points) - todo} of them finished; "
    f"{todo} left in {len(jobs)} programs"
  )
  for note in notes:
    console.print(f"note      {note}")
  by_key = {p.key: p for p in points}
  with counting("points", len(points), len(points) - todo) as tell:

    def evaluated(epoch: float, rows: Rows) -> None:
      best = max(max(v for n, v in row.items() if n.startswith("accuracy/")) for row in rows)
      tell(0, f"epoch {epoch:g}  {len(rows)} points, the best at {100 * best:.2f} %")

    for job, wrong in sweeps.run_jobs(jobs, _JOBS.value, evaluated):
      failed |= {label(by_key[key].settings): why for key, why in wrong.items()}
      tell(len(job.settings), f"done      {len(job.settings)} points, {len(wrong)} failed")
  found = _finished(points, folder)
  failed |= {label(p.settings): one["diverged"] for p, one in found if one["diverged"]}
  return found, notes, failed


def _search(search: sweep_search.Search) -> tuple[Finished, list[str], dict[str, str]]:
  with counting("trials", search.trials, 0) as tell:
    found = sweep_search.run(search, _JOBS.value, lambda line: tell(1, f"trial     {line}"))
  note = f"{found.pruned} trials were pruned"
  return _finished(found.points, pathlib.Path(search.folder)), [note], found.failed


def _finished(points: list[Point], folder: pathlib.Path) -> Finished:
  there = [(p, sweeps.read_point(folder, p.key)) for p in points]
  return [(p, one) for p, one in there if one is not None]


def _close(preset: str, points: Finished, notes: list[str], folder: pathlib.Path) -> None:
  """The table, here and as a page, the figure and the result file."""
  if not points:
    console.print("no point is finished")
    return
  own = ("workdir", "jobs", "slice", "storage")  # where and by whom, not what
  command = cli.command_line("experiments.sweep", sys.argv[1:], "config.data.data_dir", own)
  rows = sweep_pages.rows_of(points, command)
  title = f"Sweep of {preset}"
  chosen, why = sweep_pages.best(rows)
  if chosen is not None:
    notes = [f"best {why}: {chosen['preset']}, {chosen['mean']:.2f} % test error", *notes]
  head, cells = sweep_pages.lines_of(rows)
  table = Table(title=title)
  for column in head:
    table.add_column(column, overflow="fold")
  for line in cells:
    table.add_row(*line)
  console.print(table)
  if _SLICE.value:
    return  # the pages are of all points, and slices end side by side
  (folder / "sweep.md").write_text(sweep_pages.markdown(title, rows, notes))
  name = _STUDY.value or "sweep"
  workdir.write_json(folder / "results.json", results.as_study(name, rows, notes=notes))
  if _STUDY.value:
    console.print(f"results   {results.write_study(name, rows, notes=notes)}")
  for note in notes[:1]:
    console.print(f"note      {note}")
  figure = sweep_pages.draw(title, rows, folder / "sweep.png")
  for path in (folder / "results.json", folder / "sweep.md", figure):
    if path is not None:
      console.print(f"wrote     {path}")


if __name__ == "__main__":
  cli.run(main, defaults={"config": _DEFAULT_CONFIG})
