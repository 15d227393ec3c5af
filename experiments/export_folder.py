"""The folder of an export: program, weights, loader, manifest and checksums, or nothing at all."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.export
import numpy as np

FORMAT = 1


def check_free(out: pathlib.Path) -> None:
  """Refuses a place where nothing can be written, or something would be overwritten.

  Raises:
    ValueError: one sentence.
  """
  if out.exists() or out.is_symlink():
    raise ValueError(f"--out={out} is there already: an export overwrites nothing")
  parent = next(p for p in out.absolute().parents if p.exists())
  if not parent.is_dir() or not os.access(parent, os.W_OK):
    raise ValueError(f"--out={out} cannot be made: {parent} is not a writable folder")


@contextlib.contextmanager
def finished_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to write into, which becomes `out` at the end; nothing is left of what went wrong."""
  unfinished = out.with_name(f".unfinished-{out.name}")
  shutil.rmtree(unfinished, ignore_errors=True)
  try:
    unfinished.mkdir(parents=True)
    yield unfinished
    unfinished.rename(out)
  finally:
    shutil.rmtree(unfinished, ignore_errors=True)


def write(path: pathlib.Path, data: bytes) -> dict[str, Any]:
  """Writes a file to the disk; what the manifest says of it."""
  with path.open("wb") as file:
    file.write(data)
    file.flush()
    os.fsync(file.fileno())
  return {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}


def write_export(
  folder: pathlib.Path, program: jax.export.Exported, weights: Mapping, about: Mapping[str, Any]
) -> dict[str, Any]:
  """Writes program, weights, loader, manifest and checksums; returns the manifest."""
  if any(array.dtype.hasobject or array.dtype.kind == "V" for array in weights.values()):
    raise ValueError("a weight has a dtype that .npz files cannot hold")
  np.savez(folder / "weights.npz", **weights)
  loader = pathlib.Path(__file__).with_name("load_exported.py")
  contents = {
    "program.stablehlo": program.mlir_module_serialized,
    "weights.npz": (folder / "weights.npz").read_bytes(),
    "load.py": loader.read_bytes(),
  }
  outputs = dict(zip(_output_names(program), program.out_avals, strict=True))
  files = {name: write(folder / name, data) for name, data in contents.items()}
  manifest = {
    "format": FORMAT,
    **about,
    "outputs": {
      name: {"shape": list(aval.shape[1:]), "dtype": str(aval.dtype)}
      for name, aval in outputs.items()
    },
    "platforms": list(program.platforms),
    "calling": {
      "calling_convention_version": program.calling_convention_version,
      "uses_global_constants": program.uses_global_constants,
    },
    "files": files,
    "bytes": sum(file["bytes"] for file in files.values()),
  }
  data = (json.dumps(manifest, indent=2) + "\n").encode()
  sums = {"manifest.json": write(folder / "manifest.json", data), **files}
  lines = [f"{file['sha256']}  {name}\n" for name, file in sums.items()]
  write(folder / "SHA256SUMS", "".join(lines).encode())
  return manifest


def _output_names(program: jax.export.Exported) -> list[str]:
  """In the order of `out_avals`."""
  return sorted(jax.tree.unflatten(program.out_tree, range(len(program.out_avals))))
