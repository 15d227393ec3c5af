"""Readouts against hand-made scores and the closed-form gradient of a linear softmax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import readouts

KEY = jax.random.key(0)
SCORES = tuple(
  jnp.asarray(np.random.default_rng(i).normal(size=(6, 4)), jnp.float32) for i in range(3)
)


@pytest.mark.parametrize("first", [0, 1, 2])
def test_score_sum_leaves_out_the_first_layers(first):
  readout = readouts.score_sum(first)
  np.testing.assert_allclose(
    readout.predict({}, {}, SCORES, ()), sum(np.asarray(s) for s in SCORES[first:]), rtol=1e-6
  )


def test_layers_without_scores_are_skipped_not_counted():
  mixed = (None, SCORES[1], None)
  np.testing.assert_array_equal(readouts.score_sum().predict({}, {}, mixed, ()), SCORES[1])
  np.testing.assert_array_equal(readouts.last_layer().predict({}, {}, mixed, ()), SCORES[1])
  np.testing.assert_array_equal(readouts.last_layer().predict({}, {}, SCORES, ()), SCORES[2])


def test_majority_wins_whatever_the_scores():
  """Two layers by a hair against one by a mile: the vote is the two layers', the sum the one's."""
  hair = jnp.asarray([[0.0, 1e-3, 0.0]])
  mile = jnp.asarray([[1000.0, 0.0, 0.0]])
  scores = (hair, hair, mile)
  assert int(jnp.argmax(readouts.vote().predict({}, {}, scores, ()))) == 1
  assert int(jnp.argmax(readouts.score_sum().predict({}, {}, scores, ()))) == 0


def test_ties_are_settled_by_the_sum_among_the_tied():
  """Classes 0 and 2 have one vote each, class 1 none but the second-largest sum."""
  first = jnp.asarray([[3.0, 2.9, 0.0, 0.0]])
  second = jnp.asarray([[0.0, 3.4, 3.5, 0.0]])
  votes = np.asarray(readouts.vote().predict({}, {}, (first, second), ()))
  assert votes.argmax() == 2
  assert votes[0, 1] < votes[0, 0] < votes[0, 2]
  total = np.asarray(first + second)
  assert total.argmax() == 1, "the example must tell vote and sum apart"


def test_votes_against_a_loop_over_rows():
  scores = tuple(
    jnp.asarray(np.random.default_rng(10 + i).normal(size=(300, 3)), jnp.float32) for i in range(3)
  )
  got = np.asarray(readouts.vote(1).predict({}, {}, scores, ())).argmax(-1)
  stacked = np.stack([np.asarray(s) for s in scores[1:]])
  for row, answer in enumerate(got):
    counts = np.bincount(stacked[:, row].argmax(-1), minlength=3)
    best = np.flatnonzero(counts == counts.max())
    assert answer == best[np.argmax(stacked[:, row].sum(0)[best])]


def test_equal_scores_vote_without_nan():
  flat = jnp.ones((2, 3))
  assert np.all(np.isfinite(readouts.vote().predict({}, {}, (flat, flat), ())))


def test_an_ensemble_is_less_impressed_by_one_sure_layer_than_the_sum():
  """Two layers lean to class 1, one is certain of class 0: the product of chances is the one's."""
  lean, sure = jnp.array([[0.0, 1.5]]), jnp.array([[9.0, 0.0]])
  scores = (sure, lean, lean, lean)
  got = readouts.mean_probability(0).predict({}, {}, scores, ())
  p, q = 1 / (1 + np.exp(1.5)), 1 / (1 + np.exp(-9.0))
  np.testing.assert_allclose(got[0, 0], (3 * p + q) / 4, rtol=1e-5)
  assert int(jnp.argmax(got)) == 1
  assert int(jnp.argmax(readouts.score_sum().predict({}, {}, scores, ()))) == 0


@pytest.mark.parametrize("make", [readouts.score_sum, readouts.vote])
def test_no_scores_is_an_error(make):
  with pytest.raises(ValueError, match="no layer with class scores from layer 4"):
    make(3).predict({}, {}, SCORES, ())
  with pytest.raises(ValueError, match="no layer with class scores"):
    readouts.last_layer().predict({}, {}, (None, None), ())


class TestSoftmaxHead:
  features = (
    jax.random.normal(jax.random.key(1), (8, 5)),
    jax.random.normal(jax.random.key(2), (8, 2, 3, 4)),
    jax.random.normal(jax.random.key(3), (8, 6)),
  )
  label = jnp.asarray([0, 1, 2, 0, 1, 2, 2, 1])

  def test_starts_at_log_k_without_an_opinion(self):
    head = readouts.softmax_head(3)
    params, _ = head.init(KEY, self.features)
    assert jax.tree.map(jnp.shape, params) == {"kernel": (5 + 24 + 6, 3)}
    assert not np.any(params["kernel"])
    assert float(head.loss(params, {}, self.features, self.label, KEY)[0]) == pytest.approx(
      np.log(3), rel=1e-6
    )

  @pytest.mark.parametrize("first", [0, 1, 2])
  def test_logits_and_gradient(self, first):
    """logits = sum_l f_l V_l; dV = f' (p - y) / B. A skipped layer must not enter."""
    head = readouts.softmax_head(3, first)
    shape = head.init(KEY, self.features)[0]["kernel"].shape
    kernel = 0.3 * jax.random.normal(jax.random.key(4), shape)
    used = [np.asarray(f, np.float64).reshape(8, -1) for f in self.features[first:]]
    parts = np.split(np.asarray(kernel, np.float64), np.cumsum([f.shape[1] for f in used])[:-1])
    logits = sum(f @ v for f, v in zip(used, parts, strict=True))
    np.testing.assert_allclose(
      head.predict({"kernel": kernel}, {}, (), self.features), logits, rtol=1e-4, atol=1e-5
    )
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    want = np.concatenate(used, -1).T @ (p - np.eye(3)[np.asarray(self.label)]) / 8
    loss = lambda p: head.loss(p, {}, self.features, self.label, KEY)[0]  # noqa: E731
    grad = jax.grad(loss)({"kernel": kernel})["kernel"]
    np.testing.assert_allclose(grad, want, rtol=1e-4, atol=1e-6)

  def test_starting_past_the_last_layer_is_an_error(self):
    with pytest.raises(ValueError, match="starts at layer 4"):
      readouts.softmax_head(3, 3).init(KEY, self.features)


def test_registry():
  config = readouts.ReadoutConfig(first_layer=1)
  for name in readouts.READOUTS:
    assert readouts.make_readout(name, config, 4).name == name
  np.testing.assert_allclose(
    readouts.make_readout("score_sum", config, 4).predict({}, {}, SCORES, ()), SCORES[1] + SCORES[2]
  )
  with pytest.raises(ValueError, match="'softmax'"):
    readouts.make_readout("softmax", config, 4)


def test_the_sum_of_logits_answers_as_the_product_of_softmaxes():
  """Normalising each layer's scores shifts all classes alike, so there is no such readout."""
  product = sum(jax.nn.log_softmax(s) for s in SCORES)
  got = readouts.score_sum().predict({}, {}, SCORES, ())
  np.testing.assert_array_equal(np.argmax(got, -1), np.argmax(product, -1))


def test_heads_on_the_last_layer_with_bias_and_double_softmax():
  """The released code of channel-wise FF: its loss cannot fall below log(1 + (K - 1) / e)."""
  config = readouts.ReadoutConfig(head_bias=True, head_loss="double_softmax")
  head = readouts.make_readout("softmax_last", config, 4)
  features = TestSoftmaxHead.features
  params, _ = head.init(KEY, features)
  assert params["kernel"].shape == (6, 4) and params["bias"].shape == (4,)
  label = jnp.arange(8, dtype=jnp.int32) % 4
  sure = {"kernel": params["kernel"], "bias": 50.0 * jax.nn.one_hot(1, 4)}
  floor = np.log(1 + 3 / np.e)
  np.testing.assert_allclose(
    head.loss(sure, {}, features, jnp.ones(8, jnp.int32), KEY)[0], floor, rtol=1e-5
  )
  kernel = jax.random.normal(KEY, (6, 4))
  logits = np.asarray(features[2], np.float64) @ np.asarray(kernel, np.float64) + [0, 1, 0, -1]
  both = {"kernel": kernel, "bias": jnp.asarray([0.0, 1.0, 0.0, -1.0])}
  np.testing.assert_allclose(head.predict(both, {}, (), features), logits, rtol=1e-4, atol=1e-5)
  q = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  want = np.mean(np.log(np.exp(q).sum(1)) - q[np.arange(8), np.asarray(label)])
  np.testing.assert_allclose(head.loss(both, {}, features, label, KEY)[0], want, rtol=1e-5)
  with pytest.raises(ValueError, match="not 'hinge'"):
    readouts.softmax_head(4, loss="hinge")


class TestNormHead:
  """The concatenating head of DTG-FF against numpy."""

  features = tuple(np.random.default_rng(d).normal(3, 2, (9, d)) for d in (4, 3, 5))
  label = np.arange(9) % 4

  def head(self, **options):
    return readouts.norm_head(4, **options)

  def params(self):
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {
      "norm": {"scale": draw(8), "shift": draw(8)},
      "head": {"kernel": draw(8, 4), "bias": draw(4)},
    }

  def test_loss_running_averages_and_answer(self):
    head, params = self.head(dropout_rate=0.0), self.params()
    features = tuple(jnp.asarray(f, jnp.float32) for f in self.features)
    fresh, stats = head.init(KEY, features)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, params)
    loss, moved = head.loss(params, stats, features, jnp.asarray(self.label), KEY)

    x = np.concatenate(self.features[1:], -1)
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def logits(mean, var):
      y = (x - mean) / np.sqrt(var + 1e-5) * p["norm"]["scale"] + p["norm"]["shift"]
      return y @ p["head"]["kernel"] + p["head"]["bias"]

    z = logits(x.mean(0), x.var(0))
    log_p = z - np.log(np.exp(z).sum(1, keepdims=True))
    target = 0.9 * np.eye(4)[self.label] + 0.1 / 4
    np.testing.assert_allclose(loss, -(target * log_p).sum(1).mean(), rtol=1e-5)
    want = {"mean": 0.1 * x.mean(0), "var": 0.9 + 0.1 * x.var(0)}
    for name, value in want.items():
      np.testing.assert_allclose(moved[name], value, rtol=1e-5)
    answer = head.predict(params, moved, (), features)
    np.testing.assert_allclose(answer, logits(want["mean"], want["var"]), rtol=1e-4, atol=1e-4)

  def test_which_layers_it_reads_and_that_it_drops_in_training_alone(self):
    features = tuple(jnp.asarray(f, jnp.float32) for f in self.features)
    for options, width in (({}, 8), ({"first_layer": 0}, 12)):
      assert self.head(**options).init(KEY, features)[1]["mean"].shape == (width,)
    head = self.head(first_layer=0, without_last=True)
    assert head.init(KEY, features)[1]["mean"].shape == (7,)
    head, params = self.head(dropout_rate=0.5), self.params()
    _, stats = head.init(KEY, features)
    losses = [head.loss(params, stats, features, self.label, jax.random.key(i)) for i in (0, 0, 1)]
    assert losses[0][0] == losses[1][0] != losses[2][0]
    np.testing.assert_array_equal(losses[0][1]["mean"], losses[2][1]["mean"])
