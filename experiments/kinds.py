"""What kind of value a field takes, read from its default: files and flags may hold anything."""

from collections.abc import Mapping
from typing import Any

from experiments.traced import TracedFloat


def group(values: Any, where: str) -> Mapping[str, Any]:
  """`values`, if they are a mapping.

  Raises:
    ValueError: they are not; one sentence.
  """
  if not isinstance(values, Mapping):
    raise ValueError(f"{where} must be a group of fields, not {values!r}")
  return values


def checked(values: Mapping[str, Any], defaults: Mapping[str, Any], where: str) -> dict[str, Any]:
  """The values as they are, but lists as tuples.

  Raises:
    ValueError: a name has no default, or a value is of another kind than it; one sentence.
  """
  for name in values:
    if name not in defaults:
      raise ValueError(f"unknown field {name!r} of {where}; there are {', '.join(defaults)}")
  found = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
  for name, value in found.items():
    check_kind(f"{where}.{name}", value, defaults[name])
  return found


def check_kind(where: str, value: Any, default: Any) -> None:
  """Asks whether `value` is of the kind of `default`; integers are floats, too.

  None is of no kind, so nothing is asked where it is the default; lists are asked for their entries
  where the default has some.

  Raises:
    ValueError: it is not; one sentence.
  """
  if default is None:
    return
  if isinstance(default, tuple | list):
    good = isinstance(value, tuple | list)
  elif isinstance(default, float):
    # A sweep's numbers of several points stand in such fields, too, see traced.py.
    good = isinstance(value, int | float | TracedFloat) and not isinstance(value, bool)
  elif isinstance(default, bool | int | str):
    good = type(value) is type(default)
  else:
    good = isinstance(value, Mapping | type(default))
  if not good:
    kinds = {
      tuple: "a list",
      list: "a list",
      bool: "true or false",
      int: "an integer",
      float: "a number",
    }
    kind = kinds.get(type(default), "a text" if isinstance(default, str) else "a group of fields")
    raise ValueError(f"{where} must be {kind}, not {value!r}")
  if isinstance(default, tuple) and default:
    for entry in value:
      check_kind(f"each of {where}", entry, default[0])
