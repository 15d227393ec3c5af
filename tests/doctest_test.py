"""The examples in the docstrings of the main functions do what they show."""

import doctest
import importlib

import pytest

MODULES = (
  "analysis.cost",
  "analysis.memory",
  "analysis.pipeline_schedule",
  "core.goodness",
  "core.locality",
  "core.losses",
  "core.pbits",
  "core.prototypes",
  "core.quantize",
  "data.sources",
  "methods.registry",
  "networks.registry",
  "training.step",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples_show_what_happens(name):
  found = doctest.testmod(importlib.import_module(f"fflax.{name}"))
  assert found.attempted and not found.failed


def test_every_example_is_run(repo_root):
  paths = (repo_root / "fflax").rglob("*.py")
  shown = {p.relative_to(repo_root / "fflax") for p in paths if ">>> " in p.read_text()}
  assert {".".join(p.with_suffix("").parts) for p in shown} == set(MODULES)
