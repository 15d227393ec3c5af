"""Drives a run in its folder: trains, goes on after a cut, and evaluates at the end."""

import contextlib
import pathlib
from collections.abc import Callable, Iterator

import jax

from experiments import cli, config, console, workdir
from experiments.assembly import Experiment, build
from experiments.staging import chosen_pipeline
from fflax.training import checkpoint, processes
from fflax.training.loop import Diverged, Interrupted, train
from fflax.training.metrics import MetricsError
from fflax.types import TrainState


def run_in(
  experiment: Experiment,
  state: TrainState,
  folder: pathlib.Path,
  close: Callable[[TrainState], None] | None = None,
) -> TrainState:
  """Trains from `state`, or from the newest checkpoint in `folder`, to the end of the plan.

  Between epochs the validation split is evaluated; the test split only where there is no other.
  `close` gets the last state while the folder is still kept from other processes.

  Raises:
    UsageError: the folder is another process's or another run's, or its newest checkpoint or its
      metrics are damaged; nothing was changed.
    Stopped: a loss is not finite any more, a signal came, or the disk is full.
  """
  data = experiment.dataset
  name = "validation" if data.validation else "test"
  monitor = experiment.evaluator(name, data.validation or data.test)
  pipeline = chosen_pipeline(experiment)
  try:
    with cli.working(folder), _opened(folder, experiment.config):
      first_step = checkpoint.latest_step(folder / "checkpoints") or 0
      with console.Bar(experiment, first_step) as bar:
        state = train(
          experiment.trainer,
          experiment.feed,
          state,
          experiment.images,
          experiment.labels,
          experiment.plan,
          evaluate=monitor,
          directory=folder,
          fingerprint=config.fingerprint(experiment.config),
          on_row=bar.update,
          pipeline=pipeline,
        )
      if close is not None:
        close(state)
      return state
  except (workdir.InUse, checkpoint.CheckpointError, MetricsError) as error:
    raise cli.UsageError(str(error)) from error
  except (Diverged, Interrupted) as stop:
    raise cli.Stopped(str(stop)) from stop


@contextlib.contextmanager
def _opened(folder: pathlib.Path, own: config.ExperimentConfig) -> Iterator[None]:
  """Keeps the folder for this run; of several processes the first does it for all."""
  if processes.is_first():
    with workdir.held(folder, own):
      workdir.open_run(folder, own)
      processes.wait_for_all("the run is open")
      yield
    return
  processes.wait_for_all("the run is open")
  if not (folder / "config.json").exists():
    raise workdir.InUse(
      f"process {jax.process_index()} does not see the run in {folder}: several processes need a "
      "folder that all of them share"
    )
  yield


def restored(experiment: Experiment, folder: pathlib.Path, step: int | None = None) -> TrainState:
  """The state of the run's checkpoint in `folder`; the newest if `step` is None.

  Raises:
    UsageError: there is none, or it is damaged or another run's.
  """
  try:
    return checkpoint.restore(
      folder / "checkpoints",
      jax.eval_shape(experiment.init),
      step=step,
      fingerprint=config.fingerprint(experiment.config),
    )
  except checkpoint.CheckpointError as error:
    raise cli.UsageError(str(error)) from error


def reopened(
  folder: pathlib.Path, data_dir: str = "", step: int | None = None
) -> tuple[Experiment, TrainState]:
  """The run in `folder`, with its data, and the state of a checkpoint (None: the newest).

  It is opened on one device, whatever it was trained on.

  Args:
    folder: of the run.
    data_dir: where sets lie here; empty: where they lay.
    step: of the checkpoint.

  Raises:
    ValueError, OSError: there is no run, or its data cannot be loaded.
    UsageError: see `restored`.
  """
  values = config.as_dict(workdir.read_config(folder))
  if data_dir:
    values["data"]["data_dir"] = data_dir
  experiment = build(config.from_mapping(values))
  return experiment, restored(experiment, folder, step)


def final_accuracies(experiment: Experiment, state: TrainState) -> dict[str, dict[str, float]]:
  """Split name -> flat accuracies (fractions), for all splits there are."""
  data = experiment.dataset
  splits = {"train": data.train, "validation": data.validation, "test": data.test}
  found = {}
  for name, split in splits.items():
    if split is not None:
      values = experiment.evaluator(name, split)(state)
      found[name] = {k.removeprefix(f"{name}/"): float(v) for k, v in values.items()}
  return found
