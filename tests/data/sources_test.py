"""The bundled sources and how names are resolved."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from fflax.data import sources, synthetic
from fflax.data.catalog import KNOWN
from fflax.data.dataset import DataError
from tests.data import tfds_fixture


def test_digits_are_all_there_once():
  """A test image that is also trained on would raise every number that is quoted."""
  got = sources.load("digits")
  assert got.train.image.shape == (1437, 8, 8, 1) and got.test.image.shape == (360, 8, 8, 1)
  assert got.train.image.dtype == np.uint8 and got.train.label.dtype == np.int32
  assert got.max_value == 16.0 and got.num_classes == 10 and got.train.image.max() == 16
  bundled = load_digits()
  want = sorted(
    (x.astype(np.uint8).tobytes(), y) for x, y in zip(bundled.images, bundled.target, strict=True)
  )
  found = [
    (x.tobytes(), y)
    for split in (got.train, got.test)
    for x, y in zip(split.image, split.label, strict=True)
  ]
  assert sorted(found) == want


def test_digits_are_stratified_and_the_test_split_never_moves():
  got = sources.load("digits", validation=100, seed=0)
  other = sources.load("digits", validation=100, seed=1)
  share = np.bincount(load_digits().target) / 1797
  assert got.validation is not None and other.validation is not None
  assert np.abs(np.bincount(got.test.label) - 360 * share).max() < 1
  assert np.abs(np.bincount(got.validation.label) - 100 * share).max() < 1.2
  assert len(got.train.label) == 1337
  np.testing.assert_array_equal(got.test.image, other.test.image)
  assert not np.array_equal(got.validation.image, other.validation.image)


def test_synthetic_labels_are_the_teachers():
  """Recomputed layer by layer in numpy from the returned weights."""
  got = sources.load("synthetic", seed=3, num_classes=15, num_train=2000, num_test=500)
  teacher = synthetic.make_teacher(3, 15)
  for split, size in ((got.train, 2000), (got.test, 500)):
    assert split.image.shape == (size, 50) and split.image.dtype == np.float32
    h = split.image.astype(np.float64)
    h = np.einsum("ni,ij->nj", h, teacher.kernels[0]) + teacher.biases[0]
    h = np.einsum("ni,ij->nj", h * (h > 0), teacher.kernels[1]) + teacher.biases[1]
    h = np.einsum("ni,ij->nj", h * (h > 0), teacher.kernels[2]) + teacher.biases[2]
    np.testing.assert_array_equal(split.label, h.argmax(1))
  assert got.num_classes == 15 and got.max_value == 1.0


def test_synthetic_follows_its_specification():
  """x ~ N(0, I); weights and biases uniform in +-1/sqrt(fan_in); 20,000 and 5,000 examples."""
  got = sources.load("synthetic")
  n = got.train.image.size
  assert got.train.image.shape == (20_000, 50) and got.test.image.shape == (5_000, 50)
  assert abs(got.train.image.mean()) < 4 / np.sqrt(n)
  assert abs(got.train.image.var() - 1) < 4 * np.sqrt(2 / n)
  covariance = got.train.image.T @ got.train.image / 20_000
  assert np.abs(covariance - np.eye(50)).max() < 6 * np.sqrt(2 / 20_000)
  teacher = synthetic.make_teacher(0, 10)
  assert [k.shape for k in teacher.kernels] == [(50, 128), (128, 128), (128, 10)]
  for kernel, bias in zip(teacher.kernels, teacher.biases, strict=True):
    bound = 1 / np.sqrt(len(kernel))
    assert np.abs(kernel).max() <= bound and np.abs(bias).max() <= bound
    size = kernel.size
    assert abs(kernel.var() / (bound**2 / 3) - 1) < 4 * np.sqrt(0.8 / size)


def test_the_synthetic_seed_is_the_task():
  def draw(seed, **options):
    return sources.load("synthetic", seed=seed, num_train=100, num_test=50, **options)

  np.testing.assert_array_equal(draw(0).train.image, draw(0).train.image)
  assert not np.array_equal(draw(0).train.image, draw(1).train.image)
  assert not np.array_equal(draw(0).train.image[:50], draw(0).test.image)
  teachers = synthetic.make_teacher(0, 10), synthetic.make_teacher(1, 10)
  assert not np.array_equal(teachers[0].kernels[0], teachers[1].kernels[0])
  held = sources.load("synthetic", num_train=100, num_test=50, validation=20)
  assert held.validation is not None
  assert len(held.train.label) == 80 and len(held.validation.label) == 20


@pytest.mark.parametrize(
  ("name", "options", "message"),
  [
    ("", {}, "name is empty"),
    ("digits", {"num_classes": 3}, "'digits' has no option 'num_classes', it has none"),
    ("synthetic", {"depth": 3}, "no option 'depth', its options are num_classes, num_train"),
    ("synthetic", {"num_classes": 1}, "num_classes 1 must be at least 2"),
    ("synthetic", {"num_test": 0}, "num_test 0 must be at least 1"),
    ("digits", {"seed": -1}, "seed -1 must be in"),
    ("digits", {"validation": 1437}, "validation=1437"),
    ("nowhere/set.npz", {}, "nowhere/set.npz: there is no such file"),
  ],
)
def test_what_cannot_be_loaded_is_refused(name, options, message):
  with pytest.raises(DataError, match=message):
    sources.load(name, **options)


def test_a_bare_name_means_npz_before_a_prepared_set(tmp_path):
  image, label = np.zeros((6, 2, 2, 1), np.uint8), np.arange(6) % 2
  tfds_fixture.write(tmp_path, {"train": (image + 7, label), "test": (image + 7, label)})
  assert sources.load("toy", data_dir=tmp_path).train.image[0, 0, 0, 0] == 7
  file = {"x_train": image, "y_train": label, "x_test": image, "y_test": label}
  np.savez(tmp_path / "toy.npz", **file)
  assert sources.load("toy", data_dir=tmp_path).train.image[0, 0, 0, 0] == 0
  assert sources.load("tfds:toy", data_dir=tmp_path).train.image[0, 0, 0, 0] == 7
  assert sources.load(str(tmp_path / "toy.npz")).name == "toy"


def test_what_is_missing_says_where_it_comes_from(tmp_path):
  for name in KNOWN:
    if name != "digits":
      with pytest.raises(DataError, match=f"^there is no data set '{name}': [^\n]*; [^\n]*{name}"):
        sources.load(name, data_dir=tmp_path)
  with pytest.raises(DataError, match="prepared by tensorflow-datasets$"):
    sources.load("nowhere", data_dir=tmp_path)
