"""Makes the notebooks and runs them: `colabs/build.py [--write] [--jobs=2] [NAME ...]`.

Each `N_name.py` (jupytext's percent format) is the source that is read and reviewed; `N_name.ipynb`
is generated. Every notebook is executed from its start in an empty folder, without the internet.
Without `--write` nothing is changed: the command fails if a pair is out of step, a cell fails, or a
notebook takes longer than the limit. With it the notebook is written anew: outputs are left out but
for one picture, that of the cell tagged "figure".
"""

import argparse
import base64
import concurrent.futures
import copy
import functools
import io
import multiprocessing
import os
import pathlib
import resource
import sys
import tempfile
import time

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from PIL import Image

FOLDER = pathlib.Path(__file__).resolve().parent
LIMIT_SECONDS = 300
MAX_FIGURE_BYTES = 60_000

# Runs in the kernel before the first cell; what the kernel says to its client stays possible.
_OFFLINE = """
import socket as _socket
def _refuse(self, address, _connect=_socket.socket.connect):
  if self.family == _socket.AF_UNIX or address[0] in ("127.0.0.1", "localhost", "::1"):
    return _connect(self, address)
  raise OSError("colabs are executed without the internet")
_socket.socket.connect = _refuse
"""


def sources(names: list[str]) -> list[pathlib.Path]:
  """The notebooks' sources; all of them if no names are given.

  Raises:
    ValueError: there is none of that name.
  """
  found = sorted(FOLDER.glob("[0-9]_*.py"))
  unknown = set(names) - {path.stem for path in found}
  if unknown:
    known = ", ".join(path.stem for path in found)
    raise ValueError(f"there is no notebook {sorted(unknown)[0]!r}; there are {known}")
  return [path for path in found if not names or path.stem in names]


def from_source(path: pathlib.Path) -> nbformat.NotebookNode:
  """The notebook of a source, without outputs; the same bytes for the same source."""
  notebook = jupytext.read(path, fmt={"extension": ".py", "comment_magics": True})
  for number, cell in enumerate(notebook.cells):
    cell.id = f"cell-{number}"
  notebook.metadata = {
    "jupytext": {"formats": "ipynb,py:percent"},
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
  }
  return notebook


def in_step(notebook: nbformat.NotebookNode, path: pathlib.Path) -> bool:
  """Whether the notebook at `path` is this one, outputs aside."""
  if not path.is_file():
    return False
  old = nbformat.read(path, as_version=4)
  keep = ("cell_type", "source", "metadata", "id")
  cells = [[{name: cell[name] for name in keep} for cell in n.cells] for n in (old, notebook)]
  return cells[0] == cells[1] and old.metadata == notebook.metadata


def execute(notebook: nbformat.NotebookNode) -> tuple[float, float]:
  """Runs all cells in a new kernel and an empty folder; outputs go into `notebook`.

  Returns:
    Seconds by the clock, and of all cores together.

  Raises:
    CellExecutionError: a cell failed.
  """
  start, before = time.perf_counter(), _children_seconds()
  metadata = copy.deepcopy(notebook.metadata)
  with tempfile.TemporaryDirectory() as folder:
    client = NotebookClient(
      notebook,
      timeout=4 * LIMIT_SECONDS,
      kernel_name="python3",
      startup_timeout=LIMIT_SECONDS,
      resources={"metadata": {"path": folder}},
      extra_arguments=[f"--IPKernelApp.exec_lines={_OFFLINE}"],
    )
    client.execute()
  notebook.metadata = metadata  # the kernel has put its own version into it
  return time.perf_counter() - start, _children_seconds() - before


def _children_seconds() -> float:
  use = resource.getrusage(resource.RUSAGE_CHILDREN)
  return use.ru_utime + use.ru_stime


def keep_one_figure(notebook: nbformat.NotebookNode) -> int:
  """Drops all outputs but the picture of the cell tagged "figure"; returns its size in bytes.

  Raises:
    ValueError: there is not one such picture, or it is too large.
  """
  pictures = []
  for cell in notebook.cells:
    cell.metadata.pop("execution", None)
    if cell.cell_type != "code":
      continue
    if "figure" in cell.metadata.get("tags", []):
      found = [o for o in cell.outputs if "image/png" in o.get("data", {})]
      pictures += [(cell, output) for output in found]
    cell.outputs, cell.execution_count = [], None
  if len(pictures) != 1:
    raise ValueError(f'the cell tagged "figure" must show one picture, not {len(pictures)}')
  cell, output = pictures[0]
  png = _smaller(base64.b64decode(output["data"]["image/png"]))
  if len(png) > MAX_FIGURE_BYTES:
    raise ValueError(f"the figure has {len(png)} bytes, more than {MAX_FIGURE_BYTES}")
  data = {"image/png": base64.b64encode(png).decode()}
  cell.outputs = [nbformat.v4.new_output("display_data", data)]
  return len(png)


def _smaller(png: bytes) -> bytes:
  """The picture in at most 256 colours."""
  out = io.BytesIO()
  Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=0).save(out, "png", optimize=True)
  return min(png, out.getvalue(), key=len)


def make(path: pathlib.Path, write: bool) -> tuple[bool, str]:
  """Makes and runs one notebook; whether all is well, and a line about it."""
  notebook, target = from_source(path), path.with_suffix(".ipynb")
  if not write and not in_step(notebook, target):
    return False, f"{target.name} is not that of {path.name}: run `make colabs ARGS=--write`"
  try:
    seconds, busy = execute(notebook)
    size = keep_one_figure(notebook)
  except (CellExecutionError, ValueError, TimeoutError, RuntimeError) as error:
    return False, f"{path.stem} failed: {error}"
  if write:
    nbformat.write(notebook, target)
  late = seconds > LIMIT_SECONDS
  line = (
    f"{path.stem:30s} {seconds:6.1f} s{' (too slow)' * late}, {busy:.0f} s of CPU, "
    f"figure {size / 1000:.0f} kB"
  )
  return not late, line


def main() -> int:
  parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
  parser.add_argument("names", nargs="*", help="such as 1_quickstart; none: all")
  parser.add_argument("--write", action="store_true", help="write the notebooks, figures included")
  parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="notebooks at a time")
  args = parser.parse_args()
  if args.jobs < 1:
    parser.error(f"--jobs must be at least 1, not {args.jobs}")
  try:
    paths = sources(args.names)
  except ValueError as error:
    print(error, file=sys.stderr)
    return 2
  failed = False
  # Each job is a process, not a thread: a process knows the CPU time of its own kernels alone.
  fresh = multiprocessing.get_context("spawn")
  with concurrent.futures.ProcessPoolExecutor(max(1, min(args.jobs, len(paths))), fresh) as pool:
    for good, line in pool.map(functools.partial(make, write=args.write), paths):
      print(line, flush=True)
      failed |= not good
  return int(failed)


if __name__ == "__main__":
  sys.exit(main())
