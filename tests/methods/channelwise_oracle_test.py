"""Channel-wise FF against closed forms and an independent numpy (float64) step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core import losses, readouts
from fflax.core.goodness import blockwise_mean_of_squares
from fflax.methods.channelwise import ChannelwiseConfig, channelwise
from fflax.training.step import make_trainer
from fflax.types import LayerOut, Place
from tests.methods import tiny

KEY = jax.random.key(0)
J, S, ROWS = 4, 3, 12


def out_of(y):
  """A layer's output on one view."""
  y = jnp.asarray(y, jnp.float32)[None]
  return LayerOut(y, y, y)


def maps(seed=0):
  return np.random.default_rng(seed).normal(size=(ROWS, 3, 2, J * S))


LABEL = jnp.asarray(np.random.default_rng(0).integers(0, J, ROWS), jnp.int32)
CWC = ChannelwiseConfig()


def loss_of(y, config=CWC, label=LABEL, stats=None):
  method = channelwise(config, J)
  return method.local_loss({}, stats or {}, out_of(y), label, None, KEY)[0]


def goodness64(y):
  return (y.astype(np.float64) ** 2).reshape(ROWS, -1, J, S).mean((1, 3))


def test_goodness_of_a_block_is_its_mean_square():
  y = maps()
  got = jax.vmap(lambda s: blockwise_mean_of_squares(s, J))(jnp.asarray(y, jnp.float32) ** 2)
  np.testing.assert_allclose(got, goodness64(y), rtol=1e-5)
  scores = channelwise(ChannelwiseConfig(), J).class_scores({}, {}, out_of(y))
  np.testing.assert_allclose(scores, goodness64(y), rtol=1e-5)
  with pytest.raises(ValueError, match="12 channels cannot be split into 5"):
    blockwise_mean_of_squares(jnp.ones(12), 5)


def test_equal_goodness_costs_log_j():
  np.testing.assert_allclose(loss_of(np.full((ROWS, 2, 2, J * S), 1.7)), np.log(J), rtol=1e-6)


def test_gradient_is_the_closed_form():
  """dL/dY = 2 / (N S H W) (softmax(G)_block - [block is the label's]) Y."""
  y, g = maps(), goodness64(maps())
  p = np.exp(g) / np.exp(g).sum(1, keepdims=True)
  error = np.repeat(p - np.eye(J)[np.asarray(LABEL)], S, axis=1)
  want = 2 / (ROWS * S * 6) * error[:, None, None, :] * y
  got = jax.grad(lambda y: loss_of(y))(jnp.asarray(y, jnp.float32))
  np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-7)


def test_symmetries():
  """The sign of Y is not seen; permuted blocks permute the classes."""
  y = maps()
  np.testing.assert_allclose(loss_of(-y), loss_of(y), rtol=1e-6)
  order = np.array([2, 0, 3, 1])
  blocks = y.reshape(ROWS, 3, 2, J, S)[:, :, :, order].reshape(y.shape)
  moved = jnp.asarray(np.argsort(order)[np.asarray(LABEL)], jnp.int32)
  np.testing.assert_allclose(loss_of(blocks, label=moved), loss_of(y), rtol=1e-5)


def test_losses():
  y, g = maps(), goodness64(maps())
  own = g[np.arange(ROWS), np.asarray(LABEL)]
  others = (g.sum(1) - own) / (J - 1)
  soft = lambda z: np.log1p(np.exp(z))  # noqa: E731
  pvn = 0.5 * (soft(2.0 - own) + soft(others - 2.0)).mean()
  cwc = (np.log(np.exp(g).sum(1)) - own).mean()
  np.testing.assert_allclose(loss_of(y), cwc, rtol=1e-5)
  np.testing.assert_allclose(loss_of(y, ChannelwiseConfig(loss="pvn")), pvn, rtol=1e-5)
  want = 0.28 * cwc + 0.72 * pvn
  np.testing.assert_allclose(loss_of(y, ChannelwiseConfig(loss="cwg")), want, rtol=1e-5)
  np.testing.assert_allclose(loss_of(y, ChannelwiseConfig(loss="cwc_clamped")), cwc, rtol=1e-5)


def test_the_clamped_loss_neither_overflows_nor_moves_a_clipped_block():
  g = jnp.asarray([1e4, 3.0, 0.0, 0.0])
  np.testing.assert_allclose(losses.clamped_competitive_loss(g, jnp.int32(1)), 47.0, rtol=1e-5)
  slope = jax.grad(losses.clamped_competitive_loss)(g, jnp.int32(1))
  assert float(slope[0]) == 0.0 and np.all(np.isfinite(slope))


def test_pvn_at_the_threshold_is_log_two():
  y = np.full((ROWS, 1, 1, J * S), np.sqrt(2.0))
  np.testing.assert_allclose(loss_of(y, ChannelwiseConfig(loss="pvn")), np.log(2), rtol=1e-6)


def test_a_single_class_has_nothing_to_lose():
  method = channelwise(ChannelwiseConfig(), 1)
  y = jnp.asarray(maps(), jnp.float32)
  loss = lambda y: method.local_loss({}, {}, out_of(y), jnp.zeros(ROWS, jnp.int32), None, KEY)[0]  # noqa: E731
  assert float(loss(y)) == 0.0 and not np.any(jax.grad(loss)(y))


def test_groups_of_classes():
  """Twelve classes in four groups: neighbours by default, any table on request."""
  y, fine = maps(), jnp.asarray(np.arange(ROWS), jnp.int32)
  for table in ((), (0, 1, 2, 3, 3, 2, 1, 0, 0, 1, 2, 3)):
    method = channelwise(ChannelwiseConfig(competing=(J, 12), class_groups=table), 12)
    stats = method.init_layer(KEY, out_of(y[:, 0, 0]), Place(0, 2))[1]
    loss, _ = method.local_loss({}, stats, out_of(y), fine, None, KEY)
    coarse = np.asarray(table or np.arange(12) // 3)
    np.testing.assert_allclose(loss, loss_of(y, label=jnp.asarray(coarse)), rtol=1e-6)
    assert method.class_scores({}, stats, out_of(y)) is None
    assert method.init_layer(KEY, out_of(y[:, 0, 0]), Place(1, 2)) == ({}, {})
    assert method.init_layer(KEY, out_of(y[:, 0, 0]), Place(5, 6)) == ({}, {})


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"loss": "hinge"}, "hinge"),
    ({"theta": float("nan")}, "theta"),
    ({"cwc_weight": 1.5}, "cwc_weight"),
    ({"competing": (0,)}, "positive numbers of classes, not 0"),
    ({"competing": (5,)}, "names 5 classes, but the data has 4"),
    ({"competing": (3,)}, "4 classes cannot be split into 3"),
    ({"competing": (2,), "class_groups": (0, 1, 1)}, "each of 4 classes"),
    ({"competing": (2,), "class_groups": (0, 0, 0, 0)}, "no group empty"),
  ],
)
def test_impossible_settings_are_refused(options, message):
  with pytest.raises(ValueError, match=message):  # noqa: PT012
    method = channelwise(ChannelwiseConfig(**options), 4)
    method.init_layer(KEY, out_of(np.ones((2, 60))), Place(0, 1))


def test_channels_that_are_no_multiple_are_refused():
  method = channelwise(ChannelwiseConfig(), J)
  with pytest.raises(ValueError, match="10 channels cannot be split into 4"):
    method.init_layer(KEY, out_of(np.ones((2, 10))), Place(0, 1))


def test_a_step_of_two_dense_layers_and_a_head():
  """Goodness, competition, gradient, SGD and hand-on, by hand in float64."""
  sizes, rate = (8, 12), 0.5
  network = tiny.make_mlp(sizes, dead_unit=False)
  head = readouts.softmax_head(J, -1, bias=True, name="softmax_last")
  trainer = make_trainer(
    network,
    channelwise(ChannelwiseConfig(), J),
    [head],
    image_shape=tiny.SHAPE,
    optimizer=optax.sgd(rate),
  )
  batch = tiny.make_batch(0)
  state = tiny.jit(trainer.init)(KEY, batch)
  first = tiny.layers64(trainer, state)
  new, metrics = tiny.jit(trainer.step)(state, batch)

  h, want, found = tiny.flat64(batch.image), [], []
  onehot = np.eye(J)[np.asarray(batch.label)]
  for layer in first:
    y = np.maximum(h @ layer["kernel"] + layer["bias"], 0)
    size = y.shape[1] // J
    g = (y**2).reshape(len(y), J, size).mean(2)
    p = np.exp(g) / np.exp(g).sum(1, keepdims=True)
    found.append(-np.log((p * onehot).sum(1)).mean())
    dv = 2 / (len(y) * size) * np.repeat(p - onehot, size, axis=1) * y
    want.append(
      {"kernel": layer["kernel"] - rate * h.T @ dv, "bias": layer["bias"] - rate * dv.sum(0)}
    )
    h = y
  tiny.assert_close(metrics["loss"], found, "losses")
  got = tiny.layers64(trainer, new)
  for layer, (g, w) in enumerate(zip(got, want, strict=True)):
    for part in w:
      tiny.assert_close(g[part], w[part], f"{part} of layer {layer}")
      assert np.abs(w[part] - first[layer][part]).max() > 1e-3
  error = onehot - 1 / J
  tiny.assert_close(new.readouts[0].params["kernel"], rate * h.T @ error / len(h), "head")
  tiny.assert_close(new.readouts[0].params["bias"], rate * error.mean(0), "head's bias")
