"""The folder of a run: who it belongs to, and what stands in it.

`config.json`, `versions.json`, `metrics.jsonl`, `timing.jsonl`, `tensorboard/`, `checkpoints/`,
`figures/`, `.lock` for the process that trains and, once the run is finished, `summary.json`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import jax

try:
  import fcntl
except ImportError:  # not a POSIX system: no locks
  fcntl = None  # type: ignore[assignment]

from experiments import config as config_lib
from experiments.config import ExperimentConfig
from experiments.distributed import DistributedConfig

_LOCK = ".lock"
_LONGEST_MARK = 60  # characters; file systems allow 255 for a name
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "chex", "orbax-checkpoint", "numpy")


class InUse(ValueError):
  """The folder is another process's or another run's; one sentence."""


def default_name(stem: str, overrides: Mapping[str, Any]) -> str:
  """A folder's name: the configuration file's, with a mark of the overrides.

  Variants do not collide; the data folder and the devices, no part of a run, do not count. A long
  mark becomes a short hash of itself.

  Args:
    stem: name of the configuration file.
    overrides: dotted field -> value.
  """
  no_part = ("data.data_dir", "mesh.", "distributed.")
  counted = {k: v for k, v in overrides.items() if not k.startswith(no_part)}
  mark = "".join(f",{k}={v}" for k, v in sorted(counted.items()))
  if len(mark) > _LONGEST_MARK:
    mark = f",{hashlib.sha256(mark.encode()).hexdigest()[:12]}"
  return stem + "".join(c if c.isalnum() or c in ",=._-" else "_" for c in mark)


def claim(path: pathlib.Path, config: ExperimentConfig) -> None:
  """Checks that `path` is free or holds this very run; writes nothing.

  Raises:
    ValueError: it belongs to another configuration, holds something else, or is no folder.
    OSError: it cannot be read or written.
  """
  if not path.exists():
    parent = next(p for p in path.absolute().parents if p.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
      raise ValueError(f"workdir {path} cannot be made: {parent} is not a writable folder")
    return
  if not path.is_dir():
    raise ValueError(f"workdir {path} is not a folder")
  if not os.access(path, os.W_OK):
    raise ValueError(f"workdir {path} is not writable")
  if not (path / "config.json").exists():
    own = (".unfinished-", _LOCK)  # what a run leaves that was killed while its folder was opened
    if any(p for p in path.iterdir() if not p.name.startswith(own)):
      raise ValueError(f"workdir {path} is not empty and holds no run of fflax: choose another one")
    return
  old = read_config(path)
  if config_lib.fingerprint(old) != config_lib.fingerprint(config):
    config = dataclasses.replace(config, mesh=old.mesh, distributed=old.distributed)
    changed = config_lib.differences(config_lib.as_dict(old), config_lib.as_dict(config))
    raise ValueError(
      f"workdir {path} belongs to a run with another configuration (it differs in "
      f"{', '.join(changed)}): choose another workdir"
    )


@contextlib.contextmanager
def held(path: pathlib.Path, config: ExperimentConfig) -> Iterator[None]:
  """Makes the folder and keeps other processes out of it; a process that dies lets go of it.

  Where the system or the file system has no locks, nothing is kept out.

  Raises:
    InUse: another process trains in it, or has made it another run's meanwhile.
    OSError: it cannot be written.
  """
  path.mkdir(parents=True, exist_ok=True)
  with (path / _LOCK).open("a") as file:
    try:
      if fcntl is not None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise InUse(
        f"workdir {path} is in use by another process: wait for its end or choose another workdir"
      ) from None
    except OSError:
      pass  # a file system without locks
    try:
      claim(path, config)
    except ValueError as error:
      raise InUse(str(error)) from None
    yield


def read_config(path: pathlib.Path) -> ExperimentConfig:
  """The configuration of the run in `path`, for one device in one process.

  Where it was trained is no part of it, and may have been told in words of another version.

  Raises:
    ValueError: there is none, or it is damaged.
  """
  file = path / "config.json"
  try:
    values = json.loads(file.read_text())
  except FileNotFoundError:
    raise ValueError(f"{path} holds no run of fflax: there is no config.json") from None
  except (UnicodeDecodeError, json.JSONDecodeError) as error:
    raise ValueError(f"{file} is damaged: {error}") from None
  if not isinstance(values, dict):
    raise ValueError(f"{file} is damaged: it is not a JSON object")
  values = {name: value for name, value in values.items() if name not in ("mesh", "distributed")}
  try:
    return config_lib.from_mapping(values)
  except (ValueError, TypeError) as error:
    raise ValueError(f"{file} does not describe a run: {error}") from None


def open_run(path: pathlib.Path, config: ExperimentConfig) -> None:
  """Makes the folder and writes who it belongs to; a resumed run keeps its first files.

  The configuration comes first: a folder that holds anything else alone is taken for a stranger's.
  It goes without the processes that train.
  """
  path.mkdir(parents=True, exist_ok=True)
  if not (path / "config.json").exists():
    anywhere = dataclasses.replace(config, distributed=DistributedConfig())
    write_json(path / "config.json", config_lib.as_dict(anywhere))
  if not (path / "versions.json").exists():
    write_json(path / "versions.json", {"fflax_commit": commit(), **versions()})


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON atomically, see `write_text`."""
  write_text(path, json.dumps(value, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
  """Writes a file atomically: it is whole or as it was, whoever else writes it."""
  unfinished = path.with_name(f".unfinished-{path.name}-{platform.node()}-{os.getpid()}")
  unfinished.write_text(text)
  unfinished.replace(path)


def versions() -> dict[str, str]:
  """Versions of what the numbers depend on."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {"python": platform.python_version(), **found}


def device() -> str:
  """The device that trains, in words."""
  first = jax.devices()[0]
  kind = first.device_kind if first.platform != "cpu" else f"{os.cpu_count()} CPU cores"
  return f"{first.platform}: {kind}"


@functools.cache
def commit() -> str:
  """The commit of the source tree, with "+changes" if it has uncommitted ones; "" outside git.

  Read once: a long run names the code it started with, whatever is committed meanwhile.
  """
  root = pathlib.Path(__file__).parent.parent

  def git(*args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""

  try:
    name = git("rev-parse", "--short", "HEAD")
    return name + ("+changes" if name and git("status", "--porcelain", "-uno") else "")
  except OSError:
    return ""
