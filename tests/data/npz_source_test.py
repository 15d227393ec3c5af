""".npz files: what is written comes back, and no damage passes or runs code."""

import io
import pickle
import zipfile

import numpy as np
import pytest

from fflax.data import npz_source, sources
from fflax.data.dataset import DataError


def arrays(**changes):
  rng = np.random.RandomState(0)
  good = {
    "x_train": rng.randint(0, 256, (30, 4, 5, 3)).astype(np.uint8),
    "y_train": (np.arange(30) % 3).astype(np.uint8),
    "x_test": rng.randint(0, 256, (9, 4, 5, 3)).astype(np.uint8),
    "y_test": (np.arange(9) % 3).astype(np.int64),
  }
  return {k: v for k, v in (good | changes).items() if v is not None}


@pytest.fixture
def write(tmp_path):
  def write(**changes):
    path = tmp_path / "toy.npz"
    np.savez(path, **arrays(**changes))
    return path

  return write


def test_reads_what_numpy_wrote(write):
  path = write(lossy_test_indices=np.arange(3))
  got = npz_source.load(path)
  assert got.name == "toy" and got.num_classes == 3 and got.max_value == 255.0
  assert got.validation is None
  for part in ("train", "test"):
    np.testing.assert_array_equal(getattr(got, part).image, arrays()[f"x_{part}"])
    np.testing.assert_array_equal(getattr(got, part).label, arrays()[f"y_{part}"])
    assert getattr(got, part).label.dtype == np.int32


def test_features_and_a_validation_split_of_its_own(write):
  x = np.random.RandomState(1).randn(30, 7).astype(np.float32)
  path = write(
    x_train=x, x_test=x[:9], x_validation=x[:5], y_validation=np.arange(5) % 3, num_classes=4
  )
  got = npz_source.load(path)
  assert got.max_value == 1.0 and got.num_classes == 4 and got.validation is not None
  np.testing.assert_array_equal(got.validation.image, x[:5])
  assert len(got.train.label) == 30
  with pytest.raises(DataError, match="a validation split of its own"):
    npz_source.load(path, validation=3)


def test_files_of_medmnist_are_read_as_they_are(tmp_path):
  rng = np.random.RandomState(2)
  file = {}
  for part, size in (("train", 12), ("val", 6), ("test", 9)):
    file[f"{part}_images"] = rng.randint(0, 256, (size, 5, 5)).astype(np.uint8)
    file[f"{part}_labels"] = (np.arange(size) % 3).astype(np.uint8)[:, None]
  np.savez(tmp_path / "bloodmnist.npz", **file)
  got = sources.load("bloodmnist", data_dir=tmp_path)
  assert (got.name, got.num_classes, got.train.image.shape) == ("bloodmnist", 3, (12, 5, 5, 1))
  for part, split in (("train", got.train), ("val", got.validation), ("test", got.test)):
    assert split is not None
    np.testing.assert_array_equal(split.image[..., 0], file[f"{part}_images"])
    np.testing.assert_array_equal(split.label, file[f"{part}_labels"][:, 0])
  # Several labels an example are another task.
  np.savez(tmp_path / "chestmnist.npz", **{**file, "train_labels": np.zeros((12, 14), np.uint8)})
  with pytest.raises(DataError, match=r"labels must be \[N\], not of shape \(12, 14\)"):
    sources.load("chestmnist", data_dir=tmp_path)


def test_validation_comes_out_of_training_only(write):
  got = npz_source.load(write(), validation=6, seed=1)
  assert got.validation is not None
  np.testing.assert_array_equal(np.bincount(got.validation.label), [2, 2, 2])
  both = np.concatenate([got.train.image, got.validation.image])
  assert sorted(x.tobytes() for x in both) == sorted(x.tobytes() for x in arrays()["x_train"])
  np.testing.assert_array_equal(got.test.image, arrays()["x_test"])


@pytest.mark.parametrize(
  ("changes", "message"),
  [
    ({"y_test": None}, "array 'y_test' is missing"),
    ({"x_train": arrays()["x_train"][..., 0]}, r"\(train\): uint8 images must be \[N, H, W, C\]"),
    ({"x_train": arrays()["x_train"] / 255}, r"\(train\): .* not float64"),
    ({"y_train": np.zeros(29, int)}, r"\(train\): 30 examples but 29 labels"),
    ({"y_test": np.full(9, 3)}, r"\(test\): label 3 is out of range for 3 classes"),
    ({"y_train": np.full(30, -2)}, r"\(train\): label -2 is out of range"),
    ({"num_classes": 2}, r"\(train\): label 2 is out of range for 2 classes"),
    ({"num_classes": 2.5}, "'num_classes' must be one integer"),
    ({"x_test": arrays()["x_test"][:0], "y_test": np.zeros(0, int)}, r"\(test\): .* is empty"),
    ({"x_validation": arrays()["x_test"]}, "array 'y_validation' is missing"),
    ({"x_test": arrays()["x_test"][:, :3]}, r"\(test\): examples are uint8\[3, 5, 3\]"),
  ],
)
def test_unusable_files_are_refused_by_name(write, changes, message):
  path = write(**changes)
  with pytest.raises(DataError, match=f"^{path}.*{message}"):
    npz_source.load(path)


def test_declared_classes_bound_the_labels(write):
  with pytest.raises(DataError, match="label 2 is out of range for 2 classes"):
    npz_source.load(write(), num_classes=2)
  assert npz_source.load(write(), num_classes=7).num_classes == 7


class Bomb:
  """Says so if anyone unpickles it."""

  def __reduce__(self):
    return (pytest.fail, ("unpickled",))


def test_object_arrays_are_never_unpickled(write, tmp_path):
  """`allow_pickle=True` would run whatever a downloaded file says."""
  path = write(x_train=np.asarray([Bomb()] * 30, dtype=object))
  with pytest.raises(DataError, match=f"^{path}: array 'x_train' cannot be read"):
    npz_source.load(path)
  pickled = tmp_path / "pickled.npz"
  pickled.write_bytes(pickle.dumps(Bomb()))
  with pytest.raises(DataError, match=f"^{pickled}: the archive cannot be read"):
    npz_source.load(pickled)


def test_every_truncation_is_noticed(write):
  raw = write().read_bytes()
  path = write()
  for length in (0, 1, 10, 100, len(raw) // 2, len(raw) - 30, len(raw) - 1):
    path.write_bytes(raw[:length])
    with pytest.raises(DataError, match=f"^{path}: .* cannot be read"):
      npz_source.load(path)


def test_altered_pixels_are_noticed(tmp_path):
  """The archive's checksum must be looked at, compressed or not."""
  for save in (np.savez, np.savez_compressed):
    buffer = io.BytesIO()
    save(buffer, **arrays())
    raw = bytearray(buffer.getvalue())
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
      info = archive.getinfo("x_train.npy")
    raw[info.header_offset + 300] ^= 0xFF
    path = tmp_path / "altered.npz"
    path.write_bytes(raw)
    with pytest.raises(DataError, match="array 'x_train' cannot be read"):
      npz_source.load(path)


def test_a_member_that_is_no_array_and_an_absurd_shape(tmp_path):
  path = tmp_path / "odd.npz"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x_train.npy", b"hello")
  with pytest.raises(DataError, match="'x_train' is no array"):
    npz_source.load(path)
  header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (99999999999999, 9, 9, 9), }"
  header = header.ljust(117) + b"\n"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + bytes([len(header), 0]) + header)
  with pytest.raises(DataError, match="array 'x_train' cannot be read"):
    npz_source.load(path)


def test_a_missing_file_and_a_directory(tmp_path):
  with pytest.raises(DataError, match="there is no such file"):
    npz_source.load(tmp_path / "none.npz")
  (tmp_path / "dir.npz").mkdir()
  with pytest.raises(DataError, match="there is no such file"):
    npz_source.load(tmp_path / "dir.npz")


def test_save_and_load_return_the_same(write, tmp_path):
  whole = npz_source.load(write(num_classes=5), validation=6)
  out = tmp_path / "new" / "copy.npz"
  npz_source.save(out, whole)
  back = npz_source.load(out)
  assert back.num_classes == 5 and back.name == "copy"
  for part in ("train", "validation", "test"):
    for a, b in zip(getattr(whole, part), getattr(back, part), strict=True):
      np.testing.assert_array_equal(a, b)
  assert [p.name for p in out.parent.iterdir()] == ["copy.npz"]


def test_save_refuses_to_overwrite_and_leaves_nothing_when_it_fails(write, tmp_path, monkeypatch):
  path = write()
  before = path.read_bytes()
  whole = npz_source.load(path)
  with pytest.raises(DataError, match="exists and is not overwritten"):
    npz_source.save(path, whole)
  assert path.read_bytes() == before
  with pytest.raises(DataError, match=r"must end in \.npz"):
    npz_source.save(tmp_path / "x.zip", whole)
  with pytest.raises(DataError, match="pixels up to 16"):
    npz_source.save(tmp_path / "digits.npz", sources.load("digits"))

  def full_disk(file, **_):
    file.write(b"half")
    raise OSError("no space left on device")

  monkeypatch.setattr(np, "savez_compressed", full_disk)
  with pytest.raises(OSError, match="no space"):
    npz_source.save(tmp_path / "out.npz", whole)
  assert [p.name for p in tmp_path.iterdir()] == ["toy.npz"]
