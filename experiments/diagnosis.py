"""What the layers of a trained run know, and how far they agree: measured, and as a table.

Audit D of Y. Chen, 2026, arXiv 2606.06539, for any method: accuracy of each layer, disagreement,
the oracle over layers, and information about the class in the scalar goodness, the goodness on a
grid and the mean activities of every layer, on test examples.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from experiments.assembly import Experiment
from fflax.analysis import agreement, information
from fflax.core.goodness import squared_activities
from fflax.core.pooling import grid_features
from fflax.training.evaluate import make_evaluate
from fflax.types import LayerOut, TrainState

BINS = (50, 100, 200, 500)
GRID = 2
"""Bins along each side of a map, of the goodness that the probe reads."""


def labels_of(experiment: Experiment, examples: int) -> np.ndarray:
  """The classes of the first test examples, at most as many as there are.

  Raises:
    ValueError: they are too few to measure anything about classes.
  """
  labels = np.asarray(experiment.dataset.test.label[:examples])
  if np.sum(np.unique(labels, return_counts=True)[1] > 1) < 2:
    raise ValueError(
      f"a diagnosis needs more than {len(labels)} test examples: no two classes come twice in them"
    )
  return labels


def predictions_of(experiment: Experiment, state: TrainState, examples: int) -> dict[str, Any]:
  """What layers and readouts answer to the first test examples: name -> `[N]` classes."""
  test, data = experiment.dataset.test, experiment.config
  evaluate = make_evaluate(
    experiment.trainer,
    lambda x: experiment.preprocess(None, x),
    examples,
    data.eval_batch_size,
    experiment.dataset.num_classes,
    predictions=True,
  )
  found = evaluate(state, jnp.asarray(test.image[:examples]), jnp.asarray(test.label[:examples]))
  return {name: np.asarray(x) for name, x in found.items() if "prediction" in name}


def layer_features(
  experiment: Experiment, state: TrainState, examples: int, batch_size: int = 250
) -> list[dict[str, np.ndarray]]:
  """Of each layer's activities z before any pooling or norm, on the first test examples.

  "scalar": mean of `z**2`, `[N]`; "grid": `z**2` averaged over a `GRID` x `GRID` grid, `[N, D]`;
  "mean": z averaged over space, `[N, C]`.
  """

  def reduced(out: LayerOut) -> dict[str, jax.Array]:
    act, square = out.act.astype(jnp.float32), squared_activities(out)
    axes = tuple(range(1, act.ndim))
    mean = jnp.mean(act, axis=axes[:-1]) if act.ndim > 2 else act
    return {"scalar": jnp.mean(square, axes), "grid": grid_features(square, GRID), "mean": mean}

  @jax.jit
  def batch(state: TrainState, image: jax.Array) -> list[dict[str, jax.Array]]:
    outs = experiment.trainer.layer_outs(state, experiment.preprocess(None, image), None)
    return [reduced(out) for out in outs]

  images = experiment.dataset.test.image[:examples]
  parts = [batch(state, images[i : i + batch_size]) for i in range(0, examples, batch_size)]
  return jax.tree.map(lambda *found: np.concatenate([np.asarray(x) for x in found]), *parts)


def diagnose(
  experiment: Experiment, state: TrainState, *, examples: int = 10_000, probe: bool = True
) -> dict[str, Any]:
  """Measures a state; plain values, ready for JSON.

  Args:
    experiment: the run.
    state: after any number of steps.
    examples: the most test examples that take part.
    probe: whether linear probes are fitted, which takes most of the time; not of classes with too
      few examples for one.

  Returns:
    "layers": a row each: "layer", "accuracy" (None if it gives no class scores), "neighbour_bits",
    "histogram_bits" (bins -> plug-in and corrected), "temperature" (where layers learn one), and,
    with probes, "grid_probe" and "mean_probe"; "notes": sentences on what was left out;
    "readouts": name -> accuracy; "scored_layers": those with class scores, to which "disagreement"
    and "error_correlation" (matrices), "mean_disagreement", "mean_disagreement_without_first",
    "oracle_accuracy" and "oracle_chance" belong. What is not defined is None.

  Raises:
    ValueError: see `labels_of`; before any work.
  """
  labels, names = labels_of(experiment, examples), experiment.trainer.layer_names
  examples = len(labels)
  probed, notes = _probed(labels) if probe else (labels < 0, [])
  temperatures = _temperatures(experiment, state)
  answers = predictions_of(experiment, state, examples)
  scored = [name for name in names if f"{name}/prediction" in answers]
  rows: list[dict[str, Any]] = []
  features = layer_features(experiment, state, examples)
  for name, temperature, found in zip(names, temperatures, features, strict=True):
    answer = answers.get(f"{name}/prediction")
    histogram = {
      str(bins): information.histogram_information(found["scalar"], labels, bins)._asdict()
      for bins in BINS
    }
    row = {
      "layer": name,
      "accuracy": None
      if answer is None
      else float(agreement.layer_accuracy(answer[None], labels)[0]),
      "neighbour_bits": information.neighbour_information(found["scalar"], labels),
      "histogram_bits": histogram,
    }
    if temperature is not None:
      row["temperature"] = temperature
    for what in ("grid", "mean") if np.any(probed) else ():
      known = information.linear_probe(found[what][probed], labels[probed])
      row[f"{what}_probe"] = known._asdict()
    rows.append(row)
  readouts = {r.name: answers[f"prediction/{r.name}"] for r in experiment.readouts}
  result: dict[str, Any] = {
    "method": experiment.method.name,
    "dataset": experiment.dataset.name,
    "steps": int(state.step),
    "examples": examples,
    "label_entropy_bits": information.label_entropy(labels),
    "layers": rows,
    "readouts": {name: float(np.mean(answer == labels)) for name, answer in readouts.items()},
    "scored_layers": scored,
    "notes": notes,
  }
  if scored:
    predictions = np.stack([answers[f"{name}/prediction"] for name in scored])
    differ = agreement.disagreement(predictions)
    result |= {
      "disagreement": differ.tolist(),
      "error_correlation": _plain(agreement.error_correlation(predictions, labels)),
      "mean_disagreement": _plain(agreement.mean_off_diagonal(differ)),
      "mean_disagreement_without_first": _plain(agreement.mean_off_diagonal(differ[1:, 1:])),
      "oracle_accuracy": agreement.oracle_accuracy(predictions, labels),
      "oracle_chance": agreement.oracle_chance(len(scored), experiment.dataset.num_classes),
    }
  return result


def _probed(labels: np.ndarray) -> tuple[np.ndarray, list[str]]:
  """Which examples probes take, `[N]` bool, and a note if these are not all of them."""
  kept = information.can_be_probed(labels)
  classes, left = len(np.unique(labels)), len(np.unique(labels[kept]))
  enough = f"{information.PROBED_FROM} examples"
  if left < 2:
    return np.zeros_like(kept), [f"No probes: no two classes have {enough}."]
  if left < classes:
    return kept, [f"Probes leave out {classes - left} of {classes} classes: not {enough} of each."]
  return kept, []


def _temperatures(experiment: Experiment, state: TrainState) -> list[float | None]:
  """Of each layer, where the method learns one."""
  read, layers = experiment.method.temperature, experiment.trainer.layer_states(state)
  return [None if read is None else float(read(layer.params["method"])) for layer in layers]


def _plain(values: Any) -> Any:
  """A number, or an array as lists, with None for NaN, which is no JSON."""
  found = np.asarray(values, np.float64).astype(object)
  found[np.isnan(values)] = None
  return found.tolist()


def table(found: Mapping[str, Any]) -> Table:
  """One line a layer, and the readouts below."""
  title = f"{found['method']}, {found['dataset']}, step {found['steps']}"
  caption = (
    f"{found['examples']} test examples, H(Y) = {found['label_entropy_bits']:.3f} bits. "
    "Information in the mean square by nearest neighbours and by 100 bins (corrected), bits; "
    "probes of the squares on a grid and of the mean activities: accuracy, and bits by Fano."
  )
  caption = " ".join([caption, *found["notes"]])
  # Collapsed, all nine columns fit a terminal of 80 characters.
  result = Table(title=title, caption=caption, collapse_padding=True)
  probed, heated = (name in found["layers"][0] for name in ("grid_probe", "temperature"))
  result.add_column("", no_wrap=True)
  columns = ["%", *(["T"] if heated else []), "kNN", "bins"]
  for column in (*columns, *(("grid %", "bits", "mean %", "bits") if probed else ())):
    result.add_column(column, justify="right")
  for row in found["layers"]:
    bits = row["histogram_bits"]["100"]
    cells = [
      "-" if row["accuracy"] is None else f"{100 * row['accuracy']:.2f}",
      *([f"{row['temperature']:.2f}"] if heated else []),
      f"{row['neighbour_bits']:.3f}",
      f"{bits['corrected']:.3f}",
    ]
    for what in ("grid_probe", "mean_probe") if probed else ():
      cells += [f"{100 * row[what]['accuracy']:.1f}", f"{row[what]['fano']:.3f}"]
    result.add_row(f"layer {row['layer']}", *cells)
  for name, accuracy in found["readouts"].items():
    result.add_row(f"readout {name}", f"{100 * accuracy:.2f}")
  if "oracle_accuracy" in found:
    result.add_row("any layer (oracle)", f"{100 * found['oracle_accuracy']:.2f}")
    result.add_row("any guesser (chance)", f"{100 * found['oracle_chance']:.2f}")
  return result
