"""Panels of the notebooks: what is drawn is what was given."""

import numpy as np
from matplotlib.figure import Figure

from experiments import panels


def test_matrices_of_locality_stand_apart_and_their_names_below():
  ax = Figure().subplots()
  matrices = {"local": np.eye(2, dtype=bool), "deep supervision": np.tril(np.ones((2, 2), bool))}
  panels.draw_locality(ax, matrices, "which")
  (image,) = (np.ma.filled(one.get_array(), np.nan) for one in ax.images)
  for first, matrix in zip((1, 5), matrices.values(), strict=True):
    np.testing.assert_array_equal(image[1:3, first : first + 2], matrix)
  assert np.isnan(image).sum() == image.size - 8
  assert [t.get_text() for t in ax.get_xticklabels()] == ["local", "deep\nsupervision"]
  np.testing.assert_array_equal(ax.get_xticks(), [1.5, 5.5])
  assert [t.get_text() for t in ax.get_yticklabels()] == ["loss 1", "loss 2"]


def test_every_seed_is_a_dot_and_their_mean_a_line():
  ax = Figure().subplots()
  panels.draw_seeds(ax, 3.0, np.array([1.0, 2.0, 6.0]), "red")
  dots, mean = ax.lines
  assert dots.get_xydata().tolist() == [[3, 1], [3, 2], [3, 6]]
  assert mean.get_xydata().tolist() == [[3, 3]]
