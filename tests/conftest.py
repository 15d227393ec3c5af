"""What every test shares: the CPU, strict broadcasting, repeatable examples, real data."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform

_ROOT = pathlib.Path(__file__).resolve().parents[1]


def _cpu() -> str:
  """Tells CPUs apart: compiled code must not travel to one without the same instructions."""
  info = pathlib.Path("/proc/cpuinfo")
  lines = info.read_text().splitlines() if info.exists() else []
  flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
  return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


# Before jax is imported; `JAX_PLATFORMS=cuda make test` is still possible.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Compilation is most of the tests' time: what one test compiled, the other worker, the programs
# that tests start and the next run read from here. Keyed by the program: a change compiles anew.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_ROOT / ".cache" / f"jax-{_cpu()}"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")
# Most of it goes into code that is fast; a test runs it once. XLA ends the process at a flag that
# it does not know, hence each only from and up to the jaxlib where it is known to be known.
# `XLA_FLAGS= make test` does without.
_QUICK = {
  "--xla_backend_optimization_level=0": ((0, 10), (0, 12)),
  "--xla_cpu_use_fusion_emitters=false": ((0, 10), (0, 10)),
}
_jaxlib = tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2]))
_known = [flag for flag, (first, last) in _QUICK.items() if first <= _jaxlib <= last]
if _known:
  os.environ.setdefault("XLA_FLAGS", " ".join(_known))

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
