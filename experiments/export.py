"""Writes the predictor of a finished run as a program that needs no fflax.

  python -m experiments.export --workdir=runs/ff_digits --out=exported/ff_digits \\
    [--weights=int8] [--platforms=cpu,cuda,tpu] [--batch_size=100]

`--out` becomes a folder with `program.stablehlo` (StableHLO by `jax.export`, for CPU, CUDA and TPU
from any machine), `weights.npz` (the program's arguments), `load.py` (runs it with jax and numpy
alone: `python load.py images.npy`), `manifest.json` and `SHA256SUMS`. Images go in as the data set
has them; out come the class scores of every readout and layer, and the early-exit depth: after how
many layers the answer was clear. Every layer is run all the same: what stopping there would save
measures `experiments.studies.early_exit`.

Its answers to the test set are compared with the run's own; where a class differs, nothing is
written and the exit code is 1. With int8 weights they are compared with the run's at these weights,
and the agreement with the run as it was trained is told. Latencies are medians of several calls
on this machine.
"""

import functools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from absl import flags

import fflax
from experiments import cli, config, exporting, load_exported, workdir
from experiments.assembly import Experiment
from experiments.batches import in_batches
from experiments.console import console, si
from experiments.export_folder import check_free, finished_folder, write_export
from experiments.exporting import Exit
from experiments.running import reopened
from fflax.training.trainer import Trainer
from fflax.types import Array, TrainState

CALLS = 20
"""Timed calls, of which the median is told."""


def describe(
  experiment: Experiment,
  state: TrainState,
  image: jax.ShapeDtypeStruct,
  clear: Exit | None,
  **more: Any,
) -> dict[str, Any]:
  """What the manifest says of a run, beside its program and its files."""
  return {
    "fflax": fflax.__version__,
    "commit": workdir.commit(),
    "versions": workdir.versions(),
    "dataset": experiment.dataset.name,
    "method": experiment.method.name,
    "paper": experiment.method.paper,
    "steps": int(state.step),
    "classes": experiment.dataset.num_classes,
    "images": ", ".join(map(str, image.shape)),
    "image": list(image.shape[1:]),
    "dtype": str(image.dtype),
    "readouts": [r.name for r in experiment.readouts],
    "layers": list(experiment.trainer.layer_names),
    "exit": [] if clear is None else ["exit/depth", "exit/class"],
    "exit_rule": None if clear is None else _rule(clear),
    **more,
    "config": config.as_dict(experiment.config),
  }


def _rule(clear: Exit) -> dict[str, Any]:
  return {
    "readout": clear.readout.name,
    "confidence": clear.rule.confidence,
    "threshold": float(clear.rule.threshold),
    "threshold_fitted_on": clear.fitted_on or None,
    "temperatures": np.asarray(clear.rule.temperature).tolist(),
  }


def live_outputs(
  experiment: Experiment,
  state: TrainState,
  clear: Exit | None,
  size: int,
  trainer: Trainer | None = None,
) -> dict[str, np.ndarray]:
  """What the run itself answers to the test set, under the program's names."""
  fn = functools.partial(exporting.outputs_of, experiment, trainer or experiment.trainer, clear)
  return on_test(experiment, functools.partial(jax.jit(fn), state), size)


def on_test(
  experiment: Experiment, predict: Callable[[Array], Mapping[str, Array]], size: int
) -> dict[str, np.ndarray]:
  """`predict` on the whole test set, exactly `size` images at a time."""
  images = experiment.dataset.test.image
  total = len(images)
  if total < size:
    images = np.concatenate([images, images[-1:].repeat(size - total, 0)])
  return {name: array[:total] for name, array in in_batches(predict, size, images).items()}


def accuracies(experiment: Experiment, outputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Test accuracy (fractions) by output; by depth: of those that stop there, and how many do."""
  label = experiment.dataset.test.label
  found: dict[str, Any] = {
    name: float(np.mean(array.argmax(-1) == label))
    for name, array in outputs.items()
    if array.ndim == 2
  }
  if "exit/depth" in outputs:
    depth, right = outputs["exit/depth"], outputs["exit/class"] == label
    found["exit/class"] = float(np.mean(right))
    found["exit/by_depth"] = {
      str(d): {"share": float(np.mean(depth == d)), "accuracy": float(np.mean(right[depth == d]))}
      for d in np.unique(depth)
    }
  return found


class Agreement(NamedTuple):
  """How far two sets of outputs agree.

  Attributes:
    difference: the largest of any class score.
    labels: the share of examples with the same class by every readout.
  """

  difference: float
  labels: float


def agreement(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> Agreement:
  """Of the class scores of all readouts, and of layers."""
  scores = [name for name, array in one.items() if array.ndim == 2]
  # NaN in both is no difference; in one of them it is NaN, which is no agreement either.
  gaps = [np.abs(one[n] - other[n])[~(np.isnan(one[n]) & np.isnan(other[n]))] for n in scores]
  same = [one[n].argmax(-1) == other[n].argmax(-1) for n in scores if n.startswith("scores/")]
  difference = max(float(np.max(gap, initial=0.0)) for gap in gaps)
  return Agreement(difference, float(np.mean(np.all(same, axis=0))))


def latency(predict: Callable[[np.ndarray], Any], images: np.ndarray) -> float:
  """Median seconds of a call, results on the host."""
  predict(images)
  seconds = []
  for _ in range(CALLS):
    begin = time.perf_counter()
    predict(images)
    seconds.append(time.perf_counter() - begin)
  return float(np.median(seconds))


class Options(NamedTuple):
  """What may be chosen of an export, see the flags."""

  weights: str = "float32"
  platforms: tuple[str, ...] = exporting.PLATFORMS
  batch_size: int = 0
  epsilon: float = 0.005
  threshold: float = 0.9


def check(experiment: Experiment, state: TrainState, folder: pathlib.Path) -> None:
  """Refuses runs that are not finished.

  Raises:
    ValueError: one sentence.
  """
  if int(state.step) < experiment.plan.num_steps:
    raise ValueError(
      f"the run in {folder} is not finished: its newest checkpoint is of step {int(state.step)} of "
      f"{experiment.plan.num_steps}"
    )


def check_platforms(platforms: Sequence[str]) -> None:
  """Refuses unknown platforms, and those on which the program cannot be compared here.

  Raises:
    ValueError: one sentence.
  """
  for platform in platforms:
    if platform not in exporting.PLATFORMS:
      raise ValueError(
        f"--platforms names {platform!r}; there are {', '.join(exporting.PLATFORMS)}"
      )
  here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
  if here not in platforms:
    raise ValueError(
      f"--platforms needs this machine's own, {here!r}: there the program is compared with the run"
    )


class Done(NamedTuple):
  """What became of an export.

  Attributes:
    manifest: as written.
    predict: the program, loaded from what was written.
    equal: with the run at the program's weights.
    as_trained: with the run at its own.
  """

  manifest: dict[str, Any]
  predict: Callable[[np.ndarray], dict[str, np.ndarray]]
  equal: Agreement
  as_trained: Agreement


def export(experiment: Experiment, state: TrainState, out: pathlib.Path, options: Options) -> Done:
  """Exports a state to `out`.

  Raises:
    ValueError: the program cannot be made so; nothing is written.
    Stopped: its answers are not the run's, or the disk refuses; nothing is left.
  """
  check_free(out)
  size = options.batch_size or experiment.config.eval_batch_size
  exported = exporting.exported_state(experiment, state, options.weights)
  trainer = exporting.unstacked_trainer(experiment)
  used = exporting.usable_state(experiment, exported)
  clear = exporting.find_exit(experiment, trainer, used, options.epsilon, options.threshold)
  image = exporting.input_spec(experiment, options.batch_size)
  predict = exporting.predictor(experiment, exported, clear)
  program, weights = exporting.lowered(
    predict, exporting.named_weights(exported), image, options.platforms
  )
  trained = live_outputs(experiment, state, clear, size)
  expected = trained
  if options.weights != "float32":
    expected = live_outputs(experiment, used, clear, size, trainer)
  about = describe(
    experiment,
    state,
    image,
    clear,
    batch_size=options.batch_size or None,
    weights=options.weights,
    test_accuracy=accuracies(experiment, expected),
    test_accuracy_of_the_run=accuracies(experiment, trained),
  )
  try:
    with finished_folder(out) as folder:
      manifest = write_export(folder, program, weights, about)
      loaded, _ = load_exported.load(folder)
      found = on_test(experiment, lambda x: loaded(np.asarray(x)), size)
      equal = agreement(found, expected)
      if equal.labels < 1:
        raise cli.Stopped(
          f"the program answers another class than the run to {100 * (1 - equal.labels):.2f} % of "
          f"the test images (scores differ by up to {equal.difference:.3g}): nothing was written"
        )
  except OSError as error:
    raise cli.Stopped(f"the export could not be written, and nothing is left: {error}") from error
  return Done(manifest, loaded, equal, agreement(found, trained))


def show(done: Done, experiment: Experiment, out: pathlib.Path) -> None:
  """Prints what was exported, how far it agrees, and how long a call takes here."""
  manifest = done.manifest
  files = {name: si(file["bytes"], "B") for name, file in manifest["files"].items()}
  batch = f"batches of {manifest['batch_size']}" if manifest["batch_size"] else "any batch"
  console.print(
    f"program   {files['program.stablehlo']}, {batch}, {', '.join(manifest['platforms'])}"
  )
  console.print(f"weights   {files['weights.npz']}, {manifest['weights']}")
  for name, accuracy in manifest["test_accuracy"].items():
    if name == "exit/by_depth":
      for depth, row in accuracy.items():
        told = f"{100 * row['share']:6.2f} % of images, {100 * row['accuracy']:.2f} % of them right"
        console.print(f"exit      after layer {depth}: {told}")
    else:
      own = manifest["test_accuracy_of_the_run"][name]
      console.print(f"accuracy  {name:24s} {100 * accuracy:6.2f} %, of the run {100 * own:6.2f} %")
  compared = {"the run at these weights": done.equal}
  if manifest["weights"] != "float32":
    compared["the run as it was trained"] = done.as_trained
  for what, one in compared.items():
    console.print(
      f"against   {what}: scores differ by up to {one.difference:.3g}, classes agree on "
      f"{100 * one.labels:.2f} % of the test images"
    )
  test = experiment.dataset.test.image
  for n in (manifest["batch_size"],) if manifest["batch_size"] else (1, 100):
    seconds = latency(done.predict, test[np.resize(np.arange(len(test)), n)])
    console.print(f"latency   {1e3 * seconds:.3g} ms for a batch of {n}, median of {CALLS} calls")
  console.print(f"exported  {out}")


def main(argv: list[str]) -> int:
  del argv
  values = flags.FLAGS
  folder, out = (pathlib.Path(v).expanduser() for v in (values.workdir, values.out))
  with cli.checking():
    check_platforms(values.platforms)
    check_free(out)
    experiment, state = reopened(folder, values.data_dir)
    check(experiment, state, folder)
    options = Options(
      values.weights,
      tuple(dict.fromkeys(values.platforms)),
      values.batch_size,
      values.exit_epsilon,
      values.exit_threshold,
    )
    done = export(experiment, state, out, options)
  show(done, experiment, out)
  return 0


if __name__ == "__main__":
  # Here, so that tests may import this module beside other commands with the same flags.
  flags.DEFINE_string("workdir", "runs/ff_digits", "folder of the run")
  flags.DEFINE_string("out", None, "folder to make", required=True)
  flags.DEFINE_string("data_dir", "", "where sets lie here, if not where they lay")
  flags.DEFINE_enum("weights", "float32", exporting.WEIGHTS, "how kernels are stored")
  flags.DEFINE_list("platforms", list(exporting.PLATFORMS), "that the program is lowered for")
  flags.DEFINE_integer("batch_size", 0, "images at a time; 0: any number", lower_bound=0)
  flags.DEFINE_float(
    "exit_epsilon", 0.005, "fraction of validation examples that an early exit may lose", 0.0, 0.999
  )
  flags.DEFINE_float(
    "exit_threshold", 0.9, "of a clear answer, of runs without validation examples", 0.0, 1.0
  )
  cli.run(main)
