"""How much a layer knows about the class, in bits: estimators and bounds from scikit-learn.

Audit D of Y. Chen, 2026, arXiv 2606.06539: a scalar by nearest neighbours or a histogram, a vector
by a linear probe. All of them take held-out examples of a trained network.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from sklearn.feature_selection import mutual_info_classif
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler


def _log2(p: np.ndarray) -> np.ndarray:
  return np.log2(np.where(p > 0, p, 1.0))


def label_entropy(labels: ArrayLike) -> float:
  """`H(Y)` of the labels as they are, in bits; `log2 K` if classes are balanced."""
  p = np.unique(np.asarray(labels), return_counts=True)[1] / np.size(labels)
  return float(-np.sum(p * _log2(p)))


def neighbour_information(
  values: ArrayLike, labels: ArrayLike, neighbours: int = 4, seed: int = 42
) -> float:
  """`I(value; Y)` of a scalar `[N]`, in bits, by nearest neighbours.

  B. Ross, 2014, after A. Kraskov, H. Stoegbauer, P. Grassberger, 2004, as scikit-learn has it: not
  below 0, ties broken by noise of 1e-10 of the deviation. For independent data expect hundredths of
  a bit, not 0.
  """
  x = np.asarray(values, np.float64).reshape(-1, 1)
  nats = mutual_info_classif(
    x, np.asarray(labels), discrete_features=False, n_neighbors=neighbours, random_state=seed
  )
  return float(nats[0] / np.log(2))


class Corrected(NamedTuple):
  """An estimate from counts, in bits.

  Attributes:
    plug_in: of the counts as they are; biased upwards.
    corrected: less `(rows - 1)(columns - 1) / (2 N ln 2)`, the Miller-Madow bias, not below 0.
  """

  plug_in: float
  corrected: float


def count_information(a: ArrayLike, b: ArrayLike) -> Corrected:
  """`I(a; b)` of two `[N]` arrays of discrete values: a histogram's, or a confusion matrix's."""
  a, b = np.asarray(a), np.asarray(b)
  plug_in = mutual_info_score(a, b) / np.log(2)
  bias = (len(np.unique(a)) - 1) * (len(np.unique(b)) - 1) / (2 * len(a) * np.log(2))
  return Corrected(float(plug_in), float(max(0.0, plug_in - bias)))


def histogram_information(values: ArrayLike, labels: ArrayLike, bins: int) -> Corrected:
  """`I(value; Y)` of a scalar `[N]` in `bins` bins of equal width; empty ones are no bias."""
  values = np.asarray(values, np.float64)
  edges = np.histogram_bin_edges(values, bins)
  return count_information(np.searchsorted(edges[1:-1], values, side="right"), labels)


def fano_bound(error: float, num_classes: int, entropy: float | None = None) -> float:
  """`H(Y) - H2(error) - error log2(K - 1)`: the least information that allows such an error, bits.

  Args:
    error: share of wrong answers.
    num_classes: K, at least 2.
    entropy: `H(Y)` in bits; `log2 K` (balanced classes) if None.
  """
  entropy = float(np.log2(num_classes)) if entropy is None else entropy
  p = np.array([error, 1 - error])
  lost = -np.sum(p * _log2(p)) + error * np.log2(num_classes - 1)
  return max(0.0, entropy - float(lost))


PROBED_FROM = 5
"""Examples of a class that a probe needs: a fifth is judged, and both parts must hold the class."""


def can_be_probed(labels: ArrayLike) -> np.ndarray:
  """Which examples a linear probe may take, `[N]` bool: those of classes with `PROBED_FROM`."""
  _, place, counts = np.unique(np.asarray(labels), return_inverse=True, return_counts=True)
  return counts[place] >= PROBED_FROM


class Probe(NamedTuple):
  """What a linear probe found on the examples that it was not fitted to.

  Attributes:
    accuracy: a fraction.
    fano: bits, from the accuracy alone.
    cross_entropy: `H(Y) - CE`, bits: a bound too, tighter where the probe is well calibrated, and
      possibly negative where it is not.
    confusion: information between answer and class, corrected, bits: a bound but for noise.
  """

  accuracy: float
  fano: float
  cross_entropy: float
  confusion: float


def linear_probe(features: ArrayLike, labels: ArrayLike, seed: int = 42) -> Probe:
  """Softmax regression on 80 % of the examples, judged on the rest: bounds of `I(features; Y)`.

  Args:
    features: `[N, D]`; standardised by what is fitted.
    labels: `[N]`; two classes or more, of `PROBED_FROM` examples or more each (`can_be_probed`).
    seed: of the split.

  Deviations:
    The paper takes 50 epochs of Adam at 1e-2; here scikit-learn minimises the loss (with its usual
    penalty, `C = 1`) up to 300 steps of L-BFGS.

  Raises:
    ValueError: there are too few classes, or a class has too few examples.
  """
  features, labels = np.asarray(features), np.asarray(labels)
  if len(np.unique(labels)) < 2 or not np.all(can_be_probed(labels)):
    raise ValueError(f"a probe takes at least two classes, of {PROBED_FROM} examples or more each")
  x, x_rest, y, y_rest = train_test_split(
    features.reshape(len(features), -1), labels, test_size=0.2, random_state=seed, stratify=labels
  )
  probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)).fit(x, y)
  chances, classes = probe.predict_proba(x_rest), probe.classes_
  answers = classes[np.argmax(chances, axis=1)]
  own = chances[np.arange(len(y_rest)), np.searchsorted(classes, y_rest)]
  accuracy, entropy = float(np.mean(answers == y_rest)), label_entropy(y_rest)
  return Probe(
    accuracy,
    fano_bound(1 - accuracy, len(classes), entropy),
    entropy + float(np.mean(np.log2(np.maximum(own, 1e-300)))),
    count_information(answers, y_rest).corrected,
  )
