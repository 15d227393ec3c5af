"""The notebooks as they are committed: in step with their sources, small, and of names that exist.

`make colabs` executes them; nothing here does, and none of its libraries is needed.
"""

import ast
import base64
import importlib
import json
import pathlib
import re

import pytest

FOLDER = pathlib.Path(__file__).resolve().parents[1] / "colabs"
SOURCES = sorted(FOLDER.glob("[0-9]_*.py"))
BADGE = (
  "[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
  "(https://colab.research.google.com/github/{repository}/blob/main/colabs/{name}.ipynb)"
)
MAX_FIGURE, MAX_FILE = 60_000, 120_000

each = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def cells_of_source(text: str) -> list[tuple[str, str]]:
  """(kind, source) of the cells of a file in percent format; a reader of its own, as an oracle."""
  parts = re.split(r"^# %%(.*)\n", text, flags=re.MULTILINE)[1:]
  cells = []
  for head, body in zip(parts[::2], parts[1::2], strict=True):
    body = body.strip("\n")
    if "[markdown]" in head:
      cells.append(("markdown", re.sub(r"^# ?", "", body, flags=re.MULTILINE)))
    else:
      cells.append(("code", re.sub(r"^( *)# (%pip )", r"\1\2", body, flags=re.MULTILINE)))
  return cells


def notebook_of(path: pathlib.Path) -> dict:
  return json.loads(path.with_suffix(".ipynb").read_text())


def names_imported(source: str) -> list[tuple[str, str]]:
  """(module, name or "") of every import of this project."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, ast.Import):
      found += [(alias.name, "") for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [(node.module or "", alias.name) for alias in node.names]
  return [(m, n) for m, n in found if m.split(".")[0] in ("fflax", "experiments")]


def attributes_of_fflax(source: str) -> set[str]:
  """The public names that are read as `fflax.NAME`."""
  return {
    node.attr
    for node in ast.walk(ast.parse(source))
    if isinstance(node, ast.Attribute)
    and isinstance(node.value, ast.Name)
    and node.value.id == "fflax"
  }


def test_readers_see():
  """Were they blind, the tests below would pass on anything."""
  text = "# ---\n# x\n# %% [markdown]\n# # A\n#\n# b\n\n# %% tags=['figure']\nif x:\n  # %pip y\n"
  assert cells_of_source(text) == [("markdown", "# A\n\nb"), ("code", "if x:\n  %pip y")]
  source = (
    "import fflax\nfrom fflax.core import int8 as i\ndef f():\n  import jax, experiments.card\n"
  )
  assert sorted(names_imported(source)) == [
    ("experiments.card", ""), ("fflax", ""), ("fflax.core", "int8"),
  ]  # fmt: skip
  assert attributes_of_fflax("fflax.a(fflax.b.c, x.d)") == {"a", "b"}


def test_every_notebook_has_its_source():
  assert len(SOURCES) >= 6
  assert [p.stem for p in sorted(FOLDER.glob("*.ipynb"))] == [p.stem for p in SOURCES]


@each
def test_pair_is_in_step(path):
  expected = cells_of_source(path.read_text())
  cells = [(c["cell_type"], "".join(c["source"])) for c in notebook_of(path)["cells"]]
  assert cells == expected, "run `make colabs ARGS=--write`"


@each
def test_outputs_are_one_small_figure(path):
  assert path.with_suffix(".ipynb").stat().st_size < MAX_FILE
  cells = [cell for cell in notebook_of(path)["cells"] if cell["cell_type"] == "code"]
  assert all(cell["execution_count"] is None for cell in cells)
  ((cell, output),) = [(cell, output) for cell in cells for output in cell["outputs"]]
  assert cell["metadata"]["tags"] == ["figure"]
  assert list(output["data"]) == ["image/png"]
  png = base64.b64decode(output["data"]["image/png"])
  assert png.startswith(b"\x89PNG") and len(png) < MAX_FIGURE


def test_badges_and_links_name_one_repository(repo_root):
  """Who publishes the project replaces one name everywhere; one forgotten would be a dead link."""
  texts = [p.read_text() for p in SOURCES]
  readme = (repo_root / "README.md").read_text()
  repositories = set(re.findall(r"github(?:\.com)?/([\w-]+/fflax)", "".join([*texts, readme])))
  (repository,) = repositories
  for path, text in zip(SOURCES, texts, strict=True):
    badge = BADGE.format(repository=repository, name=path.stem)
    assert cells_of_source(text)[0][1].startswith(badge + "\n"), path.name
    assert badge in readme, f"README.md has no badge of {path.name}"
    for link in re.findall(rf"{repository}/blob/main/([\w./-]+)", text):
      assert (repo_root / link).is_file(), f"{path.name} links {link}, which is not there"


@each
def test_first_code_cell_installs_in_colab_alone(path):
  first = next(source for kind, source in cells_of_source(path.read_text()) if kind == "code")
  guard, install = first.splitlines()[2:4]
  assert guard == 'if "google.colab" in sys.modules:'
  assert install.startswith("  %pip install -q git+https://github.com/")


@each
def test_names_exist(path):
  source = path.read_text()
  for module, name in names_imported(source):
    found = importlib.import_module(module)
    if name and not hasattr(found, name):
      importlib.import_module(f"{module}.{name}")
  fflax = importlib.import_module("fflax")
  rooms = {m.split(".")[1] for m, _ in names_imported(source) if m.startswith("fflax.")}
  assert attributes_of_fflax(source) - rooms <= set(fflax.__all__)
