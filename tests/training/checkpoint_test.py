"""Checkpoints: every bit comes back, or the checkpoint is refused and nothing is touched."""

import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.training import checkpoint
from fflax.training.checkpoint import CheckpointError
from fflax.types import LayerState, ReadoutState, TrainState


def make_state(seed: int = 0, width: int = 5) -> TrainState:
  """A state with every kind of leaf and of empty container."""
  key = jax.random.key(seed)
  params = {
    "layer": {
      "kernel": jax.random.normal(key, (3, width)),
      "half": jnp.arange(4, dtype=jnp.bfloat16) / 3,
      "int8": jnp.arange(-3, 3, dtype=jnp.int8),
    },
    "method": {},
  }
  stats = {"flag": jnp.array([True, False]), "nothing": jnp.zeros((0, 3)), "keys": key}
  layer = LayerState(params, (jnp.zeros((), jnp.int32), ()), stats)
  readout = ReadoutState({"nan": jnp.array([jnp.nan, -0.0, jnp.inf])}, ())
  return TrainState(jnp.asarray(seed, jnp.int32), key, (layer,), (readout,))


def bits(tree) -> list[tuple]:
  """Dtype, shape and bytes of every leaf: equal means bit-identical, NaN and -0.0 included."""
  found = []
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    data = np.asarray(jax.random.key_data(x) if is_key else x)
    found.append((jax.tree_util.keystr(path), str(x.dtype), x.shape, data.tobytes()))
  return found


def snapshot(directory: pathlib.Path) -> dict[str, bytes]:
  return {
    str(p.relative_to(directory)): p.read_bytes() if p.is_file() else b""
    for p in directory.rglob("*")
  }


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> pathlib.Path:
  """A directory with the checkpoints of steps 1 and 2."""
  directory = tmp_path_factory.mktemp("saved")
  for step in (1, 2):
    checkpoint.save(directory, step, make_state(step), fingerprint="run")
  return directory


@pytest.mark.parametrize("abstract", [False, True])
def test_round_trip(saved, abstract):
  """A leaf that comes back in another dtype, or a NaN as zero, would break resuming silently."""
  like = jax.eval_shape(make_state) if abstract else make_state()
  restored = checkpoint.restore(saved, like, fingerprint="run")
  assert bits(restored) == bits(make_state(2))
  assert jax.tree.structure(restored) == jax.tree.structure(like)
  assert not any(getattr(x, "weak_type", False) for x in jax.tree.leaves(restored))
  older = checkpoint.restore(saved, like, step=1)
  assert bits(older) == bits(make_state(1))


def test_key_of_another_generator(tmp_path):
  """Key data are bare words: restored under another generator they would draw other numbers."""
  state = {"key": jax.random.key(3, impl="rbg")}
  checkpoint.save(tmp_path, 0, state)
  assert bits(checkpoint.restore(tmp_path, state)) == bits(state)
  with pytest.raises(CheckpointError, match="its array key is key<rbg>"):
    checkpoint.restore(tmp_path, {"key": jax.random.key(3)})


def test_state_without_bytes(tmp_path):
  state = {"nothing": jnp.zeros((2, 0)), "empty": {}}
  checkpoint.save(tmp_path, 0, state)
  assert bits(checkpoint.restore(tmp_path, state)) == bits(state)


def test_restored_arrays_may_be_donated(saved):
  """An alias of host memory would be overwritten by the first donated step."""
  like = make_state()
  first = checkpoint.restore(saved, like)
  step = jax.jit(lambda s: jax.tree.map(lambda x: x, s), donate_argnums=0)
  step(first)
  assert first.layers[0].params["layer"]["kernel"].is_deleted()
  assert bits(checkpoint.restore(saved, like)) == bits(make_state(2))


def test_keeps_the_newest(tmp_path):
  for step in (3, 20, 100):
    checkpoint.save(tmp_path, step, {"x": jnp.asarray(step)}, keep=2)
  assert checkpoint.steps(tmp_path) == (20, 100)
  assert checkpoint.latest_step(tmp_path) == 100
  assert {p.name for p in tmp_path.iterdir()} == {"00000020", "00000100"}


def test_nothing_there(tmp_path, saved):
  assert checkpoint.steps(tmp_path / "missing") == ()
  assert checkpoint.latest_step(tmp_path) is None
  with pytest.raises(CheckpointError, match=f"no checkpoint in {tmp_path}"):
    checkpoint.restore(tmp_path, make_state())
  with pytest.raises(CheckpointError, match="no checkpoint of step 7"):
    checkpoint.restore(saved, make_state(), step=7)


def test_bad_arguments(tmp_path):
  with pytest.raises(ValueError, match="step >= 0 and keep >= 1, not 1 and 0"):
    checkpoint.save(tmp_path, 1, {"x": jnp.ones(1)}, keep=0)
  with pytest.raises(ValueError, match="the same path"):
    checkpoint.save(tmp_path, 1, {"a.b": jnp.ones(1), "a": {"b": jnp.ones(1)}})


def test_never_overwrites(saved):
  before = snapshot(saved)
  with pytest.raises(CheckpointError, match="exists already"):
    checkpoint.save(saved, 2, make_state(5))
  assert snapshot(saved) == before


def damage_cases() -> list[str]:
  return ["truncate", "flip first bit", "flip last bit", "grow", "delete"]


def damage(file: pathlib.Path, how: str) -> bool:
  """Damages a file; False where that is impossible."""
  content = bytearray(file.read_bytes())
  if how == "grow":
    content += b"\0"
  elif how == "delete":
    file.unlink()
    return True
  elif not content:
    return False
  elif how == "truncate":
    del content[len(content) // 2 :]
  elif how == "flip first bit":
    content[0] ^= 128
  else:
    content[-1] ^= 1
  file.write_bytes(content)
  return True


@pytest.mark.parametrize("how", damage_cases())
def test_damage_of_any_file_is_refused(saved, tmp_path, how):
  """orbax alone would load some of these without a word; a wrong weight is worse than a stop."""
  names = [p.relative_to(saved) for p in sorted((saved / "00000002").rglob("*")) if p.is_file()]
  assert len(names) > 5
  for number, name in enumerate(names):
    directory = tmp_path / str(number)
    shutil.copytree(saved, directory)
    if not damage(directory / name, how):
      continue
    if name.name == "manifest.json" and how in ("flip last bit", "grow"):
      continue  # white space after the JSON: see test_manifest_flips
    before = snapshot(directory)
    with pytest.raises(CheckpointError) as error:
      checkpoint.restore(directory, make_state())
    assert str(directory / "00000002") in str(error.value), name
    assert "step 1 is there too" in str(error.value), "says what the user can go back to"
    assert "\n" not in str(error.value)
    assert snapshot(directory) == before, "a refusal changed files"


def test_manifest_flips(saved, tmp_path):
  """A flipped bit anywhere in the manifest is refused, or harmless because it changes nothing."""
  directory = tmp_path / "copy"
  shutil.copytree(saved, directory)
  file = directory / "00000002" / "manifest.json"
  content = file.read_bytes()
  refused = 0
  positions = list(range(0, len(content), max(1, len(content) // 60))) + [len(content) - 1]
  for position in positions:
    flipped = bytearray(content)
    flipped[position] ^= 1 << (position % 8)
    file.write_bytes(flipped)
    try:
      assert bits(checkpoint.restore(directory, make_state())) == bits(make_state(2))
    except CheckpointError:
      refused += 1
  assert refused > 0.8 * len(positions)


def rewrite_manifest(folder: pathlib.Path, **changes) -> None:
  """A manifest that is consistent in itself, as another version might write it."""
  file = folder / "manifest.json"
  body = json.loads(file.read_text())["body"] | changes
  file.write_text(json.dumps({"body": body, "sha256": checkpoint._body_digest(body)}))


@pytest.mark.parametrize("changes", [{"format": 99}, {"step": 3}])
def test_another_version_or_step_is_refused(saved, tmp_path, changes):
  directory = tmp_path / "copy"
  shutil.copytree(saved, directory)
  rewrite_manifest(directory / "00000002", **changes)
  with pytest.raises(CheckpointError, match=r"this version reads step 2, format 1"):
    checkpoint.restore(directory, make_state())


def test_what_orbax_cannot_read_is_refused(saved, tmp_path):
  directory = tmp_path / "copy"
  shutil.copytree(saved, directory)
  shutil.rmtree(directory / "00000002" / "state")
  stray = directory / "00000002" / "stray"
  stray.write_text("x")
  rewrite_manifest(stray.parent, files={"stray": checkpoint._digest(stray)})
  with pytest.raises(CheckpointError, match="cannot be read"):
    checkpoint.restore(directory, make_state())


@pytest.mark.parametrize(
  ("like", "reason"),
  [
    (lambda: make_state(width=6), r"kernel is float32\[3, 5\], where this one has float32\[3, 6\]"),
    (
      lambda: jax.tree.map(
        lambda x: x.astype(jnp.float16) if x.dtype == jnp.bfloat16 else x, make_state()
      ),
      "half is bfloat16",
    ),
    (lambda: make_state().layers, "it has no array 0.params"),
    (
      lambda: TrainState(make_state().step, make_state().key, make_state().layers, ()),
      "readouts.0.params.nan is unknown to this one",
    ),
  ],
  ids=["shape", "dtype", "tree", "fewer arrays"],
)
def test_foreign_state_is_refused(saved, like, reason):
  before = snapshot(saved)
  with pytest.raises(CheckpointError, match=reason) as error:
    checkpoint.restore(saved, like())
  assert str(saved / "00000002") in str(error.value)
  assert snapshot(saved) == before


def test_foreign_fingerprint_is_refused(saved):
  """Equal shapes do not make it the same run: another learning rate would go unnoticed."""
  with pytest.raises(CheckpointError, match="another configuration"):
    checkpoint.restore(saved, make_state(), fingerprint="another run")


def kill(_) -> None:
  raise KeyboardInterrupt


def test_half_written_is_ignored_and_cleaned_up(tmp_path, monkeypatch):
  """What a kill leaves behind must neither count as a checkpoint nor pile up."""
  state = {"x": jnp.arange(3)}
  checkpoint.save(tmp_path, 1, state)
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "_sync", kill)
    with pytest.raises(KeyboardInterrupt):
      checkpoint.save(tmp_path, 2, state)
  assert len(list(tmp_path.iterdir())) == 2, "the cut save left something"
  assert checkpoint.steps(tmp_path) == (1,)
  assert bits(checkpoint.restore(tmp_path, state)) == bits(state)
  checkpoint.save(tmp_path, 2, state)
  assert {p.name for p in tmp_path.iterdir()} == {"00000001", "00000002"}


def test_cut_removal_leaves_no_half_checkpoint(tmp_path, monkeypatch):
  """Were a folder emptied under its own name, a kill would make a damaged checkpoint."""
  state = {"x": jnp.arange(3)}
  checkpoint.save(tmp_path, 1, state, keep=1)
  with monkeypatch.context() as patch:
    patch.setattr(shutil, "rmtree", kill)
    with pytest.raises(KeyboardInterrupt):
      checkpoint.save(tmp_path, 2, state, keep=1)
  assert checkpoint.steps(tmp_path) == (2,)
  checkpoint.save(tmp_path, 3, state, keep=1)
  assert {p.name for p in tmp_path.iterdir()} == {"00000003"}
