"""The pages in docs/ are executed as they stand: one that does not run teaches what is not so."""

import ast
import contextlib
import io
import re
import sys
import types

import jax
import numpy as np
import pytest

PAGE = "write_your_own_rule.md"


def blocks(text: str, language: str) -> list[str]:
  return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def page(repo_root) -> str:
  return (repo_root / "docs" / PAGE).read_text()


def test_blocks_are_found():
  """Were the reader blind, the tests below would run nothing."""
  text = "a\n```python\nx = 1\n```\nb\n```text\nout\n```\n```python\ny\n```\n"
  assert blocks(text, "python") == ["x = 1\n", "y\n"]
  assert blocks(text, "text") == ["out\n"]


def test_the_method_is_complete_in_under_60_lines(page):
  """The promise of the page: one block with the imports, the configuration and the factory."""
  method = blocks(page, "python")[0]
  assert len(method.splitlines()) < 60
  names = [getattr(node, "name", "") for node in ast.parse(method).body]
  assert {"LocalErrorsConfig", "local_errors"} <= set(names)


def test_the_page_runs_and_prints_what_it_says(page):
  """All blocks in one module; the last one is the conformance suite over the page's method."""
  module = types.ModuleType("write_your_own_rule")
  sys.modules[module.__name__] = module  # dataclasses look their module up
  output = io.StringIO()
  try:
    with contextlib.redirect_stdout(output):
      for number, block in enumerate(blocks(page, "python"), start=1):
        exec(compile(block, f"{PAGE}, block {number}", "exec"), module.__dict__)
  finally:
    del sys.modules[module.__name__]

  (promised,) = blocks(page, "text")
  number = re.compile(r"test accuracy ([\d.]+) %\n")
  accuracy, printed = (float(number.match(t)[1]) for t in (promised, output.getvalue()))
  # 360 images: one standard error is 0.9 %, and rounding differs between machines.
  assert abs(accuracy - printed) < 1.5, f"the page says {accuracy}, it prints {printed}"
  assert printed > 90
  assert number.sub("", output.getvalue()) == number.sub("", promised)
  np.testing.assert_array_equal(module.metrics["loss"].shape, (600, 3))


def test_the_configuration_of_the_page_is_checked(page):
  module = types.ModuleType("write_your_own_rule")
  sys.modules[module.__name__] = module
  try:
    exec(blocks(page, "python")[0], module.__dict__)
  finally:
    del sys.modules[module.__name__]
  with pytest.raises(ValueError, match="scale must be positive, not 0"):
    module.local_errors(module.LocalErrorsConfig(scale=0.0), 10)


def test_the_readme_s_example_runs_and_learns(repo_root, capsys):
  """The first lines that a user copies."""
  (code,) = blocks((repo_root / "README.md").read_text(), "python")
  with jax.numpy_rank_promotion("allow"):  # as it is for a user
    exec(compile(code, "README.md", "exec"), {})
  assert float(capsys.readouterr().out.split()[-1]) > 0.9
