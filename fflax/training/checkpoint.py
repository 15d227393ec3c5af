"""Checkpoints of a run's state: atomic, verified, and refused with one sentence when they are bad.

orbax-checkpoint (v1 interface) writes the arrays; this module, the only one that knows orbax, adds
what a run needs beside it. A checkpoint is a folder `<step>/` that holds orbax's folder `state/`
and a `manifest.json` with the run's fingerprint, the name, shape and dtype of every array, and the
SHA-256 of every file. The folder gets its name by one rename when it is complete and on disk, so a
kill leaves the checkpoint or nothing; one changed bit in any file is noticed before orbax reads it.

Several processes (`jax.distributed`) write and read one checkpoint together, in a folder that all
of them see: each lets orbax write its part of the arrays, the first one does the rest.
"""

import hashlib
import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fflax.training import processes
from fflax.training.sharding import put
from fflax.types import PyTree

try:
  from orbax.checkpoint import v1 as ocp
except ImportError:  # pragma: no cover, releases that have it under its first name only
  from orbax.checkpoint.experimental import v1 as ocp

_FORMAT = 1
_LEFTOVER = ".unfinished-"


class CheckpointError(RuntimeError):
  """A checkpoint is damaged, or belongs to another run; the sentence names its folder."""


def steps(directory: str | os.PathLike) -> tuple[int, ...]:
  """The steps that have a checkpoint in `directory`, ascending; half-written ones do not count."""
  directory = Path(directory)
  if not directory.is_dir():
    return ()
  names = (p.name for p in directory.iterdir() if p.is_dir())
  return tuple(sorted(int(n) for n in names if n.isascii() and n.isdigit() and n == _name(int(n))))


def latest_step(directory: str | os.PathLike) -> int | None:
  """The newest step that has a checkpoint in `directory`, damaged or not, or None."""
  return max(steps(directory), default=None)


def path(directory: str | os.PathLike, step: int) -> Path:
  """The folder of the checkpoint of `step`."""
  return Path(directory) / _name(step)


def save(
  directory: str | os.PathLike, step: int, state: PyTree, *, fingerprint: str = "", keep: int = 2
) -> Path:
  """Saves `state` as the checkpoint of `step` and removes all but the newest `keep` checkpoints.

  Args:
    directory: made if it is missing; what a killed save left there is removed.
    step: number of steps that `state` has taken.
    state: pytree of arrays of any dtype, typed keys included; the same in all processes.
    fingerprint: identifies the run (its configuration); `restore` compares it.
    keep: how many checkpoints stay.

  Returns:
    The checkpoint's folder.

  Raises:
    ValueError: `step` is negative or `keep` is not positive.
    CheckpointError: `step` has a checkpoint already (it stays as it is).
    OSError: the disk is full, or cannot be written; the checkpoints that were there stay.
  """
  if step < 0 or keep < 1:
    raise ValueError(f"a checkpoint needs step >= 0 and keep >= 1, not {step} and {keep}")
  directory = Path(directory).absolute()  # orbax asks for absolute paths
  target = path(directory, step)
  if target.exists():
    raise CheckpointError(f"{target} exists already and is not overwritten")
  unfinished = directory / f"{_LEFTOVER}{target.name}"
  if processes.is_first():
    directory.mkdir(parents=True, exist_ok=True)
    for leftover in directory.glob(f"{_LEFTOVER}*"):
      shutil.rmtree(leftover)
    unfinished.mkdir()
  processes.wait_for_all(f"checkpoint {step} begins")
  # Arrays without elements have no bytes, and orbax refuses them; the manifest still names them.
  arrays = {name: _to_numpy(leaf) for name, leaf in _named_leaves(state).items() if leaf.size}
  if arrays:
    _write(unfinished / "state", arrays)
  if processes.is_first():
    _complete(unfinished, target, step, state, fingerprint)
    _remove_old(directory, keep)
  processes.wait_for_all(f"checkpoint {step} is whole")
  return target


def _complete(unfinished: Path, target: Path, step: int, state: PyTree, fingerprint: str) -> None:
  """Adds the manifest and gives the folder its name."""
  body = {
    "format": _FORMAT,
    "step": step,
    "fingerprint": fingerprint,
    "leaves": _describe(state),
    "files": {name: _digest(unfinished / name) for name in _files(unfinished)},
  }
  (unfinished / "manifest.json").write_text(
    json.dumps({"body": body, "sha256": _body_digest(body)}) + "\n"
  )
  _sync(unfinished)
  unfinished.rename(target)
  _sync_one(target.parent)


def _remove_old(directory: Path, keep: int) -> None:
  for old in steps(directory)[:-keep]:
    # Renamed first, so that a kill in the middle does not leave half a checkpoint under its name.
    doomed = directory / f"{_LEFTOVER}old-{old}"
    path(directory, old).rename(doomed)
    shutil.rmtree(doomed)


def restore(
  directory: str | os.PathLike,
  like: PyTree,
  *,
  step: int | None = None,
  fingerprint: str | None = None,
) -> Any:
  """Returns the state of a checkpoint; reads only, so that whatever it refuses stays as it was.

  Args:
    directory: as given to `save`.
    like: the state's structure: arrays, or `jax.ShapeDtypeStruct`s as `jax.eval_shape` makes them;
      where a leaf has a sharding, the restored array gets it.
    step: which checkpoint; the newest if None. A damaged newest one is an error, never a reason to
      take an older one silently.
    fingerprint: what the checkpoint must have been saved with; None accepts any.

  Raises:
    CheckpointError: there is no such checkpoint, or it is damaged or foreign.
  """
  directory = Path(directory).absolute()
  there = steps(directory)
  if not there or (step is not None and step not in there):
    which = "no checkpoint" if step is None else f"no checkpoint of step {step}"
    raise CheckpointError(f"there is {which} in {directory}")
  step = there[-1] if step is None else step
  folder = path(directory, step)
  older = [s for s in there if s < step]
  hint = f"; the checkpoint of step {older[-1]} is there too" if older else ""

  body = _read_manifest(folder, hint)
  expected = json.loads(json.dumps(_describe(like)))
  if fingerprint is not None and body["fingerprint"] != fingerprint:
    raise CheckpointError(f"the checkpoint {folder} belongs to a run with another configuration")
  if body["leaves"] != expected:
    raise CheckpointError(
      f"the checkpoint {folder} belongs to another run: {_difference(body['leaves'], expected)}"
    )
  for name, digest in body["files"].items():
    file = folder / name
    if not file.is_file():
      raise CheckpointError(f"the checkpoint {folder} is damaged: {name} is missing{hint}")
    if _digest(file) != digest:
      raise CheckpointError(
        f"the checkpoint {folder} is damaged: {name} is not what was written{hint}"
      )
  try:
    # Asked for as host arrays, for the devices of whoever saved it need not be here.
    host = {n: _empty(leaf) for n, leaf in _named_leaves(like).items() if leaf.size}
    arrays = ocp.load(folder / "state", host) if host else {}
  except Exception as error:  # orbax raises a dozen types
    raise CheckpointError(f"the checkpoint {folder} cannot be read: {error}{hint}") from error
  leaves = [
    _from_numpy(arrays[name] if leaf.size else None, leaf)
    for name, leaf in _named_leaves(like).items()
  ]
  return jax.tree.unflatten(jax.tree.structure(like), leaves)


# --- arrays ---------------------------------------------------------------------------------------


def _write(folder: Path, arrays: dict[str, np.ndarray]) -> None:
  """Lets orbax write; of a full disk it raises ValueErrors, and its threads log tracebacks."""
  quiet = lambda record: record.levelno < logging.ERROR  # noqa: E731
  log = logging.getLogger("absl")
  log.addFilter(quiet)
  try:
    ocp.save(folder, arrays if jax.process_count() == 1 else processes.spread(arrays))
  except Exception as error:
    number = re.search(r"os_error_code='(\d+)'", str(error))
    if number is None:
      raise
    raise OSError(int(number[1]), os.strerror(int(number[1])), str(folder)) from error
  finally:
    log.removeFilter(quiet)


def _name(step: int) -> str:
  return f"{step:08d}"


def _is_key(leaf: Any) -> bool:
  return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _named_leaves(tree: PyTree) -> dict[str, Any]:
  """Leaves by their path, in the tree's order."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  named = {jax.tree_util.keystr(p, simple=True, separator="."): leaf for p, leaf in leaves}
  if len(named) != len(leaves):
    raise ValueError("two arrays of the state have the same path: keys must not contain '.'")
  return named


def _describe(tree: PyTree) -> dict[str, list]:
  return {name: [list(x.shape), str(x.dtype)] for name, x in _named_leaves(tree).items()}


def _to_numpy(leaf: Any) -> np.ndarray:
  return np.asarray(jax.random.key_data(leaf) if _is_key(leaf) else leaf)


def _empty(leaf: Any) -> np.ndarray:
  """What `_to_numpy` gives, without a value; `leaf` may be abstract."""
  data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
  return np.empty(data.shape, data.dtype)


def _from_numpy(array: np.ndarray | None, like: Any) -> jax.Array:
  """An array of its own on the device (never an alias of host memory: it may be donated)."""
  if _is_key(like):
    impl = jax.random.key_impl(jnp.empty((), like.dtype))  # `like` may be abstract
    restored = jax.random.wrap_key_data(jnp.array(array), impl=impl)
  else:
    restored = jnp.array(np.zeros(like.shape, like.dtype) if array is None else array)
  sharding = getattr(like, "sharding", None)
  return restored if sharding is None else put(restored, sharding)


def _difference(found: dict, expected: dict) -> str:
  """The first difference of two descriptions that are not equal, in words."""
  every = [*expected, *found]
  name = next(n for n in every if found.get(n) != expected.get(n))
  if name not in found:
    return f"it has no array {name}"
  if name not in expected:
    return f"its array {name} is unknown to this one"
  (shape, dtype), (own_shape, own_dtype) = found[name], expected[name]
  return f"its array {name} is {dtype}{shape}, where this one has {own_dtype}{own_shape}"


# --- files ----------------------------------------------------------------------------------------


def _read_manifest(folder: Path, hint: str) -> dict:
  try:
    manifest = json.loads((folder / "manifest.json").read_bytes())
    body, digest = manifest["body"], manifest["sha256"]
    intact = digest == _body_digest(body)
  except FileNotFoundError:
    raise CheckpointError(f"the checkpoint {folder} has no manifest.json{hint}") from None
  except (OSError, ValueError, KeyError, TypeError):
    intact = False
  if not intact:
    raise CheckpointError(f"the checkpoint {folder} is damaged: manifest.json is broken{hint}")
  if body["format"] != _FORMAT or body["step"] != int(folder.name):
    raise CheckpointError(
      f"the checkpoint {folder} says step {body['step']}, format {body['format']}; this version "
      f"reads step {int(folder.name)}, format {_FORMAT} there{hint}"
    )
  return body


def _body_digest(body: dict) -> str:
  return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _digest(file: Path) -> str:
  with file.open("rb") as f:
    return hashlib.file_digest(f, "sha256").hexdigest()


def _files(folder: Path) -> list[str]:
  return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def _sync(folder: Path) -> None:
  """Waits until the folder's content is on disk, so that the rename never overtakes it."""
  for p in [*folder.rglob("*"), folder]:
    _sync_one(p)


def _sync_one(p: Path) -> None:
  descriptor = os.open(p, os.O_RDONLY)
  try:
    os.fsync(descriptor)
  finally:
    os.close(descriptor)
