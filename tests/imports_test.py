"""The plan of the house, read from the source: who imports whom, and how large a room may be.

Without these tests a paper's file could reach into the driver, or TensorFlow could become a
dependency, and every other test would still pass.
"""

import ast
import importlib
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]
MAX_LINES = 400

# Room -> the other rooms that it may import. `data`, `analysis` hang beside: nothing imports them.
ARROWS = {
  "types": set(),
  "random": {"types"},
  "core": {"types", "random"},
  "kernels": {"types", "random", "core"},
  "networks": {"types", "random", "core"},
  "methods": {"types", "random", "core", "kernels", "networks"},
  "training": {"types", "random", "core"},
  "data": {"types", "random", "core"},
  "analysis": {"types", "random", "core"},
}
FLAGS = {"absl", "ml_collections", "argparse"}
HEAVY = {"tensorflow", "torch"}
# Written in PyTorch; the benchmarks import them inside functions (see test_no_heavy_import).
TORCH_MODULES = {
  "experiments.benchmarks.torch_rivals",
  "experiments.benchmarks.torch_channelwise",
}


class Import(NamedTuple):
  """One imported module; `top_level` is False inside a function."""

  target: str
  line: int
  top_level: bool


def module_name(path: pathlib.Path) -> str:
  parts = path.relative_to(ROOT).with_suffix("").parts
  return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room(module: str) -> str:
  """`fflax.core.losses` -> `core`; `fflax` itself -> ``."""
  return (module.split(".") + [""])[1]


def is_module(name: str) -> bool:
  path = ROOT.joinpath(*name.split("."))
  return path.is_dir() or path.with_suffix(".py").is_file()


def imports_of(source: str, module: str, is_package: bool = False) -> Iterator[Import]:
  """Every import of a module, inside functions too; `from a import b` is `a.b` if that is one."""

  def visit(node: ast.AST, top_level: bool) -> Iterator[Import]:
    if isinstance(node, ast.Import):
      for alias in node.names:
        yield Import(alias.name, node.lineno, top_level)
    elif isinstance(node, ast.ImportFrom):
      base = node.module or ""
      if node.level:
        package = module.split(".") if is_package else module.split(".")[:-1]
        base = ".".join(package[: len(package) - node.level + 1] + ([base] if base else []))
      for alias in node.names:
        name = f"{base}.{alias.name}"
        yield Import(name if is_module(name) else base, node.lineno, top_level)
    inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
    for child in ast.iter_child_nodes(node):
      yield from visit(child, top_level and not inside)

  return visit(ast.parse(source), True)


def sources(*folders: str) -> list[pathlib.Path]:
  found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
  assert found, f"no source under {folders}"
  return found


def all_imports(*folders: str) -> Iterator[tuple[str, Import]]:
  for path in sources(*folders):
    module = module_name(path)
    for found in imports_of(path.read_text(), module, path.name == "__init__.py"):
      yield module, found


def wrong_arrow(module: str, target: str) -> bool:
  """Whether `module` may not import `target`, by the plan of the house."""
  if target.split(".")[0] in ("experiments", "colabs"):
    return True
  if target.split(".")[0] != "fflax" or not room(module):
    return False  # another package, or the public names in fflax/__init__.py
  # The bare `fflax` brings every room, so no room may import it.
  return room(target) != room(module) and room(target) not in ARROWS[room(module)]


def test_reader_sees_every_kind_of_import():
  """Oracle of the reader itself: were it blind, every test below would pass on any code."""
  source = (
    "import jax.numpy as jnp\nfrom fflax.core import losses\nfrom . import normalize\n"
    "from ..types import Array\nif True:\n  import torch\ndef f():\n  import absl.flags\n"
  )
  found = list(imports_of(source, "fflax.core.goodness"))
  assert [(i.line, i.top_level) for i in found] == [
    (1, True), (2, True), (3, True), (4, True), (6, True), (8, False),
  ]  # fmt: skip
  assert [i.target.split(".")[0] for i in found] == [
    "jax", "fflax", "fflax", "fflax", "torch", "absl",
  ]  # fmt: skip
  assert found[2].target.startswith("fflax.core")
  assert found[3].target == "fflax.types"


@pytest.mark.parametrize(
  ("module", "target", "wrong"),
  [
    ("fflax.core.losses", "fflax.types", False),
    ("fflax.core.losses", "fflax.core.goodness", False),
    ("fflax.core.losses", "fflax.methods.registry", True),
    ("fflax.training.step", "fflax.networks.mlp", True),
    ("fflax.training.step", "fflax.methods", True),
    ("fflax.methods.dtg", "fflax.networks.mlp", False),
    ("fflax.methods.dtg", "fflax.training.step", True),
    ("fflax.types", "fflax.random", True),
    ("fflax.data.stream", "fflax", True),
    ("fflax.data.stream", "experiments.train", True),
    ("fflax.data.stream", "colabs.build", True),
    ("fflax", "fflax.training.step", False),
    ("fflax", "experiments.train", True),
    ("fflax.core.losses", "jax.numpy", False),
  ],
)
def test_arrows_rule(module, target, wrong):
  assert wrong_arrow(module, target) is wrong


def test_arrows():
  """Imports go one way; a cycle of rooms would tie the driver to a paper."""
  rooms = {room(module_name(path)) for path in sources("fflax")} - {""}
  assert rooms <= set(ARROWS), f"rooms without a place in the plan: {rooms - set(ARROWS)}"
  bad = [
    f"{module}:{found.line} imports {found.target}"
    for module, found in all_imports("fflax")
    if wrong_arrow(module, found.target)
  ]
  assert not bad, bad


def test_library_imports_of_other_packages():
  """flax stays in networks (all numeric code works without it); flags stay out of the library."""
  bad = []
  for module, found in all_imports("fflax"):
    package = found.target.split(".")[0]
    if package in FLAGS or (package == "flax" and room(module) != "networks"):
      bad.append(f"{module}:{found.line} imports {found.target}")
  assert not bad, bad


def test_no_heavy_import():
  """TensorFlow and PyTorch are optional: whoever needs one imports it inside a function."""
  bad = [
    f"{module}:{found.line} imports {found.target}"
    for module, found in all_imports("fflax", "experiments", "tests")
    if found.top_level
    and module not in TORCH_MODULES
    and (found.target.split(".")[0] in HEAVY or found.target in TORCH_MODULES)
  ]
  assert not bad, bad


def test_module_length():
  lengths = {
    module_name(p): len(p.read_text().splitlines()) for p in sources("fflax", "experiments")
  }
  too_long = {name: lines for name, lines in lengths.items() if lines > MAX_LINES}
  assert not too_long, f"past {MAX_LINES} lines, so two modules: {too_long}"


def written_all(tree: ast.Module) -> list[str] | None:
  """The literal `__all__` of a module, or None."""
  for node in tree.body:
    if isinstance(node, ast.Assign) and [ast.unparse(t) for t in node.targets] == ["__all__"]:
      return ast.literal_eval(node.value)
  return None


@pytest.mark.parametrize("path", sources("fflax"), ids=module_name)
def test_imports_and_all(path):
  """Every module imports alone, and each name of its `__all__` exists once."""
  module = importlib.import_module(module_name(path))
  names = written_all(ast.parse(path.read_text())) or []
  assert len(names) == len(set(names)), "a name stands twice in __all__"
  missing = [name for name in names if not hasattr(module, name)]
  assert not missing, f"__all__ names what is not there: {missing}"
