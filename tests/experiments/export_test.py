"""Exported runs: equal to the live ones, readable without fflax, refused when damaged."""

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import cli, config, export, export_folder, exporting, load_exported
from experiments.assembly import build
from fflax.data import sources
from fflax.data.dataset import Split
from fflax.training.weight_store import Int8Weight
from tests.methods.tiny import made_up_state

ROOT = pathlib.Path(__file__).parents[2]
# Without its packages' .pth files, so without an editable fflax; jax and numpy by their path alone.
ALONE = """
import runpy, sys
sys.path.append(sys.argv.pop(1))
try:
  import fflax
except ImportError:
  runpy.run_path(sys.argv.pop(1), run_name="__main__", init_globals=None)
"""


def small(preset: str, networks: dict, **changes):
  """A run of made-up weights on few digits, and its state at the end of its plan."""
  digits = sources.load("digits")
  train, test = (Split(*(a[:24] for a in split)) for split in (digits.train, digits.test))
  base = config.load_preset(preset)
  data = dataclasses.replace(base.data, batch_size=8)
  changes = {"networks": networks, "epochs": 1, "eval_batch_size": 16, "data": data, **changes}
  own = dataclasses.replace(base, **changes)
  validation = Split(*(a[24:40] for a in digits.train)) if data.validation else None
  experiment = build(own, digits._replace(train=train, test=test, validation=validation))
  state = made_up_state(experiment.trainer, experiment.example())
  state = dataclasses.replace(state, step=jnp.asarray(experiment.plan.num_steps, jnp.int32))
  return experiment, state


def answers(experiment, state, images):
  return jax.jit(experiment.trainer.answer)(state, experiment.preprocess(None, images))


@pytest.fixture(scope="module")
def ff(tmp_path_factory):
  """Exported with platforms of all kinds and a batch of any size."""
  experiment, state = small("ff_digits", {"mlp": {"sizes": (20, 20, 20)}})
  out = tmp_path_factory.mktemp("export") / "deeper" / "ff"
  return experiment, state, out, export.export(experiment, state, out, export.Options())


def test_an_exported_ff_run_answers_as_the_live_one(ff):
  experiment, state, out, done = ff
  assert sorted(p.name for p in out.iterdir()) == [
    "SHA256SUMS", "load.py", "manifest.json", "program.stablehlo", "weights.npz",
  ]  # fmt: skip
  assert [p.name for p in out.parent.iterdir()] == ["ff"]  # nothing unfinished is left
  assert done.equal.labels == 1 and done.equal.difference < 1e-4
  predict, about = load_exported.load(out)
  images = experiment.dataset.test.image[:5]  # another batch than any before
  assert images.dtype == np.uint8
  found, want = predict(images), answers(experiment, state, images)
  for name, scores in want.readouts.items():
    np.testing.assert_allclose(found[f"scores/{name}"], scores, rtol=1e-5, atol=1e-5)
  for name, scores in zip(experiment.trainer.layer_names, want.layers, strict=True):
    np.testing.assert_allclose(found[f"layers/{name}"], scores, rtol=1e-5, atol=1e-5)
  # Preset ff_digits sums from the second layer on, so answers are clear after two or three.
  depth, sums = found["exit/depth"], np.cumsum(np.stack(want.layers[1:]), axis=0)
  assert set(depth) <= {2, 3} and depth.dtype == np.int32
  np.testing.assert_array_equal(found["exit/class"], sums[depth - 2, np.arange(5)].argmax(-1))
  assert about == done.manifest
  assert about["platforms"] == ["cpu", "cuda", "tpu"] and about["batch_size"] is None
  assert about["readouts"] == ["score_sum", "softmax_head"]
  assert about["outputs"]["layers/dense_1"] == {"shape": [10], "dtype": "float32"}
  assert config.from_mapping(about["config"]) == experiment.config
  for name, file in about["files"].items():
    assert file["bytes"] == (out / name).stat().st_size
  label = experiment.dataset.test.label
  live = answers(experiment, state, experiment.dataset.test.image)
  right = np.mean(np.argmax(live.readouts["score_sum"], -1) == label)
  assert about["test_accuracy"]["scores/score_sum"] == pytest.approx(right)
  # Weights are arguments, and what no answer reads is none: optimiser states, means of training.
  weights = np.load(out / "weights.npz")
  assert sum(a.size for a in weights.values()) == sum(
    p.size for p in jax.tree.leaves([[s.params for s in state.layers], state.readouts[1].params])
  )


def test_the_loader_needs_jax_and_numpy_alone(ff, tmp_path):
  experiment, state, out, _ = ff
  assert len((out / "load.py").read_text().splitlines()) < 40
  image = experiment.dataset.test.image[3]
  np.save(tmp_path / "image.npy", image)
  packages = pathlib.Path(np.__file__).parents[1]
  args = [sys.executable, "-I", "-S", "-c", ALONE]
  args += [str(packages), str(out / "load.py"), str(tmp_path / "image.npy")]
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(args, env=env, capture_output=True, text=True, timeout=300, check=False)
  assert done.returncode == 0, done.stderr
  best = int(np.argmax(answers(experiment, state, image[None]).readouts["score_sum"]))
  assert done.stdout.startswith(f"image 0: class {best} exit/depth ")


@pytest.mark.parametrize("name", ["weights.npz", "manifest.json", "program.stablehlo"])
@pytest.mark.parametrize("how", ["flipped", "cut"])
def test_a_damaged_export_is_refused_in_one_sentence(ff, tmp_path, name, how):
  out = tmp_path / "copy"
  shutil.copytree(ff[2], out)
  data = bytearray((out / name).read_bytes())
  data[len(data) // 2] ^= 1
  (out / name).write_bytes(data if how == "flipped" else data[: len(data) // 2])
  with pytest.raises(ValueError, match=rf"^\S+/{name} is damaged: it is not what was exported$"):
    load_exported.load(out)


def test_int8_kernels_agree_within_half_a_scale(tmp_path):
  """Hyperspherical; a batch of one size, one platform."""
  experiment, state = small("hff_digits", {"mlp": {"sizes": (16, 12)}})
  options = export.Options(weights="int8", platforms=("cpu",), batch_size=6)
  done = export.export(experiment, state, tmp_path / "hff", options)
  assert done.equal.labels == 1 and done.equal.difference < 1e-4
  assert done.manifest["images"] == "6, 8, 8, 1" and done.manifest["weights"] == "int8"
  kernel = np.asarray(state.layers[0].params["layer"]["dense"]["kernel"])
  stored = np.load(tmp_path / "hff" / "weights.npz")
  path = "layers.0.params.layer.dense.kernel"
  values, scale = stored[f"{path}.values"], stored[f"{path}.scale"]
  assert values.dtype == np.int8 and scale.shape == (1, 16)
  assert np.all(np.abs(values).max(axis=0) == 127)  # no room for growth is left
  assert np.all(np.abs(values * scale - kernel) <= scale / 2 * 1.0001)
  # Cosines of features that moved by so little: 64 and 16 inputs, an eighth of a percent each.
  assert 0 < done.as_trained.difference < 0.2
  images = experiment.dataset.test.image[:6]
  moved = exporting.usable_state(experiment, exporting.exported_state(experiment, state, "int8"))
  want = answers(experiment, moved, images).readouts["score_sum"]
  np.testing.assert_allclose(done.predict(images)["scores/score_sum"], want, atol=1e-5)
  with pytest.raises(ValueError, match="mismatch"):
    done.predict(images[:5])
  # What a run keeps in int8 is exported as it is, not rounded anew.
  experiment, state = small("hff_digits", {"mlp": {"sizes": (16,)}}, weight_store="int8")
  own = state.layers[0].params["layer"]["dense"]["kernel"]
  kept = exporting.exported_state(experiment, state, "int8").layers[0].params["layer"]["dense"]
  assert isinstance(own, Int8Weight)
  np.testing.assert_array_equal(kept["kernel"].scale, own.scale)
  floats = exporting.exported_state(experiment, state, "float32").layers[0].params["layer"]["dense"]
  assert floats["kernel"].dtype == jnp.float32


def test_an_exported_cnn_with_batch_norm_answers_as_the_live_one(tmp_path):
  networks = {"small_cnn": {"channels": (4, 5), "pool_after": (1,), "batch_norm": True}}
  experiment, state = small("hff_cnn_digits", networks, readouts=("last_layer",))
  assert set(state.layers[0].stats["layer"]["norm"]) == {"mean", "var"}
  options = export.Options(platforms=("cpu",))
  done = export.export(experiment, state, tmp_path / "cnn", options)
  assert done.equal.labels == 1 and done.equal.difference < 1e-4
  images = experiment.dataset.test.image[:7]
  want = answers(experiment, state, images)
  found = done.predict(images)
  np.testing.assert_allclose(found["scores/last_layer"], want.readouts["last_layer"], atol=1e-5)
  np.testing.assert_array_equal(found["scores/last_layer"], found["layers/conv_2"])


def test_other_answers_than_the_run_s_are_not_written(ff, tmp_path, monkeypatch):
  experiment, state, _, _ = ff
  load = load_exported.load

  def one_wrong(folder):
    """The program, but for one class of one image."""
    predict, about = load(folder)
    best = np.argmax(live, axis=-1)

    def wrong(images):
      found = dict(predict(images))
      if np.array_equal(images, experiment.dataset.test.image[:16]):
        found["scores/softmax_head"] = found["scores/softmax_head"].copy()
        found["scores/softmax_head"][3, (best[3] + 1) % 10] = 1e6
      return found

    return wrong, about

  live = answers(experiment, state, experiment.dataset.test.image).readouts["softmax_head"]
  monkeypatch.setattr(load_exported, "load", one_wrong)
  with pytest.raises(cli.Stopped, match=r"another class than the run to 4\.17 % of the test"):
    export.export(experiment, state, tmp_path / "wrong", export.Options(platforms=("cpu",)))
  assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused(ff, tmp_path):
  experiment, state, out, _ = ff
  with pytest.raises(ValueError, match="is there already: an export overwrites nothing"):
    export_folder.check_free(out)
  (tmp_path / "file").write_text("")
  with pytest.raises(ValueError, match="file is not a writable folder"):
    export_folder.check_free(tmp_path / "file" / "out")
  early = dataclasses.replace(state, step=state.step - 1)
  with pytest.raises(ValueError, match="is not finished: its newest checkpoint is of step 2 of 3"):
    export.check(experiment, early, tmp_path)
  with pytest.raises(ValueError, match="--platforms names 'abacus'; there are cpu, cuda, tpu"):
    export.check_platforms(["cpu", "abacus"])
  with pytest.raises(ValueError, match="--platforms needs this machine's own, 'cpu'"):
    export.check_platforms(["tpu"])


def test_nothing_is_left_of_what_went_wrong(tmp_path):
  def half() -> None:
    with export_folder.finished_folder(tmp_path / "out") as folder:
      (folder / "half").write_text("")
      raise OSError("the disk is full")

  with pytest.raises(OSError, match="full"):
    half()
  assert not list(tmp_path.iterdir())


def test_a_program_says_for_which_platform_or_batch_it_cannot_be_lowered():
  image = jax.ShapeDtypeStruct((2, 2), np.float32)
  weights = {"w": np.ones((2, 2), np.float32), "unused": np.ones(3, np.float32)}

  def only_cpu(weights, image):
    return {"x": jnp.abs(jnp.linalg.eig(weights["w"] + image)[0])}

  with pytest.raises(
    ValueError, match=r"lowered for tpu \(.+\): leave that out with --platforms=cpu"
  ):
    exporting.lowered(only_cpu, weights, image, ("cpu", "tpu"))
  found, read = exporting.lowered(only_cpu, weights, image, ("cpu",))
  assert found.platforms == ("cpu",) and list(read) == ["w"] and len(found.in_avals) == 2
  (size,) = jax.export.symbolic_shape("b")
  with pytest.raises(ValueError, match=r"batches of any size \(.+\): fix it with --batch_size"):
    exporting.lowered(
      lambda w, x: {"x": jnp.zeros(len(x))},
      weights,
      jax.ShapeDtypeStruct((size, 2), "f4"),
      ("cpu",),
    )


def test_latency_reads_no_more_images_than_a_call_needs():
  """The test split may be larger than memory."""
  read = []

  class Images:
    shape = (3, 2, 2, 1)

    def __len__(self):
      return 3

    def __getitem__(self, rows):
      read.append(rows.tolist())
      return np.zeros((len(rows), 2, 2, 1), np.uint8)

  file = {"bytes": 1}
  manifest = {
    "files": {"program.stablehlo": file, "weights.npz": file},
    "test_accuracy": {},
    "batch_size": 5,
    "platforms": ["cpu"],
    "weights": "float32",
  }
  same = export.Agreement(0.0, 1.0)
  experiment = SimpleNamespace(dataset=SimpleNamespace(test=SimpleNamespace(image=Images())))
  export.show(export.Done(manifest, lambda images: {}, same, same), experiment, pathlib.Path("x"))
  assert read == [[0, 1, 2, 0, 1]]
