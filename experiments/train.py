"""Trains one configuration: `python -m experiments.train --config=... --workdir=...`.

Both flags have defaults; `--config.x.y=value` overrides a field. The same command again resumes a
run that was cut, or re-evaluates a finished one. Bad input ends in one sentence and exit code 2.
"""

import hashlib
import pathlib

from absl import flags
from ml_collections import config_flags

from experiments import cli, config, console, distributed, workdir
from experiments.assembly import build, prove_locality
from experiments.closing import close_run
from experiments.running import run_in
from fflax.training import checkpoint, processes

_DEFAULT_CONFIG = str(pathlib.Path(__file__).parent / "configs" / "ff_digits.py")
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configuration file; default: ff_digits.py"
)
_WORKDIR = flags.DEFINE_string(
  "workdir", "", "folder of the run; empty: runs/<name of the configuration file>"
)


def default_workdir() -> pathlib.Path:
  """`runs/<configuration file>`, with a mark of the overrides, so that variants do not collide."""
  preset = config.preset_name(config_flags.get_config_filename(flags.FLAGS["config"]))
  overrides = config_flags.get_override_values(flags.FLAGS["config"])
  return pathlib.Path("runs") / workdir.default_name(preset.replace(":", "_"), overrides)


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    chosen = config.from_mapping(_CONFIG.value.to_dict())
  with distributed.joined(chosen.distributed):
    return run(chosen)


def run(chosen: config.ExperimentConfig) -> int:
  """The run, in this process and those that it has joined."""
  console.console.quiet = not processes.is_first()
  with cli.checking():
    mark = hashlib.sha256(f"{config.fingerprint(chosen)} {chosen.mesh}".encode()).hexdigest()
    if len(set(processes.texts_of_all(mark))) > 1:
      raise ValueError("the processes have different configurations: give all of them the same")
    folder = pathlib.Path(_WORKDIR.value).expanduser() if _WORKDIR.value else default_workdir()
    workdir.claim(folder, chosen)
    experiment = build(chosen)
    state = experiment.init()
    matrix = prove_locality(experiment)
    first_step = checkpoint.latest_step(folder / "checkpoints") or 0
  console.opening(experiment, state, matrix)
  if first_step:
    done = first_step == experiment.plan.num_steps
    console.console.print(
      f"workdir   {folder} is finished: evaluating it again"
      if done
      else f"workdir   {folder}: going on after step {first_step}"
    )
  else:
    console.console.print(f"workdir   {folder}")
  run_in(experiment, state, folder, close=lambda last: close_run(experiment, last, matrix, folder))
  return 0


if __name__ == "__main__":
  cli.run(main, defaults={"config": _DEFAULT_CONFIG})
