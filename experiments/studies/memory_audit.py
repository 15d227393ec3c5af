"""The fair memory audit: local rules against backprop at equal micro-batch, both may accumulate.

  python -m experiments.studies.memory_audit --network=vgg8 --size=32
  python -m experiments.studies.memory_audit --network=vgg11 --size=224 --micro=4,8 [--throughput]

Published comparisons set a local rule at its batch against backprop at a smaller micro-batch, or
the reverse (Y. Chen, 2026, arXiv 2606.06539: VGG11 at 224x224, 7.90 GB at 128 against 4.18 at 64).
Here every method is compiled at every micro-batch: an update from each, an update from `--batch`
examples by gradient accumulation, and end-to-end gradients also with every layer rematerialised.
The figures are the compiler's for this machine; nothing is run. `--throughput` also runs each step
on random data, in a process of its own, for images a second and, on devices that count it, the
measured peak. A study that was cut goes on with the cells that it lacks.
"""

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import sys
from typing import Any

from absl import flags

from experiments import cli, results, workdir
from experiments.console import console, si
from experiments.studies.memory_cells import CLASSES, METHODS, Cell, cells, configuration, measure
from experiments.studies.memory_figures import draw, ratios, table

_NETWORK = flags.DEFINE_string("network", "vgg8", "network, with its own options")
_SIZE = flags.DEFINE_integer("size", 32, "side of the images", 1)
_MICRO = flags.DEFINE_list("micro", ["8", "16", "32", "64", "128"], "micro-batches")
_BATCH = flags.DEFINE_integer("batch", 128, "examples of an update by accumulation", 1)
_METHODS = flags.DEFINE_string(
  "methods", "dtg; backprop; backprop, no norm", f"separated by ';': {'; '.join(METHODS)}"
)
_THROUGHPUT = flags.DEFINE_bool("throughput", False, "also run every step")
_ROUNDS = flags.DEFINE_integer("rounds", 10, "of timed steps", 1)
_CELLS = flags.DEFINE_string("cells", "runs/studies", "folder of the cells that are done")


def main(argv: list[str]) -> int:
  del argv
  if _THROUGHPUT.value:
    # Before the device is opened: what is reserved in advance hides what a step needs.
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
  with cli.checking():
    methods = [name.strip() for name in _METHODS.value.split(";") if name.strip()]
    cli.at_least_one("methods", methods, "method")
    cli.at_least_one("micro", _MICRO.value, "micro-batch")
    micro = sorted({int(m) for m in _MICRO.value})
    todo = cells(methods, _NETWORK.value, _SIZE.value, micro, _BATCH.value)
    for cell in todo:
      configuration(cell)
    folder = pathlib.Path(_CELLS.value) / "memory_audit"
    folder.mkdir(parents=True, exist_ok=True)
  command = cli.command_line("experiments.studies.memory_audit", sys.argv[1:])
  device = workdir.device()
  study = f"memory_audit_{_NETWORK.value}_{_SIZE.value}"
  study += "" if device.startswith("cpu") else f"_{device.partition(':')[0]}"
  study += "_timed" if _THROUGHPUT.value else ""
  rows: list[dict[str, Any]] = []
  for cell in todo:
    with cli.checking():
      found = _done_or_measured(folder, cell, device)
    rows += _rows(cell, found, command)
    peak = si(found["peak"], "B") if "peak" in found else found["failed"]
    console.print(f"micro-batch {cell.micro:4d}  {cell.variant:44s} {peak}")
    path = results.write_study(study, [*rows, *ratios(rows)])
  path.with_suffix(".md").write_text(table(rows, ratios(rows)))
  draw(rows, path.with_suffix(".png"))
  console.print(f"results   {path}")
  return 0


def _done_or_measured(folder: pathlib.Path, cell: Cell, device: str) -> dict[str, Any]:
  """A cell, from its file if an earlier audit on such a machine has left it."""
  rounds = _ROUNDS.value if _THROUGHPUT.value else 0
  key = {"cell": cell._asdict(), "rounds": rounds, "device": device, **workdir.versions()}
  name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:12]
  path = folder / f"{name}.json"
  if path.exists():
    return json.loads(path.read_text())["found"]
  if rounds:
    # A device's peak counter cannot be set back, and a step that fails may leave its memory taken.
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as pool:
      found = pool.submit(measure, cell, rounds).result()
  else:
    found = measure(cell)
  workdir.write_json(path, {**key, "found": found})
  return found


def _rows(cell: Cell, found: dict[str, Any], command: str) -> list[dict[str, Any]]:
  columns = {
    "method": configuration(cell).method,
    "preset": cell.variant,
    "network": cell.network,
    "numerics": "float32",
    "dataset": f"random {cell.size}x{cell.size}x3, {CLASSES} classes",
    "micro_batch": cell.micro,
    "accumulate": cell.accumulate,
    "rematerialize": cell.rematerialize,
    "command": command,
  }
  bytes_of = {k: v for k, v in found.items() if k not in ("locality", "images_per_second")}
  peak, locality = [found["peak"]] if "peak" in found else [], found["locality"]
  rows = [results.row("peak_bytes", peak, locality=locality, **columns, memory=bytes_of)]
  if "images_per_second" in found:
    rates = found["images_per_second"]
    rows.append(results.row("images_per_second", rates, locality=locality, **columns))
  return rows


if __name__ == "__main__":
  cli.run(main)
