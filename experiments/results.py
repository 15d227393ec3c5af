"""Result files: one schema, written by one function and read by the report.

`experiments/results/<study>.json` is `{"study", "commit", "versions", "device", "rows": [...]}`;
metrics are named with their unit.
"""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments import workdir
from experiments.config import ExperimentConfig, as_dict

FOLDER = pathlib.Path(__file__).parent / "results"


def choices(config: ExperimentConfig) -> dict[str, Any]:
  """The columns that say which point of the product of choices a row is.

  "setting" is what a matched control shares with it beyond the names: the network's options, its
  units, and how the data are split, normalised and augmented.
  """
  sizes = config.networks[config.network].get("sizes")
  network = config.network + (f" {'-'.join(map(str, sizes))}" if sizes else "")
  coarse = config.data.superclasses
  return {
    "method": config.method,
    "network": network,
    "numerics": config.numerics,
    "schedule": config.schedule,
    "dataset": config.data.name + (f", {coarse} superclasses" if coarse else ""),
    "epochs": config.epochs,
    "setting": _setting(config),
  }


def _setting(config: ExperimentConfig) -> dict[str, Any]:
  values = as_dict(config)
  options, data = values["networks"][config.network], values["data"]
  return {
    "network": {n: v for n, v in options.items() if n not in _OF_VIEWS},
    "activation": config.activation,
    "data": {n: data[n] for n in ("validation", "image_size", "normalization", "augment")},
  }


# A control has one view, without label maps.
_OF_VIEWS = ("label_maps", "norm_groups")


def row(metric: str, values: Sequence[float], *, locality: str, **columns: Any) -> dict[str, Any]:
  """One row: a metric with its value per seed (or per round), mean and sample deviation.

  Args:
    metric: its name, with the unit.
    values: one a seed or a round; none if every run failed, and then there is no mean.
    locality: the declared class of the method.
    **columns: what else the row is about.
  """
  numbers = [float(f"{v:.6g}") for v in values]
  deviation = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else None
  return {
    **columns,
    "locality": locality,
    "metric": metric,
    "values": numbers,
    "mean": float(f"{np.mean(numbers):.6g}") if numbers else None,
    "std": None if deviation is None else float(f"{deviation:.4g}"),
  }


def speedups(
  seconds: Mapping[str, Sequence[float]], label: str, rivals: Sequence[str], /, **columns: Any
) -> list[dict[str, Any]]:
  """How many times as fast `label` was as each rival that ran, round by round, with the median."""
  rows = []
  for rival in rivals:
    if rival in seconds and rival != label:
      ratios = np.asarray(seconds[rival]) / np.asarray(seconds[label])
      found = row("speedup", ratios, rival=rival, **columns)
      rows.append({**found, "median": float(f"{np.median(ratios):.4g}")})
  return rows


def write_study(name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> pathlib.Path:
  """Writes `experiments/results/<name>.json` atomically and returns its path."""
  FOLDER.mkdir(exist_ok=True)
  path = FOLDER / f"{name}.json"
  workdir.write_json(path, as_study(name, rows, **extra))
  return path


def as_study(name: str, rows: Sequence[Mapping[str, Any]], **extra: Any) -> dict[str, Any]:
  """The content of a result file: the rows, and what they were made with."""
  return {
    "study": name,
    "commit": workdir.commit(),
    "versions": workdir.versions(),
    "device": workdir.device(),
    **extra,
    "rows": list(rows),
  }


_NEEDED = {"metric", "values", "mean", "std", "locality"}
_NEEDED_OF = {
  "test_error_percent": {
    *("method", "network", "numerics", "dataset", "seeds", "preset", "epochs", "command")
  },
  "speedup": {"preset", "rival"},
  "memory_ratio": {"preset", "rival"},
}


def read_studies(folder: pathlib.Path) -> list[dict[str, Any]]:
  """The result files of a folder, by name.

  Raises:
    ValueError: the folder holds none, or one is no result file; one sentence.
  """
  found = []
  for path in sorted(folder.glob("*.json")):
    try:
      study = json.loads(path.read_text())
      whole = all(_NEEDED | _NEEDED_OF.get(r["metric"], set()) <= set(r) for r in study["rows"])
      known = {"study", "commit", "versions", "device"} <= set(study)
    except (ValueError, TypeError, KeyError):
      whole = known = False
    if not (whole and known):
      raise ValueError(f"{path} is not a result file of fflax")
    found.append(study)
  if not found:
    raise ValueError(f"{folder} holds no result files")
  return found
