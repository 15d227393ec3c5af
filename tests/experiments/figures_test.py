"""Figures show the numbers that they were given: read back from the drawn axes."""

import matplotlib.image
import numpy as np
import pytest

from experiments import figures

LAYERS = ("dense_0", "dense_1")


@pytest.fixture
def drawn(monkeypatch):
  """The figures that were saved, to be looked into."""
  found = []
  original = figures._save
  monkeypatch.setattr(figures, "_save", lambda f, p: (found.append(f), original(f, p))[1])
  return found


def check_file(path, expected):
  """A PNG with something on it, and no temporary file beside it."""
  assert path == expected
  pixels = matplotlib.image.imread(path)
  assert min(pixels.shape[:2]) > 100 and pixels.std() > 0.01
  assert list(path.parent.iterdir()) == [path]


def make_rows():
  rows = []
  for step in (1, 2, 3):
    row = {"step": step, "epoch": step / 2, "train/dense_1/loss": None}
    for name in LAYERS:
      row |= {f"train/{name}/goodness_pos": 2.0 + step, f"train/{name}/goodness_neg": 2.0 - step}
    row["train/dense_0/loss"] = 1.0 / step
    rows.append(row)
  rows[2] |= {"test/dense_0/accuracy": 0.25, "test/accuracy/vote": 0.5}
  return rows


def lines_of(ax) -> dict[str, tuple[list[float], list[float]]]:
  named = [line for line in ax.get_lines() if not line.get_label().startswith("_")]
  return {line.get_label(): tuple(np.asarray(line.get_data()).tolist()) for line in named}


def test_training_curves(tmp_path, drawn):
  """A fraction under a percent axis, or a null drawn as zero, would still be a pretty picture."""
  target = tmp_path / "figures" / "curves.png"
  path = figures.training_curves(make_rows(), LAYERS, target)
  check_file(path, target)
  accuracy, goodness, loss = drawn[0].axes
  assert accuracy.get_ylabel() == "test accuracy (%)" and loss.get_xlabel() == "epoch"
  assert lines_of(accuracy) == {"dense_0": ([1.5], [25.0]), "readout vote": ([1.5], [50.0])}
  assert lines_of(goodness)["dense_1"] == ([0.5, 1.0, 1.5], [3.0, 4.0, 5.0])
  negative = [line for line in goodness.get_lines() if line.get_linestyle() == "--"]
  assert [line.get_ydata().tolist() for line in negative] == [[1.0, 0.0, -1.0]] * 2
  assert lines_of(loss) == {"dense_0": ([0.5, 1.0, 1.5], [1.0, 0.5, pytest.approx(1 / 3)])}


def test_training_curves_leave_out_empty_panels(tmp_path, drawn):
  rows = [{"step": s, "epoch": s, "train/dense_0/loss": 10.0**-s} for s in range(1, 5)]
  figures.training_curves(rows, LAYERS, tmp_path / "curves.png")
  (loss,) = drawn[0].axes
  assert loss.get_yscale() == "log"
  with pytest.raises(ValueError, match="1 rows of metrics, but no accuracy, goodness or loss"):
    figures.training_curves([{"step": 1, "epoch": 1.0}], LAYERS, tmp_path / "none.png")
  assert not (tmp_path / "none.png").exists()


def test_legend_of_many_layers_stays_readable(tmp_path, drawn):
  names = [f"layer_{i}" for i in range(40)]
  rows = [{"step": 1, "epoch": 1.0} | {f"train/{n}/loss": 1.0 for n in names}]
  figures.training_curves(rows, names, tmp_path / "curves.png")
  labels = [t.get_text() for t in drawn[0].axes[0].get_legend().get_texts()]
  assert len(labels) == 8 and labels[0] == "layer_0" and labels[-1] == "layer_39"
  assert len(drawn[0].axes[0].get_lines()) == 40, "all are drawn"


@pytest.mark.parametrize("num_views", [1, 2, 3])
def test_goodness_histograms(tmp_path, drawn, num_views):
  """Every example is in some bin, also those beyond the axis; NaN never is."""
  goodness = np.random.default_rng(0).normal(size=(2, num_views, 400))
  goodness[0, 0, 0] = 1e6
  goodness[1, 0, 0] = np.nan
  path = figures.goodness_histograms(goodness, LAYERS, tmp_path / "hist.png")
  check_file(path, tmp_path / "hist.png")
  for ax, name in zip(drawn[0].axes, LAYERS, strict=True):
    assert ax.get_title().startswith(name)
    assert len(ax.patches) == 2 * num_views
    for patch in ax.patches:
      assert sum(patch.get_data().values) == pytest.approx(100)
  legend = [t.get_text() for t in drawn[0].legends[0].get_texts()]
  names = ["plain"] if num_views == 1 else ["positive", "negative", "neutral"][:num_views]
  assert legend == [f"{n} view" for n in names]


def test_separation_counts_pairs():
  """Oracle: all pairs, ties as one half."""
  values = np.random.default_rng(1).integers(0, 6, (2, 50)).astype(float)
  values[0] += 2
  pairs = values[0][:, None] - values[1][None, :]
  share = np.mean((pairs > 0) + 0.5 * (pairs == 0))
  assert figures._separation(values) == f": P(pos > neg) = {share:.2f}"
  assert 0.6 < share < 0.99
  assert figures._separation(values[:1]) == ""
  assert figures._separation(values * np.nan) == ""


def test_histograms_of_degenerate_goodness(tmp_path):
  """A dead layer has one value, a diverged one none; the figure of the others is wanted still."""
  goodness = np.stack([np.zeros((2, 5)), np.full((2, 5), np.nan)])
  check_file(figures.goodness_histograms(goodness, LAYERS, tmp_path / "h.png"), tmp_path / "h.png")


@pytest.mark.parametrize("shape", [(2, 5), (3, 2, 5), (2, 4, 5)])
def test_histograms_refuse(tmp_path, shape):
  with pytest.raises(ValueError, match="goodness has"):
    figures.goodness_histograms(np.zeros(shape), LAYERS, tmp_path / "h.png")


def images_of(figure) -> list[np.ndarray]:
  return [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]


def test_features_of_a_dense_layer(tmp_path, drawn):
  """Wrong order of pixels, or the label's weights among them, would scramble every image."""
  rng = np.random.default_rng(0)
  kernel = rng.normal(size=(10 + 4 * 3, 5)) * np.arange(1, 6)[None, :]
  path = figures.first_layer_features(kernel, (4, 3, 1), tmp_path / "f.png", max_features=2)
  check_file(path, tmp_path / "f.png")
  norms = np.linalg.norm(kernel[10:], axis=0)
  best = np.argsort(-norms)[:2]
  for image, unit in zip(images_of(drawn[0]), best, strict=False):
    np.testing.assert_array_equal(image, kernel[10:, unit].reshape(4, 3))
  assert drawn[0].get_suptitle() == "2 of 5 first-layer units, by weight norm"


def test_features_of_convolutions(tmp_path, drawn):
  kernel = np.random.default_rng(0).normal(size=(5, 5, 3, 7))
  figures.first_layer_features(kernel, (32, 32, 3), tmp_path / "rgb.png")
  shown = images_of(drawn[0])
  assert len(shown) == 7 and all(x.shape == (5, 5, 3) for x in shown)
  assert all(x.min() >= 0 and x.max() <= 1 for x in shown)
  figures.first_layer_features(np.zeros((3, 3, 2, 4)), (8, 8, 2), tmp_path / "zero.png")
  assert drawn[1].axes[-1].get_ylabel() == "weight, mean of 2 channels"


@pytest.mark.parametrize("shape", [(63, 5), (3, 3, 2, 5), (64,)])
def test_features_refuse(tmp_path, shape):
  with pytest.raises(ValueError, match="does not read images"):
    figures.first_layer_features(np.zeros(shape), (8, 8, 1), tmp_path / "f.png")
