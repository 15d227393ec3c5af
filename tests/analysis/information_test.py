"""Estimators of information against values that are known in closed form or by integration."""

import numpy as np
import pytest

from fflax.analysis import information


@pytest.mark.parametrize(
  ("accuracy", "classes", "bits"),
  [
    (1.0, 10, np.log2(10)),
    (0.1, 10, 0.0),
    (0.9, 10, 2.5359),
    (0.6, 10, 1.0830),
    (0.435, 10, 0.5431),
    (0.6728, 100, 3.5627),
    (0.5, 2, 0.0),
  ],
)
def test_fano(accuracy, classes, bits):
  assert information.fano_bound(1 - accuracy, classes) == pytest.approx(bits, abs=1e-4)


def test_fano_of_unbalanced_classes_starts_at_their_entropy():
  labels = np.repeat([0, 1, 2], [50, 25, 25])
  assert information.label_entropy(labels) == pytest.approx(1.5)
  assert information.fano_bound(0.0, 3, 1.5) == pytest.approx(1.5)


@pytest.mark.parametrize(("distance", "bits"), [(1, 0.1607), (2, 0.4859), (4, 0.9128)])
def test_two_gaussians(distance, bits):
  """Integrated numerically; the estimate's deviation at this N is below 0.01."""
  rng = np.random.default_rng(0)
  label = np.arange(6000) % 2
  x = rng.normal(size=6000) + distance * label
  found = information.neighbour_information(x, label)
  assert found == pytest.approx(bits, abs=0.03)
  assert information.neighbour_information(-7 * x + 3, label) == pytest.approx(found, abs=1e-6)
  assert information.histogram_information(x, label, 50).corrected == pytest.approx(bits, abs=0.03)


def test_disjoint_intervals_tell_the_class():
  rng = np.random.default_rng(0)
  label = np.arange(3000) % 10
  x = label + rng.uniform(0, 0.9, 3000)
  assert information.neighbour_information(x, label) == pytest.approx(np.log2(10), abs=0.02)
  fine = information.histogram_information(x, label, 99)  # edges in all the gaps
  assert fine.plug_in == pytest.approx(np.log2(10), abs=0.02)


def test_the_bias_of_a_histogram_is_what_is_taken_off():
  """Independent data: the plug-in estimate is all bias."""
  rng = np.random.default_rng(0)
  x, label = rng.uniform(size=10_000), rng.integers(0, 10, 10_000)
  found = information.histogram_information(x, label, 100)
  bias = 99 * 9 / (2 * 10_000 * np.log(2))
  assert found.plug_in == pytest.approx(bias, rel=0.2)
  assert found.corrected < 0.2 * bias
  assert information.neighbour_information(x[:3000], label[:3000]) < 0.06


def test_probes_of_classes_with_too_few_examples_are_refused():
  """Five of each are enough: a fifth of them holds one of every class."""
  labels = np.repeat([0, 1, 2], [5, 5, 4])
  kept = information.can_be_probed(labels)
  np.testing.assert_array_equal(kept, labels < 2)
  features = np.eye(3)[labels]
  assert information.linear_probe(features[kept], labels[kept]).accuracy == 1
  for bad in (labels >= 0, labels == 0):
    with pytest.raises(ValueError, match="two classes, of 5 examples"):
      information.linear_probe(features[bad], labels[bad])


def test_the_probe_s_bounds_hold_and_are_ordered():
  """Three Gaussian classes in the plane: what is known, by integration, is above every bound."""
  rng = np.random.default_rng(0)
  label = np.arange(6000) % 3
  centres = 2.0 * np.array([[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]])
  x = centres[label] + rng.normal(size=(6000, 2))
  density = np.exp(-0.5 * np.sum((x[:, None] - centres[None]) ** 2, -1))
  truth = np.log2(3) + np.mean(np.log2(density[np.arange(6000), label] / density.sum(1)))
  found = information.linear_probe(x, label)
  best = np.mean(np.argmax(density, 1) == label)
  assert found.accuracy == pytest.approx(best, abs=0.03)
  assert found.fano == pytest.approx(information.fano_bound(1 - found.accuracy, 3), abs=1e-3)
  # The posterior is a softmax of linear scores: the probe can find all there is.
  assert found.cross_entropy == pytest.approx(truth, abs=0.05)
  assert found.fano < found.confusion + 0.02 < truth
