"""An exported run of fflax with jax and numpy alone: `python load.py images.npy` in its folder."""

import dataclasses
import hashlib
import json
import pathlib
import sys

import jax.export
import numpy as np


def load(folder):
  """`predict`, from images [N, ...] as the data set has them to arrays by name; the manifest."""
  sums = dict(line.split()[::-1] for line in (folder / "SHA256SUMS").read_text().splitlines())
  for file in ("manifest.json", "program.stablehlo", "weights.npz"):
    if hashlib.sha256((folder / file).read_bytes()).hexdigest() != sums.get(file):
      raise ValueError(f"{folder / file} is damaged: it is not what was exported")
  about = json.loads((folder / "manifest.json").read_text())
  weights = jax.device_put(dict(np.load(folder / "weights.npz")))
  image = jax.ShapeDtypeStruct(jax.export.symbolic_shape(about["images"]), about["dtype"])
  # The program goes into a shell of its signature: jax reads whole files with flatbuffers only.
  zeros = lambda x, o: jax.numpy.zeros((x.shape[0], *o["shape"]), o["dtype"])  # noqa: E731
  shell = jax.jit(lambda _, x: {name: zeros(x, o) for name, o in about["outputs"].items()})
  outer = jax.export.export(shell, platforms=about["platforms"])(weights, image)
  own = {"mlir_module_serialized": (folder / "program.stablehlo").read_bytes()}
  own |= {"module_kept_var_idx": (*range(len(weights) + 1),), **about["calling"]}
  call = jax.jit(dataclasses.replace(outer, **own).call)
  return lambda images: jax.device_get(call(weights, images)), about


if __name__ == "__main__":
  try:
    predict, about = load(pathlib.Path(__file__).parent)
    found = predict(np.load(sys.argv[1]).reshape(-1, *about["image"]))
  except (OSError, ValueError, EOFError, IndexError) as error:
    sys.exit(f"python load.py images.npy: {error}")
  for i, scores in enumerate(found["scores/" + about["readouts"][0]]):
    print(f"image {i}: class {scores.argmax()}", *(f"{n} {found[n][i]}" for n in about["exit"]))
