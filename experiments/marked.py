"""Parts of hand-written pages that a command writes: what stands between two comments."""

import pathlib

from experiments import workdir


def marks(name: str) -> tuple[str, str]:
  """The comments in which a part stands."""
  return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_between(path: pathlib.Path, name: str, text: str) -> None:
  """Replaces what stands between the two marks of a part in a file.

  Raises:
    ValueError: the file does not have both marks once, in order; it stays as it is.
  """
  first, last = marks(name)
  old = path.read_text()
  head, _, rest = old.partition(first)
  _, found, tail = rest.partition(last)
  if not found or any(old.count(mark) != 1 for mark in (first, last)):
    raise ValueError(f"{path} must hold {first} and {last}, once each and in this order")
  workdir.write_text(path, f"{head}{first}\n{text.strip()}\n{last}{tail}")
