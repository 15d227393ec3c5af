"""Local losses against closed forms, published values and limiting cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import losses


def sigmoid(z):
  return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("maximize", [True, False])
def test_logistic_loss_and_its_gradient_in_float64(maximize):
  """Binary cross-entropy of the concatenated rows; a wrong sign would still "train"."""
  rng = np.random.default_rng(0)
  pos, neg = rng.normal(5, 3, 50), rng.normal(4, 3, 50)
  sign = 1 if maximize else -1
  with jax.enable_x64(True):

    def mean(a, b):
      return jnp.mean(losses.logistic_loss(a, b, 4.5, 2.0, maximize))

    value, (d_pos, d_neg) = jax.value_and_grad(mean, (0, 1))(jnp.asarray(pos), jnp.asarray(neg))
    value, d_pos, d_neg = np.asarray(value), np.asarray(d_pos), np.asarray(d_neg)
  z = sign * (np.concatenate([pos, neg]) - 4.5) / 2
  target = np.repeat([1, 0], 50)
  p = sigmoid(z)
  bce = -np.mean(target * np.log(p) + (1 - target) * np.log(1 - p))
  grad = sign * (p - target) / 2 / 100
  np.testing.assert_allclose(value, bce, rtol=1e-12)
  np.testing.assert_allclose(np.concatenate([d_pos, d_neg]), grad, rtol=1e-11, atol=1e-15)


def test_logistic_loss_does_not_overflow():
  """Goodness of thousands is usual with "sum"; log(1 + exp) would give inf."""
  loss = losses.logistic_loss(jnp.float32(-1e4), jnp.float32(1e4), 0.0)
  grads = jax.grad(losses.logistic_loss, (0, 1))(jnp.float32(-1e4), jnp.float32(1e4), 0.0)
  np.testing.assert_allclose(loss, 1e4)
  np.testing.assert_allclose(grads, (-0.5, 0.5))


def test_first_loss_of_mean_goodness_with_threshold_two():
  """(softplus(2) + softplus(-2)) / 2 = 1.1269 at goodness zero."""
  assert float(losses.logistic_loss(0.0, 0.0, 2.0)) == pytest.approx(1.1269, abs=5e-5)


def test_symba_is_log_two_at_equality_and_knows_only_differences():
  g = jnp.asarray([0.0, 0.3, 2.0])
  np.testing.assert_allclose(losses.symba_loss(g, g), np.log(2), rtol=1e-6)
  with jax.enable_x64(True):
    pos, neg = jnp.asarray([0.3, 1.2]), jnp.asarray([0.5, 0.1])
    value, shifted = (np.asarray(losses.symba_loss(pos + c, neg + c, 4.0)) for c in (0, 7.5))
  np.testing.assert_allclose(value, np.log1p(np.exp(-4 * np.array([-0.2, 1.1]))), rtol=1e-12)
  np.testing.assert_allclose(shifted, value, rtol=1e-12)


def test_swish_has_its_minimum_where_it_should():
  """0 at equality; -0.2785 at alpha dG = 1.2785, so that negative losses are no fault."""
  assert float(losses.swish_loss(1.0, 1.0)) == 0
  at = jnp.linspace(0.0, 1.0, 20001)
  value = losses.swish_loss(at, jnp.zeros_like(at), 6.0)
  assert float(jnp.min(value)) == pytest.approx(-0.2785, abs=5e-5)
  assert 6 * float(at[jnp.argmin(value)]) == pytest.approx(1.2785, abs=3e-3)


def test_peer_signal_sums_to_zero_and_reaches_dead_units():
  """sum_j (mean mu - mu_j) = 0; the signal is not gated by h > 0, in the original form."""
  pre = jnp.asarray(np.random.default_rng(2).normal(size=(6, 5)), jnp.float32).at[:, 3].set(-4.0)
  mean = losses.peer_update(jnp.full(5, 0.5), jax.nn.relu(pre))
  loss, grad = jax.value_and_grad(lambda a: losses.peer_signal_loss(mean, a, 0.03))(pre)
  assert loss == 0
  np.testing.assert_allclose(jnp.sum(grad), 0, atol=1e-8)
  want = -0.03 * (np.mean(mean) - np.asarray(mean)) / 6
  np.testing.assert_allclose(grad, np.tile(want, (6, 1)), rtol=1e-5, atol=1e-9)
  assert np.all(np.asarray(grad)[:, 3] < 0), "descent must raise the unit that is dead"

  gated = jax.grad(
    lambda a: losses.peer_variance_loss(losses.peer_update(jnp.full(5, 0.5), jax.nn.relu(a)), 0.03)
  )(pre)
  assert np.all(np.asarray(gated)[:, 3] == 0)
  assert np.any(np.asarray(gated)[:, :3] != 0)


def test_peer_update_is_the_running_mean():
  h = np.random.default_rng(3).normal(size=(4, 3))
  got = losses.peer_update(jnp.asarray([0.5, 0.1, 0.2]), jnp.asarray(h, jnp.float32), 0.9)
  np.testing.assert_allclose(got, 0.9 * np.array([0.5, 0.1, 0.2]) + 0.1 * h.mean(0), rtol=1e-5)


@pytest.mark.parametrize("width", [10, 1000])
def test_the_two_peer_forms_differ_by_a_known_factor(width):
  """D / (2 (1 - momentum)), 5000 at D = 1000: the same "0.03" means two very different things."""
  h = jax.random.uniform(jax.random.key(0), (3, width), minval=0.1)  # all units live: no gate

  def forms(kind):
    def loss(a):
      mean = losses.peer_update(jnp.full(width, 0.5), jax.nn.relu(a), 0.9)
      if kind == "signal":
        return losses.peer_signal_loss(mean, a, 0.03)
      return losses.peer_variance_loss(mean, 0.03)

    return np.asarray(jax.grad(loss)(h), np.float64)

  signal, variance = forms("signal"), forms("variance")
  ratio = np.sum(signal * variance) / np.sum(variance**2)
  assert ratio == pytest.approx(width / (2 * (1 - 0.9)), rel=1e-4)
  np.testing.assert_allclose(signal, ratio * variance, rtol=1e-3, atol=1e-3 * np.max(abs(signal)))


def test_margin_loss_identities_in_float64():
  """The three forms of the smooth margin loss are one number."""
  rng = np.random.default_rng(4)
  scores, scale, margin = rng.uniform(-1, 1, (20, 7)), 9.0, 0.15
  label = rng.integers(0, 7, 20)
  with jax.enable_x64(True):
    got = np.asarray(
      jax.vmap(lambda s, y: losses.margin_cross_entropy(s, y, scale, margin))(
        jnp.asarray(scores), jnp.asarray(label)
      )
    )
  own = scores[np.arange(20), label]
  others = np.array([np.delete(s, y) for s, y in zip(scores, label, strict=True)])
  sum_form = np.log1p(np.sum(np.exp(scale * (others - own[:, None] + margin)), -1))
  smooth_max = np.log(np.sum(np.exp(scale * others), -1)) / scale
  softplus_form = np.log1p(np.exp(scale * (margin - own + smooth_max)))
  np.testing.assert_allclose(got, sum_form, rtol=1e-12)
  np.testing.assert_allclose(got, softplus_form, rtol=1e-12)


@pytest.mark.parametrize(
  ("classes", "margin", "value"),
  [(10, 0.0, 2.3026), (10, 0.1, 3.2373), (10, 0.2, 4.2121)]
  + [(100, 0.0, 4.6052), (100, 0.1, 5.5988), (100, 0.2, 6.5965)],
)
def test_margin_loss_at_equal_scores(classes, margin, value):
  loss = losses.margin_cross_entropy(jnp.full(classes, 0.3), jnp.int32(4), 10.0, margin)
  assert float(loss) == pytest.approx(value, abs=1e-4)
  assert float(loss) == pytest.approx(np.log(1 + (classes - 1) * np.exp(10 * margin)), rel=1e-5)


def test_margin_loss_gradient():
  """dL/dS_c = scale (q_c - [c = y]), with q the softmax of the margin logits."""
  scores, scale, margin = np.array([0.2, -0.4, 0.9, 0.1]), 6.0, 0.2
  logits = scale * (scores - margin * np.array([1, 0, 0, 0]))
  q = np.exp(logits) / np.sum(np.exp(logits))
  with jax.enable_x64(True):
    grad = jax.grad(losses.margin_cross_entropy)(jnp.asarray(scores), 0, scale, margin)
    grad = np.asarray(grad)
  np.testing.assert_allclose(grad, scale * (q - np.array([1, 0, 0, 0])), rtol=1e-12)


def test_hard_margin_is_the_limit_of_the_smooth_one():
  """smooth / scale - hard lies in [0, log K / scale]."""
  rng = np.random.default_rng(5)
  scores = jnp.asarray(rng.uniform(-1, 1, (200, 5)), jnp.float32)
  label = jnp.asarray(rng.integers(0, 5, 200))
  hard = jax.vmap(lambda s, y: losses.hard_margin_loss(s, y, 0.3))(scores, label)
  for scale in (20.0, 200.0):
    smooth = jax.vmap(lambda s, y, scale=scale: losses.margin_cross_entropy(s, y, scale, 0.3))(
      scores, label
    )
    gap = np.asarray(smooth / scale - hard)
    assert np.all(gap > -1e-6) and np.all(gap < np.log(5) / scale + 1e-6)
  assert np.any(np.asarray(hard) == 0) and np.any(np.asarray(hard) > 0)
  grad = jax.grad(losses.hard_margin_loss)(jnp.asarray([0.5, 0.4, -0.9]), 0, 0.3)
  np.testing.assert_array_equal(grad, [-1.0, 1.0, 0.0])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_with_smoothing(smoothing):
  rng = np.random.default_rng(6)
  logits, label = rng.normal(0, 3, (9, 4)), rng.integers(0, 4, 9)
  target = (1 - smoothing) * np.eye(4)[label] + smoothing / 4
  want = -np.sum(target * (logits - np.log(np.sum(np.exp(logits), -1, keepdims=True))), -1)
  got = losses.cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(label), smoothing)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, want, rtol=2e-5)
  half = losses.cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(label), smoothing)
  assert half.dtype == jnp.float32
