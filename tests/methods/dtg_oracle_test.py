"""DTG-FF against an independent numpy step in float64; gradients there are central differences."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core import readouts
from fflax.core.numerics import float32
from fflax.methods.dtg import DtgConfig, classifier_features, dtg
from fflax.methods.dtg_mlp import DtgMlpConfig, dtg_mlp, inverse_softplus
from fflax.networks.registry import make_network
from fflax.training.step import make_trainer
from fflax.types import Batch, LayerOut, Place
from tests.methods import tiny

KEY = jax.random.key(0)


def to64(tree):
  return jax.tree.map(lambda a: np.array(a, np.float64), tree)


def descend(params, grads, rate):
  return jax.tree.map(lambda p, g: p - rate * g, params, grads)


def sigmoid(x):
  return 1 / (1 + np.exp(-x))


def softplus(x):
  return np.logaddexp(0, x)


def cross_entropy(logits, label):
  return np.mean(np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(label)), label])


def layer_norm(x, eps=1e-5):
  x = x - x.mean(-1, keepdims=True)
  return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps)


def conv_relu(x, conv):
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = x.shape[1] - 2, x.shape[2] - 2
  places = ((i, j) for i in range(3) for j in range(3))
  products = (x[:, i : i + height, j : j + width] @ conv["kernel"][i, j] for i, j in places)
  return np.maximum(sum(products) + conv["bias"], 0)


def bins(x, grid=2):
  """Means over bins that may overlap, as adaptive pooling has them."""
  if x.ndim == 2:
    return x
  spans = [[(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in x.shape[1:3]]
  return np.concatenate(
    [x[:, a:b, c:d].mean((1, 2)) for a, b in spans[0] for c, d in spans[1]], axis=-1
  )


def own_logits(own, head, x):
  """psi of one layer, and z."""
  z = conv_relu(x, own["layer"]["conv"])
  temperature = 0.5 + 1.5 * sigmoid(own["method"]["alpha"])
  return bins(z**2) / temperature @ head["kernel"] + head["bias"], z


def test_a_step_of_two_conv_layers_and_both_heads():
  rate = 0.5
  network = make_network(
    "small_cnn",
    numerics=float32(),
    kernel_init=tiny.make_initializer(False),
    channels=(3, 4),
    pool_after=(1,),
    pool="avg",
  )
  trainer = make_trainer(
    network,
    dtg(DtgConfig(dropout=0.0), tiny.CLASSES),
    [readouts.score_sum(), readouts.norm_head(tiny.CLASSES)],
    image_shape=tiny.SHAPE,
    optimizer=optax.sgd(rate),
  )
  batch = tiny.make_batch(0)
  state = tiny.jit(trainer.init)(KEY, batch)
  new, metrics = tiny.jit(trainer.step)(state, batch)
  answer = tiny.jit(trainer.answer)(state, batch.image)

  x, label, scores = to64(batch.image), np.asarray(batch.label), []
  after = trainer.layer_states(new)
  for i, layer in enumerate(trainer.layer_states(state)):
    own, head = to64(layer.params), to64(layer.stats["method"]["head"])
    assert own["method"]["alpha"] == 0, "training starts in the middle of the bounds"

    def loss(own, head=head, x=x):
      return cross_entropy(own_logits(own, head, x)[0], label)

    psi, z = own_logits(own, head, x)
    scores.append(psi)
    tiny.assert_close(metrics["loss"][i], loss(own), f"loss of layer {i}")
    tiny.assert_close(metrics["temperature"][i], 1.25, "temperature before the update")
    want = descend(own, tiny.numeric_gradient(loss, own), rate)
    jax.tree.map(lambda a, b, i=i: tiny.assert_close(a, b, f"layer {i}"), after[i].params, want)
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(own), strict=True):
      assert np.abs(a - b).max() > 1e-3, "hardly moved: the test is blind"
    jax.tree.map(np.testing.assert_array_equal, after[i].stats, layer.stats)
    x = layer_norm(z[:, :4, :4].reshape(len(z), 2, 2, 2, 2, 3).mean((2, 4)) if i == 0 else z)
  tiny.assert_close(answer.readouts["score_sum"], sum(scores), "logit sum")
  # The head reads z: not normalised, of the layers but the first, from before the update.
  tiny.assert_close(new.readouts[1].stats["mean"], 0.1 * z.mean((0, 1, 2)), "features")


def test_scale_and_temperature_are_one_degree_of_freedom():
  """(W, c) s and T s^2 leave logits and what is handed on as they were: T adds no function."""
  rng = np.random.default_rng(0)
  z = jnp.asarray(np.maximum(rng.normal(size=(6, 4, 4, 3)), 0), jnp.float32)
  scores, handed = [], []
  for s in (1.0, 1.5):
    method = dtg(DtgConfig(temperature=(0.8 * s**2, 0.8 * s**2), eps=1e-12), 4)
    out = LayerOut(z, s * z, s * z)
    params, stats = method.init_layer(KEY, out, Place(0, 2))
    assert params == {}, "equal bounds leave nothing to learn"
    scores.append(method.class_scores(params, stats, jax.tree.map(lambda a: a[None], out)))
    handed.append(method.hand_on(out, train=False))
  np.testing.assert_allclose(scores[0], scores[1], rtol=1e-4)
  np.testing.assert_allclose(handed[0], handed[1], rtol=1e-4, atol=1e-5)
  silent = method.class_scores(params, stats, jax.tree.map(lambda a: 0 * a[None], out))
  np.testing.assert_array_equal(silent, np.tile(stats["head"]["bias"], (6, 1)))


def test_readouts_of_unit_columns_and_dropout_of_what_is_handed_on():
  z = jnp.ones((5, 4, 4, 3))
  out = LayerOut(z, z, z)
  method = dtg(DtgConfig(readout="unit_columns", normalization="none"), 4)
  _, stats = method.init_layer(KEY, out, Place(0, 1))
  lengths = np.linalg.norm(stats["head"]["kernel"], axis=0)
  np.testing.assert_allclose(lengths, 1, rtol=1e-5)
  np.testing.assert_array_equal(method.hand_on(out, train=False, key=None), z)
  assert 0 < np.mean(np.asarray(method.hand_on(out, train=True, key=KEY)) == 0) < 0.3
  np.testing.assert_array_equal(classifier_features(out), np.ones((5, 3)))


def test_parameters_and_buffers_of_vgg8():
  """The totals of the specification: logit-sum 9,148,423; with the head 9,179,153."""
  heads = [readouts.score_sum(), readouts.norm_head(10)]
  trainer = make_trainer(
    make_network("vgg8", numerics=float32()),
    dtg(DtgConfig(), 10),
    heads,
    image_shape=(32, 32, 3),
    optimizer=optax.adamw(1e-3),
  )
  image, label = jnp.zeros((2, 32, 32, 3)), jnp.zeros(2, jnp.int32)
  state = jax.eval_shape(trainer.init, KEY, Batch(image, label))
  size = lambda tree: sum(a.size for a in jax.tree.leaves(tree))  # noqa: E731
  layers = size([s.params for s in state.layers])
  assert layers == 9_148_423
  assert layers + size(state.readouts[1].params) == 9_179_153
  assert size([s.stats for s in state.layers]) == 107_590
  moments = size([s.opt_state for s in state.layers])
  assert moments == 2 * layers + 7, "Adam's two moments and count, and no buffers"


# --- the dense variant ----------------------------------------------------------------------------


def overlaid(image, code):
  x = to64(image).reshape(len(image), -1).copy()
  x[:, : tiny.CLASSES] = code
  return x


def batch_norm_head(own, features, eps=1e-5):
  x = np.concatenate(features, -1)
  x = (x - x.mean(0)) / np.sqrt(x.var(0) + eps) * own["norm"]["scale"] + own["norm"]["shift"]
  return x @ own["head"]["kernel"] + own["head"]["bias"]


@pytest.mark.parametrize("end_to_end", [True, False])
def test_a_step_of_the_dense_variant(end_to_end):
  """Own losses stay their own; the classifier reaches all layers but the last, or none."""
  rate, classes = 0.5, tiny.CLASSES
  method = dtg_mlp(DtgMlpConfig(end_to_end=end_to_end), classes)

  def views(key, batch, class_scores):
    """The method's own, but for wrong labels that the test knows."""
    shown = method.views(key, batch, class_scores)
    wrong = (batch.label + 1) % classes
    return shown.at[1].set(method.score_views(batch.image)[wrong, jnp.arange(len(wrong))])

  head = readouts.norm_head(classes, 0, without_last=True, dropout_rate=0, smoothing=0)
  trainer = make_trainer(
    tiny.make_mlp((6, 5, 4), dead_unit=False),
    method._replace(views=views),
    [head],
    image_shape=tiny.SHAPE,
    optimizer=optax.sgd(rate),
  )
  batch = tiny.make_batch(0)
  state = tiny.jit(trainer.init)(KEY, batch)
  new, metrics = tiny.jit(trainer.step)(state, batch)

  label, eye = np.asarray(batch.label), np.eye(classes)
  both = [overlaid(batch.image, eye[y]) for y in (label, (label + 1) % classes)]
  neutral = overlaid(batch.image, np.full(classes, 1 / classes))
  params = to64([s.params for s in trainer.layer_states(state)])
  own_head = to64(state.readouts[0].params)

  inputs, first = [], []  # what the losses of the layers see, and where their thresholds begin
  x = both
  for p in params:
    inputs.append(x)
    dense = p["layer"]["dense"]
    z = [np.maximum(a @ dense["kernel"] + dense["bias"], 0) for a in x]
    first.append(np.log(np.expm1(np.mean([(a**2).mean() for a in z]))))
    x = [layer_norm(a) for a in z]

  def own_loss(i, p):
    dense, own = p["layer"]["dense"], p["method"]
    g = [(np.maximum(a @ dense["kernel"] + dense["bias"], 0) ** 2).mean(-1) for a in inputs[i]]
    temperature = 0.1 + 1.9 * sigmoid(own["alpha"])
    theta = softplus(first[i] + own["threshold"])
    both = softplus(theta - g[0] / temperature) + softplus(g[1] / temperature - theta)
    return 0.1 * both.mean()

  def classifier(everything):
    layers, head = everything
    x, features = neutral, []
    for p in layers[:-1]:
      pre = x @ p["layer"]["dense"]["kernel"] + p["layer"]["dense"]["bias"]
      features.append(pre)
      x = layer_norm(np.maximum(pre, 0))
    return cross_entropy(batch_norm_head(head, features), label)

  grads = [tiny.numeric_gradient(lambda p, i=i: own_loss(i, p), p) for i, p in enumerate(params)]
  from_above, head_grads = tiny.numeric_gradient(classifier, (params, own_head))
  if end_to_end:
    grads = jax.tree.map(np.add, grads, from_above)
  assert not np.any(from_above[-1]["layer"]["dense"]["kernel"]), "no part of the classifier"
  want = [descend(p, g, rate) for p, g in zip(params, grads, strict=True)]
  got = [s.params for s in trainer.layer_states(new)]
  jax.tree.map(lambda a, b: tiny.assert_close(a, b, "layers"), got, want)
  jax.tree.map(
    lambda a, b: tiny.assert_close(a, b, "classifier"),
    new.readouts[0].params,
    descend(own_head, head_grads, rate),
  )
  losses = [own_loss(i, p) for i, p in enumerate(params)]
  answer = classifier((params, own_head))
  losses[-1] += answer if end_to_end else 0
  tiny.assert_close(metrics["loss"], losses, "losses")
  tiny.assert_close(metrics["readout_loss/norm_head"], answer, "loss of the classifier")
  tiny.assert_close(metrics["temperature"], np.full(3, 1.05), "temperatures")
  tiny.assert_close(metrics["threshold"], softplus(np.array(first)), "thresholds")
  second, later = tiny.jit(trainer.step)(new, batch)
  for a, b in zip(trainer.layer_states(new), trainer.layer_states(second), strict=True):
    np.testing.assert_array_equal(a.stats["method"]["first"], b.stats["method"]["first"])
  assert np.all(np.asarray(later["threshold"]) != np.asarray(metrics["threshold"]))


def test_inverse_softplus():
  y = jnp.asarray([1e-3, 0.3, 1.0, 19.0, 21.0, 500.0])
  np.testing.assert_allclose(jax.nn.softplus(inverse_softplus(y)), y, rtol=1e-5)
  assert np.isfinite(inverse_softplus(jnp.zeros(())))


def test_views_of_the_dense_variant():
  method = dtg_mlp(DtgMlpConfig(label_value=2.0), tiny.CLASSES)
  batch = tiny.make_batch(0)
  shown = np.asarray(method.views(KEY, batch, None)).reshape(3, tiny.ROWS, -1)
  label, codes = np.asarray(batch.label), shown[:, :, : tiny.CLASSES]
  np.testing.assert_array_equal(codes[0], 2 * np.eye(tiny.CLASSES)[label])
  assert np.all(codes[1].sum(1) == 2) and not np.any(codes[1][np.arange(tiny.ROWS), label])
  np.testing.assert_array_equal(codes[2], np.full_like(codes[2], 0.5))
  rest = tiny.flat64(batch.image)[:, tiny.CLASSES :]
  np.testing.assert_array_equal(shown[:, :, tiny.CLASSES :], np.stack([rest] * 3))


@pytest.mark.parametrize(
  ("make", "config", "message"),
  [
    (dtg, DtgConfig(readout="learned"), "learned"),
    (dtg, DtgConfig(temperature=(2.0, 1.0)), "temperature"),
    (dtg, DtgConfig(grid=0), "grid"),
    (dtg, DtgConfig(dropout=1.0), "dropout"),
    (dtg, DtgConfig(normalization="batch"), "batch"),
    (dtg_mlp, DtgMlpConfig(weight=0.0), "weight"),
    (dtg_mlp, DtgMlpConfig(temperature=(0.0, 1.0)), "temperature"),
    (dtg_mlp, DtgMlpConfig(normalization="batch"), "batch"),
  ],
)
def test_impossible_settings_are_refused(make, config, message):
  with pytest.raises(ValueError, match=message):
    make(config, 4)


def test_runs_that_cannot_be_are_refused():
  network = tiny.make_mlp((4,))
  options = {"image_shape": tiny.SHAPE, "optimizer": optax.sgd(0.1)}
  method = dtg_mlp(DtgMlpConfig(), tiny.CLASSES)
  with pytest.raises(ValueError, match="learn from a trained readout"):
    make_trainer(network, method, [readouts.score_sum()], **options)
  with pytest.raises(ValueError, match="more than 4 input values, not 4"):
    method.plain_view(jnp.zeros((2, 2, 2, 1)))
