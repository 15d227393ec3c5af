"""From a name to a data set in memory.

| name | what |
|---|---|
| `digits` | scikit-learn's 8x8 digits: real, bundled, needs no download |
| `synthetic` | teacher-student task with any number of classes, float features |
| `path/to/set.npz` | one file of arrays, see `fflax.data.npz_source` |
| `path/to/set.array_record` | a folder that is streamed, see `fflax.data.array_record_source` |
| `tfds:NAME` | an image set that tensorflow-datasets has prepared, see `fflax.data.tfds_source` |
| `NAME` | `<data_dir>/NAME.npz`, else `<data_dir>/NAME.array_record`, else `tfds:NAME` |

`fflax.data.catalog` lists published sets, and where they come from.
"""

import inspect
import os
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from fflax.data import array_record_source, npz_source, synthetic, tfds_source
from fflax.data.catalog import how_to_get
from fflax.data.dataset import (
  DataError,
  Dataset,
  Split,
  check_split,
  make_dataset,
  stratified_choice,
  with_validation,
)
from fflax.data.superclasses import with_superclasses

DIGITS_TEST_SIZE = 360


def load(
  name: str,
  *,
  data_dir: str | os.PathLike[str] | None = None,
  validation: int = 0,
  seed: int = 0,
  superclasses: int = 0,
  **options: Any,
) -> Dataset:
  """Loads a data set by name; see the table above. Nothing is downloaded.

  Args:
    name: see above.
    data_dir: where sets lie; None: the default of tensorflow-datasets.
    validation: number of examples to hold out of the training split, stratified by class.
    seed: chooses the validation examples; for `synthetic` also the task.
    superclasses: put the classes together to so many (see `superclasses.coarse_labels`); 0: no.
    **options: of the source. `.npz`: `num_classes`; `synthetic`: `num_classes`, `num_train`,
      `num_test`; tensorflow-datasets: `train_split`, `validation_split`, `test_split`,
      `image_size`.

  Raises:
    DataError: if there is no such set or option, or the data cannot be used.

  Example:
    >>> digits = load("digits", validation=100)
    >>> digits.train.image.shape, digits.validation.label.shape, digits.num_classes
    ((1337, 8, 8, 1), (100,), 10)
  """
  whole = _load(name, data_dir, validation, seed, options)
  return with_superclasses(whole, superclasses) if superclasses else whole


def _load(
  name: str,
  data_dir: str | os.PathLike[str] | None,
  validation: int,
  seed: int,
  options: dict[str, Any],
) -> Dataset:
  if not name:
    raise DataError("the data set's name is empty")
  if seed < 0 or seed >= 2**32:
    raise DataError(f"{name}: seed {seed} must be in [0, 2**32)")
  if name == "digits":
    return _call(load_digits, name, options, validation=validation, seed=seed)
  if name == "synthetic":
    whole = _call(synthetic.load, name, options, seed=seed)
    return with_validation(whole, validation, seed, name)
  split = {"validation": validation, "seed": seed}
  own = {".npz": npz_source.load, array_record_source.SUFFIX: array_record_source.load}
  path = pathlib.Path(name).expanduser()
  if path.suffix in own:
    return _call(own[path.suffix], name, options, path=path, **split)
  if name.startswith("tfds:"):
    tfds_name = name.removeprefix("tfds:")
    return _call(tfds_source.load, name, options, name=tfds_name, data_dir=data_dir, **split)
  root = tfds_source.default_data_dir() if data_dir is None else pathlib.Path(data_dir).expanduser()
  for suffix, source in own.items():
    path = root / f"{name}{suffix}"
    if path.exists():
      return _call(source, name, options, path=path, **split)
  if tfds_source.find(name, root) is None:
    hint = how_to_get(name)
    raise DataError(
      f"there is no data set {name!r}: it is neither digits nor synthetic, and {root} holds neither"
      f" {name}.npz, {name}.array_record nor a set of that name prepared by tensorflow-datasets"
      + (f"; {hint}" if hint else "")
    )
  return _call(tfds_source.load, name, options, name=name, data_dir=data_dir, **split)


def _call(
  source: Callable[..., Dataset], title: str, options: dict[str, Any], **fixed: Any
) -> Dataset:
  """Calls a source with its options, refusing those that it does not have."""
  allowed = [p for p in inspect.signature(source).parameters if p not in fixed]
  for option in options:
    if option not in allowed:
      known = f"its options are {', '.join(allowed)}" if allowed else "it has none"
      raise DataError(f"data set {title!r} has no option {option!r}, {known}")
  return source(**fixed, **options)


def load_digits(*, validation: int = 0, seed: int = 0) -> Dataset:
  """The 1,797 handwritten digits that scikit-learn bundles, `[N, 8, 8, 1]` uint8 in [0, 16].

  The split is fixed: 360 test examples (20 %), stratified by class and drawn once with seed 0 from
  the whole set, the other 1,437 for training and validation. The bundle does not say who wrote
  what, so the same writers appear on both sides; quote accuracies as of this split only.

  Source: the test part of E. Alpaydin, C. Kaynak, Optical Recognition of Handwritten Digits, UCI,
  1998.
  """
  from sklearn.datasets import load_digits as bundled  # slow to import, needed by no other source

  digits = bundled()
  image = digits.images.astype(np.uint8)[..., None]
  label = digits.target.astype(np.int32)
  in_test = np.zeros(len(label), bool)
  in_test[stratified_choice(label, DIGITS_TEST_SIZE, seed=0)] = True
  train = Split(image[~in_test], label[~in_test])
  test = check_split(image[in_test], label[in_test], "digits (test)")
  whole = make_dataset("digits", train, test, num_classes=10, max_value=16.0, where="digits")
  return with_validation(whole, validation, seed, "digits")
