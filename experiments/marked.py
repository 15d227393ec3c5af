"""Parts of hand-written pages that a command writes: what stands between two comments."""

import pathlib


def marks(name: str) -> tuple[str, str]:
  """The comments in which a part stands."""
  return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_between(path: pathlib.Path, name: str, text: str) -> None:
  """Replaces what stands between the two marks of a part in a file.

  Raises:
    ValueError: the file does not have both marks once.
  """
  first, last = marks(name)
  old = path.read_text()
  if any(old.count(mark) != 1 for mark in (first, last)):
    raise ValueError(f"{path} must hold {first} and {last}, once each")
  head, _, rest = old.partition(first)
  tail = rest.partition(last)[2]
  path.write_text(f"{head}{first}\n{text.strip()}\n{last}{tail}")
