"""Records stand for arrays, in the order asked; whatever is damaged is one sentence."""

import json
import pathlib
import shutil
import sys
import tracemalloc

import numpy as np
import pytest

from fflax.data import array_record_source, normalize, record_stream, sources
from fflax.data.array_record_source import Records
from fflax.data.array_record_writer import write
from fflax.data.dataset import DataError, Split
from fflax.data.stream import batch_indices

SHAPE, CLASSES = (40, 30, 3), 4


def examples(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (count, *SHAPE), np.uint8), np.arange(count) % CLASSES


PARTS = {"train": examples(23, 0), "test": examples(5, 1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
  path = tmp_path_factory.mktemp("records") / "toy.array_record"
  write(path, PARTS, num_classes=CLASSES, max_value=200)
  return path


def test_stands_for_the_arrays_that_were_written(folder):
  got = sources.load(str(folder))
  assert (got.name, got.num_classes, got.max_value) == ("toy", CLASSES, 200)
  for part, (image, label) in PARTS.items():
    split = getattr(got, part)
    assert isinstance(split.image, Records) and array_record_source.is_streamed(split)
    assert split.image.shape == image.shape and split.image.dtype == image.dtype
    assert (len(split.image), split.image.size) == (len(image), image.size)
    np.testing.assert_array_equal(split.label, label)
    np.testing.assert_array_equal(np.asarray(split.image), image)
  image = PARTS["train"][0]
  mask = np.arange(23) % 3 == 1
  for index in (3, -1, slice(2, 9, 3), slice(0, 0), [7, 0, 7], np.array([[1, 2], [4, 3]]), mask):
    np.testing.assert_array_equal(got.train.image[index], image[index])


def test_parts_of_a_split_are_chosen_as_in_memory(folder, tmp_path):
  """The same validation examples as of a file in memory, and nothing is read for it."""
  (image, label), (test_image, test_label) = PARTS.values()
  arrays = {"x_train": image, "y_train": label, "x_test": test_image, "y_test": test_label}
  np.savez(tmp_path / "toy.npz", **arrays)
  options = {"validation": 7, "seed": 5, "superclasses": 2}
  memory = sources.load("toy", data_dir=tmp_path, **options)
  shutil.copytree(folder, tmp_path / "other" / "toy.array_record")
  streamed = sources.load("toy", data_dir=tmp_path / "other", **options)
  for part in ("train", "validation"):
    mine, other = getattr(streamed, part), getattr(memory, part)
    assert isinstance(mine.image, Records)
    np.testing.assert_array_equal(mine.image, other.image)
    np.testing.assert_array_equal(mine.label, other.label)
  shutil.copytree(folder, tmp_path / "toy.array_record")
  assert not array_record_source.is_streamed(sources.load("toy", data_dir=tmp_path).train)


@pytest.mark.parametrize("shuffle", [True, False])
def test_batches_are_those_of_the_pure_function_from_any_step(folder, shuffle):
  """Across epochs and blocks; so a stream needs no position but the step."""
  import jax

  split, key = sources.load(str(folder)).train, jax.random.key(3)
  steps = record_stream._BLOCK + 9
  expected = np.asarray(batch_indices(key, 0, steps, 23, 4, shuffle))
  rows = record_stream.step_rows(key, 23, 4, shuffle)
  for first, last in ((0, 12), (steps - 7, steps)):
    found = list(record_stream.batches(split, rows, last, first))
    assert len(found) == last - first
    for step, (image, label) in zip(range(first, last), found, strict=True):
      np.testing.assert_array_equal(image, PARTS["train"][0][expected[step]])
      np.testing.assert_array_equal(label, PARTS["train"][1][expected[step]])
  assert list(record_stream.batches(split, rows, 5, 5)) == []


# --- damage ---------------------------------------------------------------------------------------


def without_counts(path):
  said = json.loads((path / "set.json").read_text())
  del said["train_pixels"]
  (path / "set.json").write_text(json.dumps(said))


def test_pixels_are_counted_when_they_are_packed(folder, tmp_path, monkeypatch):
  """So that no run reads the whole set for its mean; but one that holds examples out must."""
  shutil.copytree(folder, tmp_path / "toy.array_record")
  without_counts(tmp_path / "toy.array_record")
  options = {"validation": 0, "seed": 1}, {"validation": 7, "seed": 1}
  for chosen in options:
    found = [sources.load(str(p), **chosen) for p in (folder, tmp_path / "toy.array_record")]
    image = np.asarray(found[0].train.image)
    expected = [image.mean((0, 1, 2)) / 200, image.std((0, 1, 2)) / 200]
    for one in found:
      np.testing.assert_allclose(normalize.statistics(one, "dataset"), expected, rtol=1e-6)
  whole = sources.load(str(folder))
  monkeypatch.setattr(Records, "__getitem__", None)
  normalize.statistics(whole, "dataset")
  with pytest.raises(TypeError):
    normalize.statistics(whole._replace(train=whole.test), "dataset")


def test_all_in_memory_takes_little_more_than_the_array(folder, monkeypatch):
  """For `check_room` asks for no more."""
  image = sources.load(str(folder)).train.image
  monkeypatch.setattr(array_record_source, "_BLOCK", 2 * image.size // len(image))
  np.asarray(image)  # what is loaded once does not count
  tracemalloc.start()
  np.asarray(image)
  _, most = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert image.size < most < 1.5 * image.size
  assert np.asarray(image, np.float32).dtype == np.float32


def change(**values):
  def spoil(path):
    said = json.loads((path / "set.json").read_text())
    (path / "set.json").write_text(json.dumps(said | values))

  return spoil


def truncate(path):
  file = path / "train.array_record"
  file.write_bytes(file.read_bytes()[:-100])


def truncate_and_agree(path):
  truncate(path)
  sizes = {p: (path / f"{p}.array_record").stat().st_size for p in PARTS}
  change(bytes=sizes)(path)


def save_labels(**labels):
  return lambda path: np.savez(path / "labels.npz", **labels)


LABELS = {part: label for part, (_, label) in PARTS.items()}
DAMAGED = {
  "no folder": (shutil.rmtree, "there is no such folder"),
  "no description": (lambda p: (p / "set.json").unlink(), "set.json: does not describe a set"),
  "no JSON": (lambda p: (p / "set.json").write_text("{"), "set.json: does not describe a set"),
  "a list": (lambda p: (p / "set.json").write_text("[]"), "set.json: does not describe a set"),
  "later format": (change(format=2), "format 2, where this version reads 1"),
  "odd shape": (change(shape=[40, 30]), r"shape is not \[H, W, C\]"),
  "negative": (change(num_classes=-1), "must be positive integers"),
  "odd parts": (change(counts={"train": 23}), "its parts are not train and test"),
  "wrong size of records": (
    change(shape=[40, 30, 1], train_pixels=None),
    r"record 0 has 3600 bytes, but an image of \[40, 30, 1\] has 1200",
  ),
  "wrong count": (
    change(counts={"train": 22, "test": 5}, train_pixels=None),
    "holds 23 records, not the 22",
  ),
  "odd counts": (change(train_pixels=[[1, 2], [3]]), "set.json: does not describe a set"),
  "too few counts": (change(train_pixels=[[27600] + [0] * 255] * 2), "not the counts of 27600"),
  "wrong counts": (change(train_pixels=[[1] * 256] * 3), "are not the counts of 27600 pixels"),
  "negative counts": (change(train_pixels=[[27601, -1] + [0] * 254] * 3), "are not the counts"),
  "broken counts": (change(train_pixels=[[27600.0] + [0] * 255] * 3), "are not the counts"),
  "truncated": (truncate, r"train.array_record: has \d+ bytes, not the \d+ that were written"),
  "truncated, size adjusted": (truncate_and_agree, "train.array_record: cannot be read"),
  "no file": (lambda p: (p / "test.array_record").unlink(), "test.array_record: there is no such"),
  "fewer classes": (change(num_classes=3), "label 3 is out of range for 3 classes"),
  "negative label": (save_labels(**LABELS | {"test": LABELS["test"] - 1}), "label -1 is out of"),
  "fewer labels": (save_labels(**LABELS | {"test": LABELS["test"][1:]}), "5 examples but 4 labels"),
  "no labels": (save_labels(train=LABELS["train"]), "labels.npz: cannot be read"),
  "pickled labels": (
    save_labels(**LABELS | {"train": np.array([print] * 23, object)}),
    "labels.npz: cannot be read .*allow_pickle",
  ),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damage_is_one_sentence(folder, tmp_path, case):
  spoil, message = DAMAGED[case]
  path = tmp_path / "toy.array_record"
  shutil.copytree(folder, path)
  spoil(path)
  with pytest.raises(DataError, match=message) as error:
    sources.load(str(path))
  assert "\n" not in str(error.value)


def test_a_flipped_bit_is_found_when_it_is_read(folder, tmp_path):
  """By the checksums of the file, in whichever thread; no picture is ever other than written."""
  path = tmp_path / "toy.array_record"
  shutil.copytree(folder, path)
  file = path / "train.array_record"
  content = bytearray(file.read_bytes())
  content[content.index(PARTS["train"][0][11].tobytes()) + 7] ^= 1
  file.write_bytes(content)
  split = sources.load(str(path)).train
  np.testing.assert_array_equal(split.image[:3], PARTS["train"][0][:3])
  with pytest.raises(DataError, match=r"train.array_record: cannot be read \("):
    split.image[11]
  with pytest.raises(DataError, match=r"train.array_record: cannot be read \("):
    list(record_stream.batches(split, lambda i: np.arange(4 * i, 4 * i + 4), 5))


def test_grain_is_asked_for(folder, monkeypatch):
  monkeypatch.setitem(sys.modules, "grain", None)
  with pytest.raises(DataError, match=r"needs Grain, .* pip install 'fflax\[stream\]'"):
    sources.load(str(folder))


def test_what_does_not_fit_is_not_taken_into_memory(folder, monkeypatch):
  split = sources.load(str(folder)).train
  monkeypatch.setattr("fflax.data.dataset.os.sysconf", lambda name: 10)
  with pytest.raises(DataError, match="23 images of 40x30 take .* this command does not stream"):
    np.asarray(split.image)


IMAGES, LABEL = PARTS["test"]


@pytest.mark.parametrize(
  ("name", "part", "message"),
  [
    ("set.records", (IMAGES, LABEL), "the name must end in .array_record"),
    (".", (IMAGES, LABEL), "the name must end in .array_record"),
    ("x.array_record", (IMAGES, LABEL + 1), "label 4 is out of range for 4 classes"),
    ("x.array_record", (IMAGES, LABEL - 1), "label -1 is out of range for 4 classes"),
    ("x.array_record", (IMAGES, LABEL[1:]), "5 images but 4 labels"),
    ("x.array_record", (IMAGES[:0], LABEL[:0]), "0 images but 0 labels"),
    ("x.array_record", (np.float32(IMAGES), LABEL), r"example 0 is float32\[40, 30, 3\], but"),
    ("x.array_record", ([*IMAGES[:4], IMAGES[4, 1:]], LABEL), r"example 4 is uint8\[39, 30, 3\]"),
  ],
)
def test_write_refuses_and_leaves_nothing(tmp_path, name, part, message):
  with pytest.raises(DataError, match=message):
    write(tmp_path / name, {"train": PARTS["train"], "test": part}, num_classes=CLASSES)
  assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path, monkeypatch):
  (tmp_path / "file").write_text("")
  with pytest.raises(DataError, match=r"x.array_record: cannot be made \(.*Not a directory"):
    write(tmp_path / "file" / "below" / "x.array_record", PARTS, num_classes=CLASSES)

  def full(*args, **kwargs):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr("fflax.data.array_record_writer.np.savez", full)
  with pytest.raises(DataError, match=r"x.array_record: cannot be written \(.*No space left"):
    write(tmp_path / "x.array_record", PARTS, num_classes=CLASSES)
  assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_write_does_not_overwrite(folder):
  before = {p: p.read_bytes() for p in folder.iterdir()}
  with pytest.raises(DataError, match="exists and is not overwritten"):
    write(folder, PARTS, num_classes=CLASSES)
  assert {p: p.read_bytes() for p in folder.iterdir()} == before


def test_other_sets_are_not_streamed():
  assert not array_record_source.is_streamed(Split(*PARTS["test"]))
