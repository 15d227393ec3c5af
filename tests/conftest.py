"""What every test shares: the CPU, strict broadcasting, repeatable examples, real data."""

import os
import pathlib

# Before jax is imported; `JAX_PLATFORMS=cuda make test` is still possible.
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import hypothesis
import jax
import pytest

# A silent [B] with [B, D] broadcast is the commonest way to be wrong without noticing.
jax.config.update("jax_numpy_rank_promotion", "raise")

# The same examples on every machine and in every run; compilation makes the first example slow.
hypothesis.settings.register_profile(
  "fflax", deadline=None, max_examples=25, derandomize=True, database=None
)
hypothesis.settings.load_profile("fflax")

_ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def repo_root() -> pathlib.Path:
  """The root of the checkout."""
  return _ROOT


@pytest.fixture(scope="session")
def data_dir() -> pathlib.Path:
  """The directory of real data sets: FFLAX_DATA_DIR, else `../shared/data` beside the checkout."""
  named = os.environ.get("FFLAX_DATA_DIR")
  path = pathlib.Path(named) if named else _ROOT.parent / "shared" / "data"
  if not path.is_dir():
    pytest.skip(f"no real data: {path} is not a directory; set FFLAX_DATA_DIR")
  return path
