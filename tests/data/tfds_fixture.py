"""Writes a small set as tensorflow-datasets prepares it, without TensorFlow or tensorflow-datasets.

The wire format of `tf.train.Example` is written out by hand, so reading it back is an independent
check.
"""

import io
import json
import pathlib

import numpy as np
from array_record.python import array_record_module
from PIL import Image


def _field(number, payload):
  """A length-delimited protocol buffer field; lengths up to 2**21."""
  length, encoded = len(payload), b""
  while length >= 128:
    encoded += bytes([length % 128 + 128])
    length //= 128
  return bytes([number * 8 + 2]) + encoded + bytes([length]) + payload


def _example(image, label):
  def entry(name, feature):
    return _field(1, _field(1, name.encode()) + _field(2, feature))

  png = io.BytesIO()
  Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, "PNG")
  features = entry("image", _field(1, _field(1, png.getvalue())))
  features += entry("label", _field(3, _field(1, bytes([label]))))
  return _field(1, features)


def write(root, splits, *, name="toy", version="1.2.3", num_classes=3, shape=None, dtype="uint8"):
  """Writes `splits`, name -> (images, labels below 128); returns the prepared directory."""
  directory = pathlib.Path(root) / name / version
  directory.mkdir(parents=True)
  if shape is None:
    shape = next(iter(splits.values()))[0][0].shape
  info = {
    "name": name.split("/")[0],
    "version": version,
    "fileFormat": "array_record",
    "splits": [],
    "supervisedKeys": {"tuple": {"items": [{"featureKey": "image"}, {"featureKey": "label"}]}},
  }
  for split, (images, labels) in splits.items():
    file = directory / f"{name.split('/')[0]}-{split}.array_record-00000-of-00001"
    writer = array_record_module.ArrayRecordWriter(str(file), "group_size:1")
    for image, label in zip(images, labels, strict=True):
      writer.write(_example(np.asarray(image), int(label)))
    writer.close()
    info["splits"].append(
      {
        "name": split,
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        "numBytes": str(file.stat().st_size),
        "shardLengths": [str(len(labels))],
      }
    )
  core = "tensorflow_datasets.core.features"
  dimensions = {"dimensions": [str(d) for d in shape]}
  features = {
    "image": {
      "image": {"dtype": dtype, "shape": dimensions},
      "pythonClassName": f"{core}.image_feature.Image",
    },
    "label": {
      "classLabel": {"numClasses": str(num_classes)},
      "pythonClassName": f"{core}.class_label_feature.ClassLabel",
    },
  }
  description = {
    "featuresDict": {"features": features},
    "pythonClassName": f"{core}.features_dict.FeaturesDict",
  }
  (directory / "dataset_info.json").write_text(json.dumps(info))
  (directory / "features.json").write_text(json.dumps(description))
  return directory
