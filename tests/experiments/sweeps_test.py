"""A sweep's work: what is done stays done, what fails fails alone, slices part the points."""

import json

import pytest

from experiments import assembly, config, sweep_points, sweeps
from experiments.sweep_axes import grid, with_values

BASE = with_values(config.load_preset("ff_digits"), {"mlp.sizes": (24, 16), "epochs": 1})
RATES = (0.01, 0.1)
AXES = {"seed": (0, 1), "data.batch_size": (50, 100), "optimizer.learning_rate": RATES}


@pytest.fixture
def points():
  return grid(BASE, AXES)[0]


@pytest.fixture
def runs(monkeypatch):
  """Training is told, not done: a list of the programs' settings."""
  told = []

  def run_together(points, traced, datasets, on_evaluation=None):
    assert set(datasets) == {p.config.seed for p in points}
    told.append([p.settings for p in points])
    rates = [p.settings["optimizer.learning_rate"] for p in points]
    if 0.1 in rates:
      raise RuntimeError("out of\nmemory")
    return [{"accuracy": {"test": {"accuracy/score_sum": r}}, "history": [], "diverged": None}
            for r in rates]  # fmt: skip

  monkeypatch.setattr(sweep_points, "run_together", run_together)
  shared = assembly.build(BASE)
  monkeypatch.setattr(sweeps, "build", lambda config: shared)
  monkeypatch.setattr(sweeps, "prove_locality", lambda _: sweep_points.np.eye(2))
  return told


def groups_of(points):
  return [sweeps.Group(own, ["optimizer.learning_rate"])
          for own in sweeps._grouped(points, lambda p: p.settings["data.batch_size"])]  # fmt: skip


def test_a_point_that_fails_fails_alone_and_only_it_is_run_again(points, runs, tmp_path):
  groups = groups_of(points)
  jobs = sweeps.make_jobs(BASE, groups, tmp_path, most=3)
  assert [len(job.settings) for job in jobs] == [2, 2, 2, 2]
  failed = {}
  for _, wrong in sweeps.run_jobs(jobs, 1):
    failed |= wrong
  bad = {p.key for p in points if p.settings["optimizer.learning_rate"] == 0.1}
  assert failed == dict.fromkeys(bad, "RuntimeError: out of memory")
  done = {p.key for p in points if sweeps.read_point(tmp_path, p.key)}
  assert done == {p.key for p in points} - bad
  one = sweeps.read_point(tmp_path, points[0].key)
  assert one["settings"] == points[0].settings
  assert one["fingerprint"] == config.fingerprint(points[0].config)
  assert one["locality_matrix"] == [[1, 0], [0, 1]]

  runs.clear()
  again = sweeps.make_jobs(BASE, groups, tmp_path, most=3)
  assert [s["optimizer.learning_rate"] for job in again for s in job.settings] == [0.1] * 4
  # A worker that died while it wrote: what it wrote is not run again.
  for _ in sweeps.run_jobs(jobs[:1], 1):
    pass
  assert all(s["optimizer.learning_rate"] == 0.1 for program in runs for s in program)


def test_slices_part_the_points_and_keep_programs_together(points, tmp_path):
  groups = groups_of(points)
  for count in (1, 2, 3, 5, 12, 20):
    parts = [sweeps.take_slice(groups, i, count) for i in range(count)]
    keys = [p.key for part in parts for g in part for p in g.points]
    assert keys == [p.key for g in groups for p in g.points]
    sizes = [sum(len(g.points) for g in part) for part in parts]
    assert max(sizes) - min(sizes) <= 1
  assert [len(part) for part in (sweeps.take_slice(groups, i, 2) for i in range(2))] == [1, 1]


def test_slices_are_named_by_hand_or_by_a_job_array():
  assert sweeps.parse_slice("2/3", {}) == (2, 3)
  array = {"SLURM_ARRAY_TASK_ID": "5", "SLURM_ARRAY_TASK_MIN": "2", "SLURM_ARRAY_TASK_COUNT": "4"}
  assert sweeps.parse_slice("slurm", array) == (3, 4)
  with pytest.raises(ValueError, match="without gaps"):
    sweeps.parse_slice("slurm", {**array, "SLURM_ARRAY_TASK_MAX": "8"})
  with pytest.raises(ValueError, match="SLURM_ARRAY_TASK_ID is not set"):
    sweeps.parse_slice("slurm", {})
  for bad in ("3/3", "1", "a/b", "-1/2", "1/0", ""):
    with pytest.raises(ValueError, match="i from 0 to n - 1"):
      sweeps.parse_slice(bad, {})


def test_a_damaged_file_is_named(points, tmp_path):
  path = sweeps.point_file(tmp_path, points[0].key)
  path.parent.mkdir()
  path.write_text(json.dumps({"a": 1})[:-2])
  with pytest.raises(ValueError, match=f"{points[0].key}.json is damaged"):
    sweeps.make_jobs(BASE, groups_of(points), tmp_path, 8)


def test_programs_hold_what_can_be_traced_together_and_the_rest_is_told():
  """A weight decay of zero is another program; theta and the rate are not; eps is compared."""
  axes = {
    "seed": (0, 1),
    "network": ("mlp", "small_cnn"),
    "forward_forward.theta": (1.0, 2.0),
    "optimizer.weight_decay": (0.0, 0.1),
  }
  planned = sweeps.plan(grid(BASE, axes)[0])
  assert len(planned.refused) == 8  # labels before the pixels are nothing for a conv net
  assert all(s["network"] == "small_cnn" for s, _ in planned.refused)
  (line,) = planned.lines
  assert line.startswith("axis optimizer.weight_decay is not vmappable")
  assert "do not agree in whether optimizer.weight_decay != 0" in line
  assert [(len(g.points), g.traced) for g in planned.groups] == [(4, ["forward_forward.theta"])] * 2
