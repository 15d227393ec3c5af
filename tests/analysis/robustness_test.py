"""Attacks against what can be worked out by hand: linear scores, where the best attack is known."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.analysis import robustness
from fflax.core.numerics import float32
from fflax.core.readouts import score_sum
from fflax.methods.registry import METHODS, make_method
from fflax.networks.registry import make_network
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.methods.tiny import jit, made_up_state

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(12, 4)).astype(np.float32)
IMAGE = RNG.uniform(0, 1, (9, 3, 4)).astype(np.float32)
LABEL = np.argmax(IMAGE.reshape(9, 12) @ KERNEL, axis=1)
RADIUS = 0.15


def linear(x):
  return x.reshape(len(x), 12) @ KERNEL


def margins(x):
  """In numpy, with who the best rival is."""
  s = np.asarray(x, np.float64).reshape(len(x), 12) @ KERNEL
  own = s[np.arange(len(s)), LABEL]
  s[np.arange(len(s)), LABEL] = -np.inf
  return s.max(1) - own, s.argmax(1)


def best_margin():
  """Over the ball cut with [0, 1]: the best corner for each rival, then the best rival."""
  low, high = np.maximum(IMAGE - RADIUS, 0), np.minimum(IMAGE + RADIUS, 1)
  found = np.full((len(IMAGE), 4), -np.inf)
  for i, y in enumerate(LABEL):
    for c in set(range(4)) - {y}:
      w = (KERNEL[:, c] - KERNEL[:, y]).reshape(3, 4)
      found[i, c] = np.sum(np.where(w > 0, high[i], low[i]) * w)
  return found.max(1)


def assert_in_bounds(x):
  x = np.asarray(x)
  assert x.min() >= 0 and x.max() <= 1
  assert np.abs(x - IMAGE).max() <= RADIUS + 1e-6


def test_margin_by_hand():
  scores = jnp.asarray([[1.0, 3.0, 2.0], [5.0, 0.0, 4.5], [2.0, 2.0, 0.0]])
  np.testing.assert_allclose(robustness.margin(scores, jnp.asarray([1, 2, 0])), [-1.0, 0.5, 0.0])


def test_fgsm_of_linear_scores_by_hand():
  got = jit(lambda x: robustness.fgsm(linear, x, LABEL, RADIUS))(IMAGE)
  _, rival = margins(IMAGE)
  w = (KERNEL[:, rival] - KERNEL[:, LABEL]).T.reshape(9, 3, 4)
  np.testing.assert_allclose(got, np.clip(IMAGE + RADIUS * np.sign(w), 0, 1), atol=1e-6)
  # Cross-entropy weighs the rivals by their probabilities.
  got = jit(lambda x: robustness.fgsm(linear, x, LABEL, RADIUS, "cross_entropy"))(IMAGE)
  s = IMAGE.reshape(9, 12).astype(np.float64) @ KERNEL
  p = np.exp(s) / np.exp(s).sum(1, keepdims=True)
  w = ((p - np.eye(4)[LABEL]) @ KERNEL.T).reshape(9, 3, 4)
  np.testing.assert_allclose(got, np.clip(IMAGE + RADIUS * np.sign(w), 0, 1), atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"loss": "cross_entropy"}, {"directions": 64}])
def test_pgd_finds_the_best_corner_of_linear_scores(options):
  """Nearly: it climbs towards one rival at a time, and estimates are rough. Never beyond."""
  attack = jit(
    lambda key: robustness.pgd(linear, IMAGE, LABEL, RADIUS, key, steps=12, restarts=2, **options)
  )
  x = attack(jax.random.key(0))
  assert_in_bounds(x)
  clean, got, best = margins(IMAGE)[0], margins(x)[0], best_margin()
  assert np.all(got <= best + 1e-5)
  share = np.sum(got - clean) / np.sum(best - clean)
  assert share > (2 / 3 if "directions" in options else 0.9)


def test_pgd_is_exact_with_one_rival():
  """Steps of 2.5 radius / steps cross the ball from any start."""
  label = np.arange(9) % 2
  attack = jit(
    lambda k: robustness.pgd(lambda x: linear(x)[:, :2], IMAGE, label, RADIUS, k, steps=7)
  )
  w = ((1 - 2 * label) * (KERNEL[:, 1] - KERNEL[:, 0])[:, None]).T.reshape(9, 3, 4)
  want = np.clip(IMAGE + RADIUS * np.sign(w), 0, 1)
  np.testing.assert_allclose(attack(jax.random.key(2)), want, atol=1e-6)


def test_pgd_keeps_what_is_worst():
  """Against scores whose gradient points the wrong way, the image itself or the start remain."""
  flip = jax.custom_vjp(linear)
  flip.defvjp(lambda x: (linear(x), x.shape), lambda shape, g: ((-(g @ KERNEL.T)).reshape(shape),))
  attack = lambda f, r: jit(  # noqa: E731
    lambda key: robustness.pgd(f, IMAGE, LABEL, r, key, steps=3)
  )(jax.random.key(0))
  x = attack(flip, RADIUS)
  assert_in_bounds(x)
  assert np.all(margins(x)[0] >= margins(IMAGE)[0] - 1e-6)
  np.testing.assert_array_equal(attack(linear, 0.0), IMAGE)


def test_a_masked_gradient_is_found_out_by_values():
  """With a `stop_gradient` in the graph PGD only has its random start; SPSA goes on."""
  masked = lambda x: linear(jax.lax.stop_gradient(x))  # noqa: E731
  attack = lambda n: jit(  # noqa: E731
    lambda key: robustness.pgd(masked, IMAGE, LABEL, RADIUS, key, steps=8, directions=n)
  )(jax.random.key(1))
  blind, seeing = margins(attack(0))[0], margins(attack(64))[0]
  assert np.mean(seeing - blind) > 0.3 * np.mean(best_margin() - margins(IMAGE)[0])


def test_strongest_of_several():
  candidates = [np.roll(IMAGE, shift, axis=1) for shift in range(3)]
  got = robustness.strongest(linear, LABEL, *map(jnp.asarray, candidates))
  each = np.stack([margins(c)[0] for c in candidates])
  np.testing.assert_allclose(margins(np.asarray(got))[0], each.max(0), rtol=1e-6)
  assert len(set(each.argmax(0))) > 1


def test_gaussian_noise_has_its_moments_and_is_clipped():
  grey = jnp.full((100, 400), 0.5)
  x = np.asarray(robustness.gaussian(jax.random.key(0), grey, 0.05))
  assert abs(x.mean() - 0.5) < 4 * 0.05 / x.size**0.5
  assert abs(x.std() - 0.05) < 4 * 0.05 / (2 * x.size) ** 0.5
  edge = np.asarray(robustness.gaussian(jax.random.key(0), jnp.ones((100, 400)), 0.3))
  assert edge.max() == 1 and edge.min() >= 0
  assert abs(np.mean(edge == 1) - 0.5) < 4 * 0.5 / edge.size**0.5
  np.testing.assert_array_equal(robustness.gaussian(jax.random.key(0), grey, 0.0), grey)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_can_be_attacked(name):
  """The image's gradient is that of the deployed answer, along the paths through every layer.

  Differences of its values know nothing of a `stop_gradient`. With one between the layers the first
  layer's own scores would still send some gradient, and the method would seem robust.
  """
  shape, classes = (5, 5, 1), 3
  method = make_method(name, METHODS[name].config(), classes)
  network = make_network("mlp", numerics=float32(), sizes=(12, 12))
  options = {"image_shape": shape, "optimizer": optax.sgd(0.1)}
  try:
    trainer = make_trainer(network, method, [score_sum()], **options)
  except ValueError as error:
    if "trained readout" not in str(error):
      raise
    pytest.skip(str(error))
  image = jnp.asarray(np.random.default_rng(1).uniform(0, 1, (6, *shape)), jnp.float32)
  label = jnp.arange(6) % classes
  state = made_up_state(trainer, Batch(image, label))

  @jit
  def attacked(state, image):
    def total(x):
      found = robustness.margin(trainer.answer(state, x).readouts["score_sum"], label)
      return jnp.sum(found), found

    return jax.grad(total, has_aux=True)(image)

  g, _ = map(np.asarray, attacked(state, image))
  assert np.isfinite(g).all()
  length = np.sqrt(np.sum(g**2, (1, 2, 3)))
  assert np.mean(length > 0) > 0.6
  # Along the gradient itself: its length, unless a path is missing. Kinks of relu may lie between.
  step = 1e-3 * g / np.where(length > 0, length, 1)[:, None, None, None]
  (_, above), (_, below) = attacked(state, image + step), attacked(state, image - step)
  slope = (np.asarray(above) - np.asarray(below)) / 2e-3
  assert np.mean(np.abs(slope - length) <= 0.005 * length) > 0.6, (slope, length)
