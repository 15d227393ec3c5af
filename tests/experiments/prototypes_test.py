"""What prototypes stand for: which images are shown, beside numpy's own reckoning."""

import dataclasses

import matplotlib.image
import numpy as np
import pytest

from experiments import config, figures, prototypes
from experiments.assembly import build
from fflax.data import sources
from fflax.data.dataset import Split
from tests.methods.tiny import jit, made_up_state


def small(**changes):
  """A few digits, two conv layers, two prototypes a class."""
  digits = sources.load("digits")
  base = config.load_preset("hff_cnn_digits")
  method = dataclasses.replace(
    base.methods["hyperspherical"], aux_features=4, prototypes_per_class=2, **changes
  )
  chosen = dataclasses.replace(
    base,
    methods={"hyperspherical": method},
    networks={"small_cnn": {"channels": (4, 5), "pool_after": (1,)}},
    data=dataclasses.replace(base.data, batch_size=10),
    eval_batch_size=20,
  )
  return build(chosen, digits._replace(train=Split(*(a[:30] for a in digits.train))))


def test_nearest_by_hand():
  cosines = np.array([[[0.1, 0.9]], [[0.5, 0.2]], [[0.5, 0.3]]])  # three examples, one class, two
  assert prototypes.nearest(cosines, 2).tolist() == [[[1, 2], [0, 2]]]
  assert prototypes.nearest(cosines, 9).shape == (1, 2, 3)


def test_cosines_are_those_that_the_layer_answers_with(tmp_path, monkeypatch):
  """Through the auxiliary head: pooled over a class's prototypes they are its scores."""
  experiment = small(scale=6.0)
  state = made_up_state(experiment.trainer, experiment.example())
  answers = jit(experiment.trainer.answer)(state, experiment.example(30).image)
  cosines = prototypes.training_cosines(experiment, state, 1)
  assert cosines.shape == (30, 10, 2)
  pooled = np.log(np.exp(6 * cosines).mean(-1)) / 6
  np.testing.assert_allclose(pooled, answers.layers[1], atol=1e-5)
  path = tmp_path / "figure.png"
  monkeypatch.setattr(prototypes, "training_cosines", lambda *_: cosines)
  share = prototypes.show(experiment, state, 1, 3, path)
  label = experiment.dataset.train.label[prototypes.nearest(cosines, 3)]
  assert share == pytest.approx(np.mean(label == np.arange(10)[:, None, None]))
  assert min(matplotlib.image.imread(path).shape[:2]) > 100


def test_what_has_no_prototypes_is_refused():
  experiment = small()
  prototypes.check(experiment, [0, -2])
  with pytest.raises(ValueError, match="no layer 2: the run has 2"):
    prototypes.check(experiment, [0, 2])
  other = experiment._replace(config=dataclasses.replace(experiment.config, method="backprop"))
  with pytest.raises(ValueError, match="method 'backprop' has no prototypes"):
    prototypes.check(other, [])
  flat = Split(np.zeros((3, 64), np.float32), np.arange(3))
  features = experiment._replace(dataset=experiment.dataset._replace(train=flat))
  with pytest.raises(ValueError, match="data set 'digits' has none"):
    prototypes.check(features, [])


def test_layers_are_numbers():
  assert prototypes.parse_layers(["1", "-1"]) == [1, -1]
  with pytest.raises(ValueError, match="^--layers takes integers"):
    prototypes.parse_layers(["first"])


def test_the_grid_shows_what_it_is_given(tmp_path, monkeypatch):
  """Row by row, and a frame around what is not good."""
  found = []
  monkeypatch.setattr(figures, "_save", lambda figure, path: found.append(figure))
  images = np.arange(12.0).reshape(2, 3, 2, 1, 1) / 12
  good = np.array([[True, False, True], [True, True, False]])
  figures.image_grid(images, good, np.arange(6.0).reshape(2, 3), ["a", "b"], "T", "f.png")
  (ax,) = found[0].axes
  assert [text.get_text() for text in ax.texts] == [f"{v:.2f}" for v in range(6)]
  assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
  canvas = np.asarray(ax.get_images()[0].get_array())
  assert canvas.shape == (8, 6, 3)  # two rows of 2 pixels and a gap of 2; columns of 1 and 1
  np.testing.assert_allclose(
    canvas[[0, 1, 4, 5]][:, ::2, 0].reshape(2, 2, 3), images[..., 0, 0].transpose(0, 2, 1)
  )
  assert np.all(canvas[:, 1::2] == 1) and np.all(canvas[[2, 3, 6, 7]] == 1)
  frames = [(p.get_x() + 0.5, p.get_y() + 0.5) for p in ax.patches]
  assert frames == [(2, 0), (4, 4)]
  with pytest.raises(ValueError, match="images"):
    figures.image_grid(images[..., 0], good, good, ["a", "b"], "T", tmp_path / "f.png")
  with pytest.raises(ValueError, match="other numbers"):
    figures.image_grid(images, good, good, ["a"], "T", tmp_path / "f.png")
