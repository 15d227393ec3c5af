"""Shows what a hyperspherical run's prototypes stand for: the training images nearest to each.

  python -m experiments.prototypes --workdir=runs/hff_digits [--layers=1,-1] [--nearest=10]

Of the newest checkpoint; nearest by the cosine that the layer answers with. Prints, for each layer,
the share of shown images that are of the prototype's own class, and writes
`figures/prototypes_<layer>.png` into the folder of the run.
"""

import pathlib
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments import cli, console, figures
from experiments.assembly import Experiment
from experiments.batches import in_batches
from experiments.running import reopened
from fflax.core import prototypes
from fflax.core.numerics_registry import make_numerics
from fflax.methods.hyperspherical import make_features
from fflax.types import Array, TrainState


def check(experiment: Experiment, layers: Sequence[int]) -> None:
  """Refuses what cannot be shown.

  Raises:
    ValueError: the run has no prototypes, no images or no such layer; one sentence.
  """
  chosen, names = experiment.config, experiment.trainer.layer_names
  if chosen.method != "hyperspherical":
    raise ValueError(f"method {chosen.method!r} has no prototypes: 'hyperspherical' has")
  if experiment.dataset.train.image.ndim != 4:
    raise ValueError(f"the nearest images are shown: data set {chosen.data.name!r} has none")
  for layer in layers:
    if not -len(names) <= layer < len(names):
      raise ValueError(f"there is no layer {layer}: the run has {len(names)}, counted from 0")


def training_cosines(experiment: Experiment, state: TrainState, layer: int) -> np.ndarray:
  """Of every training image with every prototype of a layer, `[N, K, M]`."""
  chosen = experiment.config
  numerics = make_numerics(chosen.numerics, chosen.int8)
  _, features = make_features(chosen.methods["hyperspherical"], numerics)

  @jax.jit
  def cosines(state: TrainState, image: Array) -> Array:
    own = experiment.trainer.layer_states(state)[layer]
    out = experiment.trainer.layer_outs(state, experiment.preprocess(None, image), None)[layer]
    params, stats = own.params["method"], own.stats["method"]
    p = {**params, **stats}["prototypes"]
    z = features(params, stats, out.out)
    return jax.vmap(lambda v: prototypes.cosines(v, p))(z)

  return in_batches(lambda x: cosines(state, x), chosen.eval_batch_size, experiment.images)


def nearest(cosines: np.ndarray, count: int) -> np.ndarray:
  """The examples nearest to each prototype, `[K, M, count]`, nearest first."""
  return np.moveaxis(np.argsort(-cosines, axis=0, kind="stable")[:count], 0, -1)


def show(
  experiment: Experiment, state: TrainState, layer: int, count: int, path: pathlib.Path
) -> float:
  """Draws the nearest images of a layer's prototypes; the share of those of the own class."""
  cosines = training_cosines(experiment, state, layer)
  rows = nearest(cosines, count)
  split, (classes, each, count) = experiment.dataset.train, rows.shape
  labels = split.label[rows]
  own = labels == np.arange(classes)[:, None, None]
  values = np.take_along_axis(np.moveaxis(cosines, 0, -1), rows, axis=-1)
  titles = [f"{c}" if each == 1 else f"{c}.{m + 1}" for c in range(classes) for m in range(each)]
  flat = rows.reshape(-1, count)
  figures.image_grid(
    split.image[flat] / experiment.dataset.max_value,
    own.reshape(-1, count),
    values.reshape(-1, count),
    titles,
    f"layer {experiment.trainer.layer_names[layer]}: nearest training images and their cosines; "
    f"{100 * own.mean():.1f} % are of the prototype's class",
    path,
  )
  return float(own.mean())


def main(argv: list[str]) -> int:
  del argv
  values = flags.FLAGS
  folder = pathlib.Path(values.workdir).expanduser()
  with cli.checking():
    layers = parse_layers(values.layers)
    experiment, state = reopened(folder, values.data_dir)
    check(experiment, layers)
  names = experiment.trainer.layer_names
  for layer in layers or range(len(names)):
    path = folder / "figures" / f"prototypes_{names[layer]}.png"
    share = show(experiment, state, layer, values.nearest, path)
    told = f"layer {names[layer]:12s} {100 * share:6.2f} % of the class itself  {path}"
    console.console.print(told)
  return 0


def parse_layers(values: Sequence[str]) -> list[int]:
  """Raises ValueError unless all are integers."""
  try:
    return [int(v) for v in values]
  except ValueError:
    raise ValueError(f"--layers takes integers with commas between them, not {values}") from None


if __name__ == "__main__":
  # Here, so that tests may import this module beside other commands with the same flags.
  flags.DEFINE_string("workdir", "runs/hff_digits", "folder of the run")
  flags.DEFINE_string("data_dir", "", "where sets lie here, if not where they lay")
  flags.DEFINE_list("layers", [], "numbers from 0, or from -1 backwards; empty: all")
  flags.DEFINE_integer("nearest", 10, "images of each prototype", lower_bound=1)
  cli.run(main)
