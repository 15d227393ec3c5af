"""Prints what a configuration costs: `python -m experiments.cost --config=...`.

MACs by type, element-wise operations, bytes moved, peak memory and modelled energy, per training
example and per prediction, each beside the matched backprop controls: the same network by backprop,
in float32 and in the run's own numerics. `--config.x.y=value` overrides a field. Nothing is
trained; bad input ends in one sentence and exit code 2.

What p-bits cost depends on how often they fire, so that is measured first, on test images: of the
newest checkpoint of a run with `--workdir=runs/...`, whose configuration is then the card's, or
else after a short run of `--steps` steps. Beside such a run stand the same net with real units, in
float32 and int8, and a table of what one pass would cost on hardware with stochastic bits.
"""

import pathlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags
from ml_collections import config_flags
from rich.table import Table

from experiments import cli, config, workdir
from experiments.assembly import build
from experiments.card import card, find_task, notes, ratio
from experiments.console import console, si
from experiments.firing import Measured, draws, measure_after, measure_firing
from experiments.pbit_hardware import SAMPLES, WIDTHS
from experiments.running import restored
from fflax.analysis.energy import PBITS, TABLES

_DEFAULT_CONFIG = str(pathlib.Path(__file__).parent / "configs" / "ff_digits.py")
_CONFIG = config_flags.DEFINE_config_file(
  "config", None, "configuration file; default: ff_digits.py"
)
_OUT = flags.DEFINE_string("out", "", "also write the card to this JSON file")
_TABLE = flags.DEFINE_enum("table", "horowitz_45nm", list(TABLES), "energies of operations")
_WORKDIR = flags.DEFINE_string("workdir", "", "folder of a run, in the place of --config")
_DATA_DIR = flags.DEFINE_string("data_dir", "", "of that run: where sets lie here")
_STEPS = flags.DEFINE_integer("steps", 200, "of training before firing rates are measured", 0)
_MEMORY = flags.DEFINE_bool("memory", True, "compile the steps and read their peak memory")

_ENERGIES = {
  "none": "energy, arithmetic only",
  "on_chip": "energy, memory on the chip",
  "dram_weights": "energy, weights in DRAM",
}


class _Row(NamedTuple):
  """One quantity: a value for the run and one for each control."""

  title: str
  unit: str
  values: list[float]


def _section_rows(sections: Sequence[Mapping[str, Any]]) -> list[_Row]:
  """The rows of one section of the card, a value for each column."""

  def rows(prefix: str, values: Sequence[Mapping[str, float]], unit: str = "", factor=1.0):
    names = sorted({name for one in values for name in one})
    return [_Row(prefix.format(n), unit, [factor * v.get(n, 0) for v in values]) for n in names]

  kinds: list[Counter[str]] = [Counter() for _ in sections]
  for kind, section in zip(kinds, sections, strict=True):
    for name, n in section["ops_by_type"].items():
      name = name.split()[0]
      kind["random words" if name == "random" else f"element-wise {name}"] += n
  found = rows("MACs {}", [s["macs_by_type"] for s in sections])
  found.append(_Row("MACs", "", [s["macs"] for s in sections]))
  valid = _Row("MACs, padding not counted", "", [s["macs_valid"] for s in sections])
  if valid.values != found[-1].values:
    found.append(valid)
  found += rows("index additions, {}", [_nonzero(s["index_adds"]) for s in sections])
  found += rows("{}", kinds)
  if any(s["pbits"] for s in sections):
    found.append(_Row("p-bit samples", "", [s["pbits"] for s in sections]))
    found += rows("energy of p-bits, {}", [s["pbit_pj"] for s in sections], "J", 1e-12)
  found += rows("{} moved", [s["bits_by_owner"] for s in sections], "B", 1 / 8)
  for name, title in _ENERGIES.items():
    found.append(_Row(title, "J", [s["energy_pj"][name] * 1e-12 for s in sections]))
  return found


def _nonzero(values: Mapping[str, float]) -> dict[str, float]:
  return {name: n for name, n in values.items() if n}


def _run_rows(columns: Sequence[Mapping[str, Any]]) -> list[_Row]:
  """What belongs to the run, not to an example."""
  rows = [_Row("trained parameters", "", [c["parameters"] for c in columns])]
  if all(c["memory"] is not None for c in columns):
    for name in columns[0]["memory"]:
      rows.append(_Row(f"{name} of a step", "B", [c["memory"][name] for c in columns]))
  return rows


def _table(title: str, columns: Sequence[str], rows: Sequence[_Row]) -> Table:
  """One row a quantity: the run, then each control with the run's ratio to it."""
  table = Table(title=title)
  table.add_column("")
  table.add_column(columns[0], justify="right")
  for name in columns[1:]:
    table.add_column(name, justify="right")
    table.add_column("ratio", justify="right")
  for row in rows:
    run, *controls = row.values
    cells = [si(run, row.unit)]
    for value in controls:
      times = ratio(run, value)
      cells += [si(value, row.unit), "-" if times is None else f"{times:.2f}"]
    table.add_row(row.title, *cells)
  return table


def _firing_table(firing: Mapping[str, Any]) -> Table:
  """Rates of every layer, as measured."""
  title = f"counts as measured: {firing['examples']} test images after {firing['steps']} steps"
  table = Table(title=title)
  for name in ("layer", "M", "mean", "ones of its code", "not 0", "at least 1, 2, ..."):
    table.add_column(name, justify="left" if name == "layer" else "right")
  for layer in firing["layers"]:
    rates = [f"{layer[name]:.3f}" for name in ("mean_count", "code_ones", "nonzero")]
    lines = " ".join(f"{rate:.2g}" for rate in layer["lines"])
    table.add_row(layer["layer"], str(layer["units"]), *rates, lines)
  return table


def _judge_table(rows: Sequence[Mapping[str, Any]]) -> Table:
  """One pass on hardware with stochastic bits, and how many times as much real units take."""
  table = Table(title="products and p-bits of one sampled pass, without memory")
  table.add_column("weights, count read as")
  for name, pbit in SAMPLES.items():
    table.add_column(f"{name}, {1000 * PBITS[pbit]:.0f} fJ", justify="right")
    for width in WIDTHS:
      table.add_column(f"{width} MACs", justify="right")
  for row in rows:
    cells = []
    for name, pj in row["pj"].items():
      cells += [si(pj * 1e-12, "J"), *(f"{row['times'][name][width]:.2f} x" for width in WIDTHS)]
    table.add_row(f"{row['weights']}, {row['reading']}", *cells)
  return table


def show(found: Mapping[str, Any]) -> None:
  """Prints a card."""
  run = found["columns"]["run"]
  shape = "x".join(map(str, found["image_shape"]))
  console.print(
    f"run       {run['method']} x {found['network']} x {run['numerics']} x {run['schedule']}, "
    f"locality {run['locality']}"
  )
  console.print(f"data      {found['data']}: {shape}, {found['num_classes']} classes")
  console.print(f"energy    modelled, not measured: {found['table_source']}")
  size, names, columns = found["batch_size"], list(found["columns"]), found["columns"].values()
  titles = {
    "training": f"training, one example of a batch of {size}",
    "prediction": f"prediction of one example by {run['readout']}",
  }
  for part, title in titles.items():
    console.print(_table(title, names, _section_rows([c[part] for c in columns])))
  console.print(_table(f"the whole step, batch of {size}", names, _run_rows(list(columns))))
  if found["firing"] is not None:
    console.print(_firing_table(found["firing"]))
    console.print(_judge_table(found["judge"]))
    if run["locality"] != "strict":
      console.print("note      input gradients of products of counts are counted as additions")
  for note in notes(columns):
    console.print(f"note      {note}")


def _chosen(folder: pathlib.Path | None) -> config.ExperimentConfig:
  """The configuration of the run in `folder`, or of the command line."""
  if folder is None:
    return config.from_mapping(_CONFIG.value.to_dict())
  values = config.as_dict(workdir.read_config(folder))
  if _DATA_DIR.value:
    values["data"]["data_dir"] = _DATA_DIR.value
  return config.from_mapping(values)


def _measure(chosen: config.ExperimentConfig, folder: pathlib.Path | None) -> Measured:
  """The firing of the newest checkpoint in `folder`, or of a short run."""
  if folder is None:
    return measure_after(chosen, _STEPS.value)
  experiment = build(chosen)
  return measure_firing(experiment, restored(experiment, folder))


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    folder = pathlib.Path(_WORKDIR.value).expanduser() if _WORKDIR.value else None
    chosen = _chosen(folder)
    out = pathlib.Path(_OUT.value).expanduser() if _OUT.value else None
    if out is not None and not out.parent.is_dir():
      raise ValueError(f"--out={out}: there is no folder {out.parent}")
    firing = _measure(chosen, folder) if draws(chosen) else None
    task = find_task(chosen)
    found = card(chosen, task, table=_TABLE.value, memory=_MEMORY.value, firing=firing)
  show(found)
  if out is not None:
    workdir.write_json(out, {"config": config.as_dict(chosen), **found})
    console.print(f"card      {out}")
  return 0


if __name__ == "__main__":
  cli.run(main, defaults={"config": _DEFAULT_CONFIG})
