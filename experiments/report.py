"""One page from all result files: `python -m experiments.report` (`make report`).

Writes `report.md` and `report.html` (figures inline) into `--out`: every accuracy with its
seeds, locality, gap to the matched backprop control, cost, commit and command; the published value
in a column of its own; then the measured ratios and the figures. Of the library's own results, the
README's table is made, too.
"""

import base64
import html
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from experiments import cli, marked, results
from experiments.cells import beside, is_accuracy, mean_of
from experiments.console import console, si
from experiments.front_table import front_table
from experiments.gaps import Gap, control_row, paired_gap

_README = results.FOLDER.parent.parent / "README.md"
_RESULTS = flags.DEFINE_string("results", str(results.FOLDER), "folder of the result files")
_OUT = flags.DEFINE_string("out", "", "folder of the page; default: that of the result files")


class Section(NamedTuple):
  """A table or a figure of the page, or plain lines.

  Attributes:
    title: its heading.
    text: a sentence under it.
    head, rows: of the table; none: no table.
    figures: files.
  """

  title: str
  text: str = ""
  head: Sequence[str] = ()
  rows: Sequence[Sequence[str]] = ()
  figures: Sequence[pathlib.Path] = ()


_HEAD = (
  "method", "preset or point", "network", "numerics", "readout", "test error %", "seeds",
  "locality", "against backprop", "training MACs (of backprop)", "prediction MACs",
  "step memory (of backprop)", "published %", "study",
)  # fmt: skip


def accuracy_sections(studies: Sequence[Mapping[str, Any]]) -> list[Section]:
  """A table a data set: every run, the controls among them."""
  found = [(study["study"], row) for study in studies for row in study["rows"] if is_accuracy(row)]
  everything = [row for _, row in found]
  sections = []
  for name in sorted({row["dataset"] for row in everything}):
    own = [(study, row) for study, row in found if row["dataset"] == name]
    own.sort(key=lambda one: (one[1]["method"], one[1]["network"], one[0], one[1]["preset"]))
    rows = [_line(study, row, paired_gap(row, control_row(row, everything))) for study, row in own]
    sections.append(Section(f"Test error, {name}", head=_HEAD, rows=rows))
  return sections


def _line(study: str, row: Mapping[str, Any], gap: Gap | None) -> list[str]:
  cost = row.get("cost") or {}
  control = cost.get("control") or {}
  samples = row.get("samples")
  return [
    row["method"],
    row["preset"],
    row["network"],
    row["numerics"],
    row.get("readout", "-") + (f", {samples} samples" if samples else ""),
    mean_of(row),
    str(len(row["seeds"])),
    row["locality"],
    "-" if gap is None else str(gap),
    beside(cost, control, "training_macs"),
    si(cost["prediction_macs"][row["readout"]], "") if cost else "-",
    beside(cost, control, "step_bytes", "B"),
    "-" if row.get("published") is None else f"{row['published']:g}",
    study,
  ]


def ratio_section(studies: Sequence[Mapping[str, Any]]) -> Section:
  """Every speed-up, against its named rival of the same run."""
  rows = []
  for study in studies:
    for row in study["rows"]:
      if row["metric"] in ("speedup", "memory_ratio"):
        value = f"{row['mean']:.2f}" + (f" +- {row['std']:.2f}" if row["std"] else "")
        median = f"{row['median']:.2f}" if row.get("median") else "-"
        what = (row["preset"], row.get("network", "-"), row["rival"])
        rows.append([row["metric"], *what, value, median, study["device"], study["study"]])
  head = ("metric", "of", "network", "against", "mean", "median", "device", "study")
  text = "Ratios of runs in one process; above 1 the first is faster (speedup) or larger (memory)."
  return Section("Ratios against named rivals", text, head, rows)


def study_section(studies: Sequence[Mapping[str, Any]]) -> Section:
  """Where every number comes from: commit, machine, versions and commands."""
  rows = []
  for study in studies:
    versions = ", ".join(f"{n} {v}" for n, v in study["versions"].items() if n in _TOLD)
    for command in dict.fromkeys(row["command"] for row in study["rows"] if "command" in row):
      rows.append([study["study"], study["commit"], study["device"], versions, f"`{command}`"])
  return Section("Commands", "", ("study", "commit", "device", "versions", "command"), rows)


_TOLD = ("python", "jax", "jaxlib", "flax", "optax")


def markdown(sections: Sequence[Section], folder: pathlib.Path) -> str:
  """The page as Markdown; figures are linked, relative to `folder`."""
  lines = ["# Results", "", _PREFACE, ""]
  for section in sections:
    lines += [f"## {section.title}", ""]
    lines += [section.text, ""] if section.text else []
    if section.rows:
      lines.append(f"| {' | '.join(section.head)} |")
      lines.append("|---" * len(section.head) + "|")
      lines += [f"| {' | '.join(c.replace('|', '/') for c in row)} |" for row in section.rows]
      lines.append("")
    for path in section.figures:
      near = pathlib.Path(os.path.relpath(path, folder)).as_posix()
      lines += [f"![{path.stem}]({near})", ""]
  return "\n".join(lines).rstrip() + "\n"


def page(sections: Sequence[Section]) -> str:
  """The page as HTML that needs no other file."""
  parts = [_HTML_HEAD, "<h1>fflax: results</h1>", f"<p>{html.escape(_PREFACE)}</p>"]
  for section in sections:
    parts.append(f"<h2>{html.escape(section.title)}</h2>")
    parts += [f"<p>{html.escape(section.text)}</p>"] if section.text else []
    if section.rows:
      parts.append(f"<table><tr>{_cells(section.head, 'th')}</tr>")
      parts += [f"<tr>{_cells(row, 'td')}</tr>" for row in section.rows]
      parts.append("</table>")
    for path in section.figures:
      data = base64.b64encode(path.read_bytes()).decode()
      title = html.escape(path.stem)
      parts.append(f'<h3>{title}</h3><img alt="{title}" src="data:image/png;base64,{data}">')
  return "\n".join([*parts, "</body></html>", ""])


def _cells(row: Sequence[str], tag: str) -> str:
  return "".join(f"<{tag}>{html.escape(cell.strip('`'))}</{tag}>" for cell in row)


_PREFACE = (
  "Made by `python -m experiments.report` from the result files beside it. Test errors are means "
  "and sample deviations over seeds, after the last epoch. Against backprop on the same data and "
  "network with the same numerics: the difference in points with its 95 % interval (paired by seed "
  "where both have the same seeds), the ratio of the errors, the difference in log-odds of being "
  "right, and which point it is; controls are not tuned apart. Where none stands, none was run. "
  "MACs are counted per example from the traced step, memory is the compiler's."
)

_HTML_HEAD = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>fflax: results</title><style>
body { font-family: sans-serif; margin: 2em; max-width: 100em }
table { border-collapse: collapse; font-size: 0.8em }
th, td { border: 1px solid #ccc; padding: 0.2em 0.5em; text-align: left; vertical-align: top }
img { max-width: 100% }
</style></head><body>"""


def make_report(folder: pathlib.Path, out: pathlib.Path) -> list[pathlib.Path]:
  """Writes both pages and returns their paths.

  Raises:
    ValueError: there is nothing to read, or nowhere to write; nothing is written.
  """
  studies = results.read_studies(folder)
  if not out.is_dir():
    raise ValueError(f"--out={out} is not a folder")
  sections = [
    *accuracy_sections(studies),
    ratio_section(studies),
    Section("Figures", figures=sorted(folder.glob("*.png"))),
    study_section(studies),
  ]
  pages = {"report.md": markdown(sections, out), "report.html": page(sections)}
  for name, text in pages.items():
    (out / name).write_text(text)
  return [out / name for name in pages]


def main(argv: list[str]) -> int:
  del argv
  with cli.checking():
    folder = pathlib.Path(_RESULTS.value).expanduser()
    out = pathlib.Path(_OUT.value).expanduser() if _OUT.value else folder
    paths = make_report(folder, out)
    if folder.resolve() == out.resolve() == results.FOLDER:
      marked.write_between(_README, "results", front_table(results.read_studies(folder)))
      paths.append(_README)
  for path in paths:
    console.print(f"report    {path}")
  return 0


if __name__ == "__main__":
  cli.run(main)
