"""Runs one configuration with several seeds and writes one result file.

  python -m experiments.studies.seeds --config=experiments/configs/ff_mnist_loewex.py \\
    --seeds=0,1,2 --study=ff_mnist_loewex_float32 --published=1.45 [--config.x.y=...]

Each seed is a run of its own under `<runs>/<study>/seed<n>`: a study that was cut goes on
where it was. Where there is a validation split, the test set is read once, after the last epoch.
"""

import dataclasses
import pathlib
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import cli, config, results, workdir
from experiments.assembly import Experiment, build, prove_locality
from experiments.console import closing, console, locality_line
from experiments.row_costs import row_costs
from experiments.running import final_accuracies, run_in

_CONFIG = config_flags.DEFINE_config_file("config", None, "configuration file")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "seeds")
_STUDY = flags.DEFINE_string("study", "", "name of the result file")
_RUNS = flags.DEFINE_string("runs", "runs/studies", "folder of the runs")
_MEMORY = flags.DEFINE_bool("memory", True, "compile the steps and read their peak memory")
_PUBLISHED = flags.DEFINE_float("published", None, "the published value of the first readout, %")


def command_line(argv: Sequence[str]) -> str:
  """The command that reproduces a study, from its arguments, without the user's own folders."""
  return cli.command_line("experiments.studies.seeds", argv, "config.data.data_dir")


def rows_of(
  experiments: list[Experiment],
  tests: list[dict[str, float]],
  matrix: np.ndarray,
  preset: str,
  cost: Mapping[str, Any],
) -> list[dict[str, Any]]:
  """One row a readout and one a layer, over the seeds that are done."""
  base = experiments[0].config
  columns = {
    **results.choices(base),
    "preset": preset,
    "locality": experiments[0].trainer.locality,
    "locality_matrix": matrix.astype(int).tolist(),
    "seeds": [e.config.seed for e in experiments[: len(tests)]],
    "command": command_line(sys.argv[1:]),
    "cost": cost,
  }
  rows = []
  for name in tests[0]:
    layer = name.partition("/")[0]
    readout = name.removeprefix("accuracy/") if layer == "accuracy" else f"layer {layer}"
    published = _PUBLISHED.value if readout == base.readouts[0] else None
    errors = [100 * (1 - t[name]) for t in tests]
    rows.append(
      results.row("test_error_percent", errors, **columns, readout=readout, published=published)
    )
  return rows


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    if _CONFIG.value is None:
      raise ValueError("--config is needed: a file of experiments/configs")
    if not _STUDY.value.isidentifier():
      raise ValueError(f"--study needs a name of letters, digits and _, not {_STUDY.value!r}")
    base = config.from_mapping(_CONFIG.value.to_dict())
    seeds = cli.parse_seeds(_SEEDS.value)
    experiments = [build(dataclasses.replace(base, seed=s)) for s in seeds]
  preset = config.preset_name(config_flags.get_config_filename(flags.FLAGS["config"]))
  matrix = prove_locality(experiments[0])
  with cli.checking():
    cost = row_costs(base, memory=_MEMORY.value)
  console.print(locality_line(experiments[0], matrix))
  tests: list[dict[str, float]] = []
  for experiment in experiments:
    folder = pathlib.Path(_RUNS.value) / _STUDY.value / f"seed{experiment.config.seed}"
    with cli.checking():
      workdir.claim(folder, experiment.config)
    state = run_in(experiment, experiment.init(), folder)
    accuracies = final_accuracies(experiment, state)
    closing(experiment, accuracies)
    tests.append(accuracies["test"])
    # Written after every seed: its "seeds" column says which are in it.
    rows = rows_of(experiments, tests, matrix, preset, cost)
    path = results.write_study(_STUDY.value, rows)
  for r in rows:
    console.print(f"{r['readout']:24s} {r['mean']:.3f} +- {r['std'] or 0:.3f} % test error")
  console.print(f"results   {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
