"""Reading prepared tensorflow-datasets: hand-written records, and MNIST's original bytes."""

import gzip
import json

import numpy as np
import pytest

from fflax.data import sources, tfds_source
from fflax.data.dataset import DataError
from tests.data import tfds_fixture

RNG = np.random.RandomState(0)


def toy(size, shape=(6, 5, 3)):
  return RNG.randint(0, 256, (size, *shape)).astype(np.uint8), np.arange(size) % 3


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  root = tmp_path_factory.mktemp("tfds")
  splits = {"train": toy(20), "test": toy(7), "validation": toy(5)}
  tfds_fixture.write(root, splits)
  return root, splits


@pytest.mark.parametrize("name", ["toy", "tfds:toy", "tfds:toy:1.2.3"])
def test_reads_the_pixels_and_labels_that_were_written(prepared, name):
  root, splits = prepared
  got = sources.load(name, data_dir=root)
  assert got.name == "toy" and got.num_classes == 3 and got.max_value == 255.0
  assert got.validation is None
  for part in ("train", "test"):
    np.testing.assert_array_equal(getattr(got, part).image, splits[part][0])
    np.testing.assert_array_equal(getattr(got, part).label, splits[part][1])


def test_blocks_join_without_gap(prepared, monkeypatch):
  monkeypatch.setattr(tfds_source, "_BLOCK", 6)
  root, splits = prepared
  got = sources.load("toy", data_dir=root)
  np.testing.assert_array_equal(got.train.image, splits["train"][0])


def test_validation_by_split_or_by_number(prepared):
  root, splits = prepared
  own = sources.load("toy", data_dir=root, validation_split="validation")
  assert own.validation is not None and len(own.train.label) == 20
  np.testing.assert_array_equal(own.validation.image, splits["validation"][0])
  taken = sources.load("toy", data_dir=root, validation=6)
  assert taken.validation is not None
  assert len(taken.train.label) == 14 and len(taken.validation.label) == 6
  with pytest.raises(DataError, match="validation_split='validation' needs validation=0"):
    sources.load("toy", data_dir=root, validation=6, validation_split="validation")


def test_slices_serve_sets_without_a_test_split(prepared):
  root, splits = prepared
  got = sources.load("toy", data_dir=root, train_split="train[:75%]", test_split="train[75%:]")
  np.testing.assert_array_equal(got.train.image, splits["train"][0][:15])
  np.testing.assert_array_equal(got.test.image, splits["train"][0][15:])


def test_grey_images_keep_their_channel(tmp_path):
  images, labels = toy(4, (3, 2, 1))
  tfds_fixture.write(tmp_path, {"train": (images, labels), "test": (images, labels)})
  got = sources.load("toy", data_dir=tmp_path)
  np.testing.assert_array_equal(got.train.image, images)


def test_images_of_many_sizes_need_and_get_one_size(tmp_path):
  images = [np.full((h, w, 3), 10 * h, np.uint8) for h, w in ((4, 5), (8, 3), (6, 6))]
  split = (images, [0, 1, 2])
  tfds_fixture.write(tmp_path, {"train": split, "test": split}, shape=(None, None, 3))
  # tensorflow-datasets writes an unknown side as -1.
  features = tmp_path / "toy" / "1.2.3" / "features.json"
  features.write_text(features.read_text().replace('"None"', '"-1"'))
  with pytest.raises(DataError, match="differ in size, so image_size must be given"):
    sources.load("toy", data_dir=tmp_path)
  got = sources.load("toy", data_dir=tmp_path, image_size=4)
  np.testing.assert_array_equal(
    got.train.image, np.stack([np.full((4, 4, 3), 10 * h, np.uint8) for h in (4, 8, 6)])
  )
  with pytest.raises(DataError, match="image_size 0 must be at least 1"):
    sources.load("toy", data_dir=tmp_path, image_size=0)


def test_the_highest_version_is_read_unless_one_is_named(tmp_path):
  """As text, 1.9.0 would win over 1.10.0."""
  for version, size in (("1.9.0", 3), ("1.10.0", 4)):
    tfds_fixture.write(tmp_path, {"train": toy(size), "test": toy(3)}, version=version)
  assert len(sources.load("toy", data_dir=tmp_path).train.label) == 4
  assert len(sources.load("tfds:toy:1.9.0", data_dir=tmp_path).train.label) == 3
  with pytest.raises(DataError, match=r"'toy:2\.0\.0' is not prepared"):
    sources.load("tfds:toy:2.0.0", data_dir=tmp_path)


def test_configurations_must_be_named(tmp_path):
  for config in ("letters", "all"):
    tfds_fixture.write(tmp_path, {"train": toy(4), "test": toy(3)}, name=f"toy/{config}")
  got = sources.load("toy/letters", data_dir=tmp_path)
  assert got.name == "toy" and len(got.train.label) == 4
  with pytest.raises(DataError, match=r"name a configuration, toy/\{all,letters\}"):
    sources.load("toy", data_dir=tmp_path)


def test_what_is_not_there_is_named_and_nothing_is_downloaded(prepared, tmp_path, monkeypatch):
  root, _ = prepared
  with pytest.raises(DataError, match=f"no data set 'cifar10'.* {tmp_path} holds neither"):
    sources.load("cifar10", data_dir=tmp_path)
  with pytest.raises(DataError, match=f"'cifar10' is not prepared .* under {root}"):
    sources.load("tfds:cifar10", data_dir=root)
  with pytest.raises(DataError, match="'to y' is no data set's name"):
    sources.load("to y", data_dir=root)
  with pytest.raises(DataError, match="Unknown split 'dev'"):
    sources.load("toy", data_dir=root, test_split="dev")
  assert not list(tmp_path.iterdir())
  monkeypatch.setenv("TFDS_DATA_DIR", str(root))
  assert len(sources.load("toy").train.label) == 20


def test_sets_of_other_kinds_are_refused(tmp_path):
  directory = tfds_fixture.write(tmp_path, {"train": toy(3), "test": toy(3)}, dtype="uint16")
  with pytest.raises(DataError, match=r"images are .*uint16.*, not uint8"):
    sources.load("toy", data_dir=tmp_path)
  features = json.loads((directory / "features.json").read_text())
  del features["featuresDict"]["features"]["label"]
  (directory / "features.json").write_text(json.dumps(features))
  with pytest.raises(DataError, match=r"toy/1.2.3: is no set of images with one class label"):
    sources.load("toy", data_dir=tmp_path)


def test_damage_is_refused_with_its_place(tmp_path):
  directory = tfds_fixture.write(tmp_path, {"train": toy(30), "test": toy(30)})
  shard = directory / "toy-train.array_record-00000-of-00001"
  raw = shard.read_bytes()
  altered = bytearray(raw)
  altered[raw.index(b"PNG") + 50] ^= 0xFF
  for damaged in (raw[: len(raw) // 2], b"", bytes(altered)):
    shard.write_bytes(damaged)
    with pytest.raises(DataError, match=rf"^{directory} \(train\): cannot be read \(.+\)$"):
      sources.load("toy", data_dir=tmp_path)
  shard.unlink()
  with pytest.raises(DataError, match=rf"^{directory} \(train\): cannot be read"):
    sources.load("toy", data_dir=tmp_path)
  (directory / "features.json").write_text("{")
  with pytest.raises(DataError, match=rf"^{directory}: cannot be opened"):
    sources.load("toy", data_dir=tmp_path)


def test_labels_are_held_to_the_declared_classes(tmp_path):
  tfds_fixture.write(tmp_path, {"train": toy(6), "test": toy(3)}, num_classes=2)
  with pytest.raises(DataError, match=r"\(train\): label 2 is out of range for 2 classes"):
    sources.load("toy", data_dir=tmp_path)


def test_mnist_equals_the_original_bytes(data_dir):
  """The real preparation of the real set, in its own order: compared as a multiset."""
  idx = data_dir / "mnist" / "t10k-images-idx3-ubyte.gz"
  if not idx.exists() or not (data_dir / "tfds" / "mnist").is_dir():
    pytest.skip("MNIST is not there both as IDX files and prepared by tensorflow-datasets")
  image = np.frombuffer(gzip.decompress(idx.read_bytes())[16:], np.uint8).reshape(-1, 784)
  label = gzip.decompress((data_dir / "mnist" / "t10k-labels-idx1-ubyte.gz").read_bytes())[8:]
  got = sources.load(
    "tfds:mnist", data_dir=data_dir / "tfds", train_split="test", test_split="test[:10]"
  )
  assert got.train.image.shape == (10_000, 28, 28, 1) and got.num_classes == 10
  want = sorted(zip((x.tobytes() for x in image), label, strict=True))
  assert want == sorted(
    (x.tobytes(), y) for x, y in zip(got.train.image, got.train.label, strict=True)
  )
