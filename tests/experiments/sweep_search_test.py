"""Adaptive search: trials are counted over resumes, pruned by layers, and never repeated."""

import pytest

from experiments import config, sweep_search, sweeps, workdir
from experiments.sweep_axes import Range, make_point, with_values

BASE = with_values(
  config.load_preset("ff_digits"), {"epochs": 4, "eval_every": 1, "readouts": ("score_sum",)}
)
AXES = {
  "seed": (0, 1),
  "optimizer.learning_rate": Range(1e-4, 1e-1, log=True, whole=False),
  "mlp.sizes": ((8, 8), (4,)),
}


@pytest.fixture
def runs(monkeypatch):
  """Training is told, not done: accuracy grows with the epoch and falls with the rate."""
  pytest.importorskip("optuna")
  told = []

  def run_job(job, on_evaluation=None):
    rate = job.settings[0]["optimizer.learning_rate"]
    told.append(job.settings)
    if len(told) == 3:
      return {"some": "the third breaks"}
    for epoch in range(1, 5):
      accuracy = 0.2 * epoch * (1 - 5 * rate)
      # The readout alone would tell nothing.
      row = {"accuracy/score_sum": 0.5, "dense_1/accuracy": accuracy, "dense_2/accuracy": 0.0}
      on_evaluation(float(epoch), [row, row])
    for settings in job.settings:
      key = make_point(BASE, settings).key
      path = sweeps.point_file(job.folder, key)
      path.parent.mkdir(exist_ok=True)
      assert not path.exists(), "a finished point is run again"
      diverged = "the loss is not finite" if len(told) == 5 else None
      value = {"test": {"accuracy/score_sum": 1 - 5 * rate}}
      workdir.write_json(path, {"accuracy": value, "diverged": diverged})
    return {}

  monkeypatch.setattr(sweeps, "run_job", run_job)
  return told


@pytest.mark.filterwarnings("ignore:Heartbeat of storage")
def test_a_search_goes_on_where_it_was_and_counts_every_trial(runs, tmp_path):
  search = sweep_search.make_search(BASE, AXES, 8, "", tmp_path)
  sweep_search._study(search).ask()  # of a worker that was killed
  lines = []
  found = sweep_search.run(search, 1, lines.append)
  assert len(runs) == len(lines) == 8
  assert all([s["seed"] for s in program] == [0, 1] for program in runs)
  rates = [program[0]["optimizer.learning_rate"] for program in runs]
  assert len(set(rates)) == 8
  assert all(1e-4 <= rate <= 1e-1 for rate in rates)
  assert {program[0]["mlp.sizes"] for program in runs} == {(8, 8), (4,)}
  assert sorted(found.failed.values()) == ["the loss is not finite", "the third breaks"]
  assert len(found.points) == 2 * (6 - found.pruned)

  more = sweep_search.make_search(BASE, AXES, 14, "", tmp_path)
  found = sweep_search.run(more, 1, lines.append)
  assert len(runs) == 14
  rates = [program[0]["optimizer.learning_rate"] for program in runs]
  assert len(set(rates)) == 14  # no trial draws again what an earlier process drew
  assert found.pruned > 0
  assert len(found.points) == 2 * (12 - found.pruned)
  assert any("pruned after epoch" in line for line in lines)
  assert all(p.config.optimizer.learning_rate == p.settings["optimizer.learning_rate"]
             for p in found.points)  # fmt: skip
  # Enough is enough, whoever asks.
  assert sweep_search.run(more, 1, lines.append) == found
  assert len(runs) == 14


def test_what_cannot_be_searched_is_refused(tmp_path):
  pytest.importorskip("optuna")
  with pytest.raises(ValueError, match="needs an axis beside the seeds"):
    sweep_search.make_search(BASE, {"seed": (0, 1)}, 3, "", tmp_path)
  seeds = Range(0, 9, log=False, whole=True)
  with pytest.raises(ValueError, match="'seed' is not searched"):
    sweep_search.make_search(BASE, {**AXES, "seed": seeds}, 3, "", tmp_path)
