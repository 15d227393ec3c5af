"""The axes of a sweep: names, values and ranges; from them to configurations.

An axis is named by its field, `optimizer.learning_rate`; options of a method or a network go
without "methods." and "networks.": `forward_forward.theta`, `mlp.sizes`. Its values are a list, or,
for a search, a range: "log:1e-4..1e-1" or "lin:0..1".
"""

import ast
import hashlib
import importlib.util
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import config
from experiments.assembly import check
from experiments.config import ExperimentConfig
from experiments.studies.comparison import merge
from fflax.methods.registry import METHODS
from fflax.networks.registry import NETWORKS


class Range(NamedTuple):
  """An interval to search in; `log`: evenly in the logarithm; `whole`: whole numbers only."""

  low: float
  high: float
  log: bool
  whole: bool


Axis = tuple[Any, ...] | Range
Settings = dict[str, Any]


class Point(NamedTuple):
  """One run of a sweep.

  Attributes:
    settings: axis -> value.
    config: of the run.
    key: names its file; equal for equal runs, whatever the axes that led to them.
  """

  settings: Settings
  config: ExperimentConfig
  key: str


def make_point(base: ExperimentConfig, settings: Mapping[str, Any]) -> Point:
  """The run of `settings`.

  Raises:
    ValueError: it is impossible; one sentence.
  """
  chosen = with_values(base, settings)
  key = hashlib.sha256(config.fingerprint(chosen).encode()).hexdigest()[:16]
  return Point(dict(settings), chosen, key)


def path_of(name: str) -> tuple[str, ...]:
  """The fields that lead to an axis."""
  parts = tuple(name.split("."))
  if parts[0] in METHODS:
    return ("methods", *parts)
  return ("networks", *parts) if parts[0] in NETWORKS else parts


def value_of(values: Mapping[str, Any], name: str) -> Any:
  """What stands at an axis in `config.as_dict`.

  Raises:
    ValueError: there is no such field, or it is no single value.
  """
  found: Any = values
  for part in path_of(name):
    if not isinstance(found, Mapping) or part not in found:
      raise ValueError(f"axis {name!r}: the configuration has no such field ({part})")
    found = found[part]
  if isinstance(found, Mapping):
    raise ValueError(f"axis {name!r} is a group of fields: name one of {', '.join(found)}")
  return found


def with_values(base: ExperimentConfig, settings: Mapping[str, Any]) -> ExperimentConfig:
  """`base` with other values at some axes.

  Raises:
    ValueError: the result is impossible; one sentence.
  """
  changes: dict[str, Any] = {}
  for name, value in settings.items():
    *parents, last = path_of(name)
    place = changes
    for part in parents:
      place = place.setdefault(part, {})
    place[last] = value
  return config.from_mapping(merge(config.as_dict(base), changes))


def preset_axes(path: str) -> dict[str, Any]:
  """What `sweep()` of a configuration file returns; nothing if there is none."""
  file = path.partition(":")[0]
  spec = importlib.util.spec_from_file_location(pathlib.Path(file).stem, file)
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return dict(module.sweep()) if hasattr(module, "sweep") else {}


def make_axes(
  base: ExperimentConfig, preset: Mapping[str, Any], given: Sequence[str]
) -> dict[str, Axis]:
  """The axes of a preset, replaced and extended by those of the command line, `name=values`.

  Raises:
    ValueError: there is none, or one is impossible; one sentence.
  """
  fields = config.as_dict(base)
  axes = {name: _axis(name, values, value_of(fields, name)) for name, values in preset.items()}
  for text in given:
    name, equals, values = text.partition("=")
    if not equals:
      raise ValueError(f"--axis={text}: an axis is written --axis=NAME=VALUE,VALUE")
    axes[name] = _axis(name, values, value_of(fields, name))
  if not axes:
    raise ValueError("this configuration has no sweep(): give axes, as in --axis=seed=0,1,2")
  return axes


def _axis(name: str, values: Any, like: Any) -> Axis:
  if isinstance(values, str):
    kind, colon, bounds = values.partition(":")
    if colon and kind in ("log", "lin"):
      return _range(name, kind == "log", bounds, like)
    values = _split(name, values, like)
  found = tuple(_typed(name, value, like) for value in values)
  if not found or len(set(found)) < len(found):
    raise ValueError(f"axis {name!r} needs different values, not {list(found)}")
  return found


def _split(name: str, text: str, like: Any) -> list[Any]:
  if not isinstance(like, list):
    return text.split(",")
  try:
    return list(ast.literal_eval(f"[{text}]"))
  except (ValueError, SyntaxError):
    raise ValueError(f"axis {name!r} takes tuples, as in (64,64),(128,), not {text!r}") from None


def _typed(name: str, value: Any, like: Any) -> Any:
  """The value in the type of its field; texts from the command line are read as such."""
  kind = type(like)
  if isinstance(like, list) and isinstance(value, tuple | list):
    return tuple(value)
  if kind is bool and str(value).lower() in ("true", "false"):
    return str(value).lower() == "true"
  try:
    # 2.5 for a whole number is refused, 3 for a float is not.
    if kind is float or (kind is int and isinstance(value, str | int) and value is not True):
      return kind(value)
  except (ValueError, TypeError):
    pass
  if kind is str and isinstance(value, str):
    return value
  raise ValueError(f"axis {name!r} takes values of type {kind.__name__}, not {value!r}")


def _range(name: str, log: bool, bounds: str, like: Any) -> Range:
  low, dots, high = bounds.partition("..")
  try:
    found = Range(float(low), float(high), log, isinstance(like, int))
  except ValueError:
    dots = ""
  if not dots or type(like) not in (int, float):
    raise ValueError(f"axis {name!r}: a range is written log:1e-4..1e-1 or lin:0..1, of numbers")
  least = 0.0 if log else float("-inf")
  if not least < found.low < found.high < float("inf"):
    raise ValueError(f"axis {name!r}: a range rises from a finite number (log: above 0) to another")
  return found


def grid(
  base: ExperimentConfig, axes: Mapping[str, Axis]
) -> tuple[list[Point], list[tuple[Settings, str]]]:
  """All points of the product of the axes, and those that are impossible, each with its sentence.

  Settings that make the same run (an option of a method that is not used) make one point.

  Raises:
    ValueError: an axis is a range or changes nothing, or no point is possible; one sentence.
  """
  for name, axis in axes.items():
    if isinstance(axis, Range):
      raise ValueError(f"axis {name!r} is a range: search it with --search=TRIALS, or give values")
  points: dict[str, Point] = {}
  refused = []
  for values in itertools.product(*axes.values()):
    settings = dict(zip(axes, values, strict=True))
    try:
      point = make_point(base, settings)
      check(point.config)
    except ValueError as error:
      refused.append((settings, str(error)))
      continue
    points.setdefault(point.key, point)
  if not points:
    raise ValueError(f"no point of this sweep is possible: {refused[0][1]}")
  _refuse_mute(base, axes, list(points.values()))
  return list(points.values()), refused


def _refuse_mute(base: ExperimentConfig, axes: Mapping[str, Axis], points: Sequence[Point]) -> None:
  for name, values in axes.items():
    met = {p.settings[name] for p in points}
    if len(values) > 1 and len(met) == 1 and _is_mute(base, name, values, points[0]):
      raise ValueError(f"axis {name!r} changes nothing: the runs of this sweep do not read it")


def _is_mute(base: ExperimentConfig, name: str, values: Sequence[Any], point: Point) -> bool:
  other = next(v for v in values if v != point.settings[name])
  try:
    return make_point(base, {**point.settings, name: other}).key == point.key
  except ValueError:
    return False


def label(settings: Mapping[str, Any]) -> str:
  """For tables and messages."""
  return ", ".join(f"{name}={_short(value)}" for name, value in settings.items())


def _short(value: Any) -> str:
  if isinstance(value, tuple):
    return "-".join(map(str, value))
  return f"{value:.4g}" if isinstance(value, float) else str(value)
