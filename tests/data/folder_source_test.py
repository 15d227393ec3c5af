"""Folders of images: labels by folder, by list and by annotation; nothing half decoded."""

import numpy as np
import pytest
from PIL import Image

from fflax.data import folder_source
from fflax.data.dataset import DataError


def colour(label, number):
  return (20 * label, 10 * number, 7)


def write(path, label, number, size=(6, 4)):
  """An image of one colour, which no resize changes; width and height differ."""
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.new("RGB", size, colour(label, number)).save(path)


@pytest.fixture
def folder(tmp_path):
  """Classes n01 to n03 in ImageNet's layout, with files that are no images among them."""
  root = tmp_path / "toy"
  for label, name in enumerate(("n01", "n02", "n03")):
    for number in range(2):
      write(root / "train" / name / "images" / f"{name}_{number}.png", label, number)
    write(root / "val" / name / f"{number}.png", label, 5)
    (root / "train" / name / "boxes.txt").write_text("0 0 1 1")
  return root


def test_labels_are_places_of_folders(folder):
  got = folder_source.load(folder, image_size=4)
  assert (got.name, got.num_classes, got.max_value) == ("toy", 3, 255.0)
  assert got.train.image.shape == (6, 4, 4, 3) and got.test.image.shape == (3, 4, 4, 3)
  assert got.train.label.tolist() == [0, 0, 1, 1, 2, 2] and got.test.label.tolist() == [0, 1, 2]
  want = [colour(label, number) for label in range(3) for number in range(2)]
  np.testing.assert_array_equal(got.train.image[:, 1, 2], want)
  np.testing.assert_array_equal(got.test.image[:, 0, 0], [colour(label, 5) for label in range(3)])


def test_the_middle_is_kept_and_nothing_is_stretched(folder):
  """A 6x4 image whose outer columns are white loses them."""
  pixels = np.zeros((4, 6, 3), np.uint8)
  pixels[:, [0, 5]] = 255
  Image.fromarray(pixels).save(folder / "val" / "n01" / "1.png")
  got = folder_source.load(folder, image_size=4)
  np.testing.assert_array_equal(got.test.image[0], np.zeros((4, 4, 3)))


def test_a_list_chooses_and_orders_the_classes(folder, tmp_path):
  listed = tmp_path / "classes.txt"
  listed.write_text("# two of three\nn03 third\n\nn01  # first\n")
  got = folder_source.load(folder, image_size=4, class_list=listed)
  assert got.num_classes == 2
  want = [colour(label, number) for label in (2, 0) for number in range(2)]
  np.testing.assert_array_equal(got.train.image[:, 0, 0], want)
  assert got.train.label.tolist() == [0, 0, 1, 1]


def test_tiny_imagenet_keeps_the_labels_of_its_validation_images_apart(folder):
  """Its test images have no labels, so they must not be taken for a test split."""
  for path in (folder / "val").rglob("*.png"):
    path.unlink()
  write(folder / "test" / "images" / "test_0.png", 9, 9)
  lines = []
  for number, label in enumerate((2, 0, 1)):
    write(folder / "val" / "images" / f"val_{number}.png", label, number)
    lines.append(f"val_{number}.png\tn0{label + 1}\t0\t0\t3\t3\n")
  (folder / "val" / "val_annotations.txt").write_text("".join(lines))
  got = folder_source.load(folder)
  assert got.test.label.tolist() == [2, 0, 1] and got.test.image.shape == (3, 4, 6, 3)
  want = [colour(label, number) for number, label in enumerate((2, 0, 1))]
  np.testing.assert_array_equal(got.test.image[:, 0, 0], want)


def test_what_cannot_be_packed_is_refused(folder, tmp_path, monkeypatch):
  def refused(message, **options):
    with pytest.raises(DataError, match=message):
      folder_source.load(folder, **options)

  listed = tmp_path / "classes.txt"
  refused(r"nowhere\.txt: cannot be read", class_list=tmp_path / "nowhere.txt")
  for text in ("n01\n", "n01\nn02\nn01\n"):
    listed.write_text(text)
    refused("names at least two, each once", class_list=listed)
  listed.write_text("n01\nn09\n")
  refused("there is no folder of class 'n09'", class_list=listed)
  monkeypatch.setattr(folder_source.os, "sysconf", lambda name: 10)
  refused(r"9 images of 4x4 take 0\.0 GiB, and this machine has 0\.0", image_size=4)
  monkeypatch.undo()
  annotations = folder / "val" / "val_annotations.txt"
  annotations.write_bytes(b"val_0.png\t\xff\xfe\n")
  refused(r"val_annotations\.txt: cannot be read", image_size=4)
  annotations.unlink()
  write(folder / "train" / "n02" / "other.png", 1, 0, size=(5, 5))
  refused("other.png: images differ in size, so image_size must be given")
  (folder / "train" / "n02" / "other.png").write_bytes(b"no image")
  refused(r"other\.png: cannot be decoded as an image", image_size=4)
  for path in (folder / "train" / "n02").rglob("*.png"):
    path.unlink()
  refused("train: there is no image of class 'n02'", image_size=4)
  (folder / "val").rename(folder / "other")
  refused("there is neither a folder 'val' nor a folder 'test'")
  (folder / "train").rename(folder / "training")
  refused("there is no folder 'train'")
