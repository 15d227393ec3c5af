"""Prototypes on the sphere: score identities, frames, moving averages, bounds of the loss."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import losses, prototypes

KEY = jax.random.key(0)


def cosines(z, p):
  """`[..., K, M]` in float64."""
  z, p = np.asarray(z, np.float64), np.asarray(p, np.float64)
  z = z / np.linalg.norm(z, axis=-1, keepdims=True)
  p = p / np.linalg.norm(p, axis=-1, keepdims=True)
  return np.einsum("...d,kmd->...km", z, p)


def gram(p):
  flat = np.asarray(p, np.float64).reshape(-1, p.shape[-1])
  flat = flat / np.linalg.norm(flat, axis=-1, keepdims=True)
  return flat @ flat.T


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("pooling", [0.1, 5.0, 30.0])
def test_scores_against_numpy(count, pooling):
  z, p = jax.random.normal(KEY, (12,)), jax.random.normal(jax.random.key(1), (4, count, 12))
  s = cosines(z, p)
  want = np.log(np.mean(np.exp(pooling * s), -1)) / pooling
  got = np.asarray(prototypes.class_scores(z, p, pooling))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=3e-6 / min(pooling, 1))
  slack = 1e-5
  assert np.all(s.min(-1) <= s.mean(-1)) and np.all(s.mean(-1) <= got + slack)
  assert np.all(got <= s.max(-1) + slack)


def test_limits_of_pooling_and_equal_prototypes():
  """-> inf: nearest; -> 0: mean; one prototype, or copies of it: its cosine, for every beta."""
  z, p = jax.random.normal(KEY, (12,)), jax.random.normal(jax.random.key(1), (4, 3, 12))
  s = cosines(z, p)
  np.testing.assert_allclose(prototypes.class_scores(z, p, 1e4), s.max(-1), atol=2e-4)
  np.testing.assert_allclose(prototypes.class_scores(z, p, 1e-2), s.mean(-1), atol=2e-3)
  copies = jnp.repeat(p[:, :1], 3, axis=1)
  for pooling in (1.0, 10.0, 30.0):
    np.testing.assert_allclose(prototypes.class_scores(z, copies, pooling), s[:, 0], atol=1e-5)
    np.testing.assert_allclose(prototypes.class_scores(z, p[:, :1], pooling), s[:, 0], atol=1e-6)


def test_mixture_identity():
  """pooling = scale, no margin: -log of the own class's share of all exponentials."""
  z, p = jax.random.normal(KEY, (12,)), jax.random.normal(jax.random.key(1), (4, 3, 12))
  e = np.exp(8 * cosines(z, p))
  loss = losses.margin_cross_entropy(prototypes.class_scores(z, p, 8.0), 2, 8.0)
  assert float(loss) == pytest.approx(-np.log(e[2].sum() / e.sum()), rel=1e-5)


def loss_of(z, p, label=1, scale=10.0, margin=0.1, pooling=6.0):
  return losses.margin_cross_entropy(prototypes.class_scores(z, p, pooling), label, scale, margin)


def test_lengths_of_features_and_prototypes_change_nothing():
  z, p = jax.random.normal(KEY, (12,)), jax.random.normal(jax.random.key(1), (4, 3, 12))
  factor = jnp.asarray(np.random.default_rng(0).uniform(0.1, 50, (4, 3, 1)), jnp.float32)
  base = loss_of(z, p)
  np.testing.assert_allclose(loss_of(100 * z, p), base, rtol=1e-5)
  np.testing.assert_allclose(loss_of(z, p * factor), base, rtol=1e-5)


def test_gradients_are_orthogonal_and_have_the_closed_form():
  """z.dL/dz = 0, p.dL/dp = 0, and W.dL/dW + b.dL/db = 0 for a bias and ReLU layer."""
  rng = np.random.default_rng(1)
  z, p = rng.normal(size=12), rng.normal(size=(4, 3, 12))
  scale, margin, pooling, y = 10.0, 0.1, 6.0, 1
  dz, dp = jax.jit(jax.grad(loss_of, (0, 1)))(
    jnp.asarray(z, jnp.float32), jnp.asarray(p, jnp.float32)
  )

  s = cosines(z, p)
  r = np.exp(pooling * s) / np.sum(np.exp(pooling * s), -1, keepdims=True)
  scores = np.log(np.mean(np.exp(pooling * s), -1)) / pooling
  logits = scale * (scores - margin * (np.arange(4) == y))
  d_scores = scale * (np.exp(logits) / np.exp(logits).sum() - (np.arange(4) == y))
  zh, length = z / np.linalg.norm(z), np.linalg.norm(z)
  ph = p / np.linalg.norm(p, axis=-1, keepdims=True)
  through = np.einsum("k,km,kmd->d", d_scores, r, ph)
  want_z = (through - zh * (zh @ through)) / length
  want_p = (d_scores[:, None] * r)[..., None] * (zh - ph * s[..., None])
  want_p /= np.linalg.norm(p, axis=-1, keepdims=True)
  np.testing.assert_allclose(dz, want_z, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(dp, want_p, rtol=1e-4, atol=1e-5)
  assert abs(z @ np.asarray(dz)) < 1e-5
  assert np.max(np.abs(np.sum(p * np.asarray(dp), -1))) < 1e-5

  u, w, b = rng.normal(size=(6, 5)), rng.normal(size=(5, 12)), rng.normal(size=12)

  def layer(w, b):
    h = jax.nn.relu(jnp.asarray(u, jnp.float32) @ w + b[None, :])
    return jnp.mean(jax.vmap(lambda v: loss_of(v, jnp.asarray(p, jnp.float32)))(h))

  dw, db = jax.jit(jax.grad(layer, (0, 1)))(
    jnp.asarray(w, jnp.float32), jnp.asarray(b, jnp.float32)
  )
  assert abs(np.sum(w * np.asarray(dw)) + b @ np.asarray(db)) < 1e-5
  assert np.linalg.norm(dw) > 1e-2


def test_permuting_classes_permutes_scores():
  z, p = jax.random.normal(KEY, (12,)), jax.random.normal(jax.random.key(1), (4, 3, 12))
  order = np.array([2, 0, 3, 1])
  np.testing.assert_allclose(
    prototypes.class_scores(z, p[order], 5.0),
    np.asarray(prototypes.class_scores(z, p, 5.0))[order],
    rtol=1e-6,
  )


@pytest.mark.parametrize("margin", [0.0, 0.2])
def test_zero_features_have_finite_loss_and_gradient(margin):
  """A dead row: all scores zero, loss log(1 + (C-1) exp(alpha m))."""
  p = jax.random.normal(jax.random.key(1), (10, 2, 12))
  value, grads = jax.jit(jax.value_and_grad(loss_of, (0, 1)))(jnp.zeros(12), p, 1, 10.0, margin)
  assert float(value) == pytest.approx(np.log(1 + 9 * np.exp(10 * margin)), rel=1e-5)
  assert all(np.all(np.isfinite(g)) for g in grads)


@pytest.mark.parametrize("classes", [2, 5, 10])
def test_simplex_frame(classes):
  """Cosines -1/(C-1), rows that sum to zero: the largest possible common margin."""
  frame = prototypes.etf_prototypes(KEY, classes, 1, 16)
  assert frame.shape == (classes, 1, 16)
  want = np.full((classes, classes), -1 / (classes - 1))
  np.fill_diagonal(want, 1)
  np.testing.assert_allclose(gram(frame), want, atol=2e-6)
  np.testing.assert_allclose(np.sum(frame, axis=0), 0, atol=2e-6)
  np.testing.assert_allclose(np.linalg.norm(frame, axis=-1), 1, rtol=1e-5)


def test_orthogonal_frame_and_random_directions():
  frame = prototypes.orthogonal_prototypes(KEY, 4, 3, 12)
  assert frame.shape == (4, 3, 12)
  np.testing.assert_allclose(gram(frame), np.eye(12), atol=2e-6)
  other = prototypes.orthogonal_prototypes(jax.random.key(5), 4, 3, 12)
  assert np.max(np.abs(np.asarray(frame) - np.asarray(other))) > 0.1
  directions = np.asarray(prototypes.random_prototypes(KEY, 50, 2, 400))
  assert directions.shape == (50, 2, 400)
  assert abs(directions.mean()) < 4 / directions.size**0.5
  assert directions.std() == pytest.approx(1, abs=4 / (2 * directions.size) ** 0.5)


@pytest.mark.parametrize(
  ("make", "arguments"),
  [
    (prototypes.orthogonal_prototypes, (5, 2, 9)),
    (prototypes.etf_prototypes, (5, 2, 20)),
    (prototypes.etf_prototypes, (5, 1, 4)),
  ],
)
def test_impossible_frames_are_refused(make, arguments):
  with pytest.raises(ValueError, match="layer width"):
    make(KEY, *arguments)


@pytest.mark.parametrize(
  ("classes", "scale", "floor"), [(10, 10.0, 2.38e-4), (100, 10.0, 4.26e-3), (1000, 10.0, 4.41e-2)]
)
def test_loss_floor_of_relu_features(classes, scale, floor):
  """Orthonormal features with a simplex frame reach log(1 + (C-1) exp(-alpha sqrt(C/(C-1))))."""
  basis = np.eye(classes)
  frame = (classes / (classes - 1)) ** 0.5 * (basis - 1 / classes)
  p = jnp.asarray(frame, jnp.float32)[:, None, :]

  def loss(y):
    z = jax.nn.one_hot(y, classes)
    return losses.margin_cross_entropy(prototypes.class_scores(z, p, 1.0), y, scale)

  got = float(jnp.mean(jax.vmap(loss)(jnp.arange(10))))
  exact = np.log1p((classes - 1) * np.exp(-scale * (classes / (classes - 1)) ** 0.5))
  assert got == pytest.approx(exact, rel=2e-3)
  assert got == pytest.approx(floor, rel=5e-3)


def test_loss_floor_of_signed_features():
  p = prototypes.etf_prototypes(KEY, 10, 1, 16)
  loss = jax.vmap(
    lambda y: losses.margin_cross_entropy(prototypes.class_scores(p[y, 0], p, 1.0), y, 10.0)
  )(jnp.arange(10))
  np.testing.assert_allclose(loss, 1.345e-4, rtol=5e-3)


ema = jax.jit(prototypes.ema_prototypes, static_argnums=3)


class TestMovingAverages:
  def batch(self):
    rng = np.random.default_rng(3)
    z = jnp.asarray(rng.normal(1, 1, (9, 6)) * rng.uniform(0.1, 9, (9, 1)), jnp.float32)
    label = jnp.asarray([0, 0, 1, 1, 1, 3, 3, 3, 3], jnp.int32)  # class 2 is absent
    return z, label

  def test_against_numpy(self):
    """p <- unit(rho unit(p) + (1 - rho) mean zh): features weigh alike, however long they are."""
    z, label = self.batch()
    p = prototypes.random_prototypes(KEY, 4, 1, 6)
    got = np.asarray(ema(p, z, label, 0.9))[:, 0]
    zh = np.asarray(z, np.float64) / np.linalg.norm(z, axis=-1, keepdims=True)
    old = np.asarray(p, np.float64)[:, 0]
    old = old / np.linalg.norm(old, axis=-1, keepdims=True)
    for c in (0, 1, 3):
      moved = 0.9 * old[c] + 0.1 * zh[np.asarray(label) == c].mean(0)
      np.testing.assert_allclose(got[c], moved / np.linalg.norm(moved), rtol=1e-5, atol=1e-6)
    assert np.array_equal(got[2], np.asarray(p)[2, 0]), "an absent class keeps its bits"

  def test_rho_zero_gives_the_batch_means_and_rho_one_nothing(self):
    z, label = self.batch()
    p = prototypes.random_prototypes(KEY, 4, 1, 6)
    zh = np.asarray(z, np.float64) / np.linalg.norm(z, axis=-1, keepdims=True)
    got = np.asarray(ema(p, z, label, 0.0))[:, 0]
    for c in (0, 1, 3):
      mean = zh[np.asarray(label) == c].mean(0)
      np.testing.assert_allclose(got[c], mean / np.linalg.norm(mean), rtol=1e-5, atol=1e-6)
    assert np.array_equal(ema(p, z, label, 1.0), p)

  def test_each_example_moves_the_nearest_prototype_of_its_own_class(self):
    """Not the nearest of all classes, and not all prototypes of the class."""
    z, label = self.batch()
    p = prototypes.random_prototypes(KEY, 4, 3, 6)
    got = np.asarray(ema(p, z, label, 0.7))
    nearest = np.argmax(cosines(z, p)[np.arange(9), np.asarray(label)], -1)
    touched = {(int(c), int(m)) for c, m in zip(label, nearest, strict=True)}
    zh = np.asarray(z, np.float64) / np.linalg.norm(z, axis=-1, keepdims=True)
    for c in range(4):
      for m in range(3):
        if (c, m) not in touched:
          assert np.array_equal(got[c, m], np.asarray(p)[c, m])
          continue
        old = np.asarray(p, np.float64)[c, m]
        mine = zh[(np.asarray(label) == c) & (nearest == m)].mean(0)
        moved = 0.7 * old / np.linalg.norm(old) + 0.3 * mine
        np.testing.assert_allclose(got[c, m], moved / np.linalg.norm(moved), rtol=1e-5, atol=1e-6)
