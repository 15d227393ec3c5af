"""Standardisation: a wrong constant trains almost as well and compares with nothing."""

import gzip

import numpy as np
import pytest

from fflax.data import normalize
from fflax.data.dataset import Dataset, Split


def toy(image, max_value, name="toy"):
  split = Split(image, np.arange(len(image), dtype=np.int32) % 2)
  return Dataset(name, split, None, split, 2, max_value)


def test_statistics_of_the_training_pixels():
  image = np.random.RandomState(0).randint(0, 256, (9, 4, 5, 3)).astype(np.uint8)
  mean, std = normalize.statistics(toy(image, 255.0), "dataset")
  for c in range(3):
    pixels = image[..., c].astype(np.float64).ravel() / 255
    np.testing.assert_allclose(mean[c], pixels.sum() / len(pixels), rtol=1e-6)
    np.testing.assert_allclose(std[c], np.sqrt(((pixels - pixels.mean()) ** 2).mean()), rtol=1e-6)
  assert mean.dtype == std.dtype == np.float32


def test_a_constant_feature_is_not_divided_by_zero():
  x = np.stack([np.arange(4.0), np.full(4, 2.0)], 1).astype(np.float32)
  mean, std = normalize.statistics(toy(x, 1.0), "dataset")
  np.testing.assert_allclose(mean, [1.5, 2.0])
  np.testing.assert_allclose(std, [np.sqrt(1.25), 1.0], rtol=1e-6)


def test_none_and_standard():
  image = np.zeros((2, 2, 2, 1), np.uint8)
  mean, std = normalize.statistics(toy(image, 255.0), "none")
  np.testing.assert_array_equal([mean, std], [[0.0], [1.0]])
  mean, std = normalize.statistics(toy(image, 255.0, "mnist"), "standard")
  np.testing.assert_allclose([mean, std], [[0.1307], [0.3081]])


def test_constants_of_recipes():
  image = np.zeros((2, 2, 2, 3), np.uint8)
  mean, std = normalize.statistics(toy(image, 255.0), "half")
  np.testing.assert_array_equal([mean, std], np.full((2, 3), 0.5))
  mean, std = normalize.statistics(toy(image, 255.0), "imagenet")
  np.testing.assert_allclose(mean, [0.485, 0.456, 0.406])
  np.testing.assert_allclose(std, [0.229, 0.224, 0.225])
  with pytest.raises(ValueError, match="3 channels, not 1"):
    normalize.statistics(toy(image[..., :1], 255.0), "imagenet")


def test_unknown_names_and_modes_are_refused():
  image = np.zeros((2, 2, 2, 1), np.uint8)
  with pytest.raises(ValueError, match="'toy', only for mnist, fashion_mnist"):
    normalize.statistics(toy(image, 255.0), "standard")
  with pytest.raises(ValueError, match="'whiten' is none of"):
    normalize.statistics(toy(image, 255.0), "whiten")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_table_agrees_with_the_original_files(data_dir, name):
  path = data_dir / name / "train-images-idx3-ubyte.gz"
  if not path.exists():
    pytest.skip(f"{path} is not there")
  count = np.bincount(
    np.frombuffer(gzip.decompress(path.read_bytes())[16:], np.uint8), minlength=256
  )
  share, value = count / count.sum(), np.arange(256) / 255
  mean = (share * value).sum()
  std = np.sqrt((share * (value - mean) ** 2).sum())
  got = normalize.normalization(name)
  np.testing.assert_allclose([got[0][0], got[1][0]], [mean, std], atol=6e-5)
