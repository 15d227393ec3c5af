"""Three steps of Forward-Forward against an independent float64 computation from the papers.

The recipes are those of the public codes at small sizes. Parameters must agree to float32 rounding
after they have moved far, so a factor of two, a sign, a gate, a stale activity or a decay in the
wrong place shows.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.numerics import float32
from fflax.core.pbit_config import PbitConfig
from fflax.core.readouts import score_sum, softmax_head
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.networks.activations import Pbits
from fflax.networks.registry import make_network
from fflax.random import Role, role_key, step_key
from fflax.training import schedules
from fflax.training.optimizers import OptimizerConfig, make_optimizer
from fflax.training.step import make_trainer
from fflax.types import Batch, LayerOut
from tests.methods import numpy_oracles as oracle
from tests.methods.tiny import (
  CLASSES,
  DEEP,
  ROWS,
  SHALLOW,
  SHAPE,
  assert_close,
  assert_layers,
  jit,
  layers64,
  make_batch,
  make_initializer,
  make_mlp,
)

STEPS = 3
PIXELS = 25


def with_label(image, label, at_max=False):
  """The overlay, by hand."""
  flat = np.asarray(image, np.float64).reshape(len(image), -1)
  value = flat.max(-1) if at_max else np.ones(len(flat))
  flat = flat.copy()
  flat[:, :CLASSES] = 0
  flat[np.arange(len(flat)), np.asarray(label)] = value
  return flat


def neutral(image, at_max=False):
  flat = np.asarray(image, np.float64).reshape(len(image), -1)
  value = flat.max(-1) if at_max else np.ones(len(flat))
  flat = flat.copy()
  flat[:, :CLASSES] = value[:, None] / CLASSES
  return flat


def labels_shown(views):
  """The labels that stand in the two views `[2, B, 5, 5, 1]`, whatever their normalisation."""
  return np.asarray(views).reshape(2, ROWS, PIXELS)[..., :CLASSES].argmax(-1)


RECIPES = {
  "loewex": (
    {"normalization": "rms", "eps": 1e-8, "goodness": "sum", "theta": 1.0, "peer": "variance"},
    {"negatives": "uniform", "peer_strength": 3.0},
    {"straight_through": True, "strength": 3.0},
    "relu_ste",
    OptimizerConfig("sgd", 0.06, 0.9, 3e-3, no_decay=()),
    lambda: oracle.Sgd(0.06, 0.9, 3e-3, ("kernel", "bias")),
  ),
  "variance, gated": (
    {"normalization": "rms", "eps": 1e-8, "goodness": "sum", "theta": 1.0, "peer": "variance"},
    {"negatives": "uniform", "peer_strength": 3.0},
    {"strength": 3.0},
    "relu",
    OptimizerConfig("sgd", 0.1, 0.0, 3e-3),
    lambda: oracle.Sgd(0.1, 0.0, 3e-3, ("kernel",)),
  ),
  "matlab": (
    {"normalization": "rms", "eps": 1e-8, "goodness": "sum", "theta": 1.0, "peer": "signal"},
    {"negatives": "softmax_hard", "peer_strength": 0.3},
    {"strength": 0.3},
    "relu",
    OptimizerConfig("dampened", 0.5, 0.9, 0.01),
    lambda: oracle.Dampened(0.5, 0.9, 0.01, ("kernel",)),
  ),
  "pezeshki": (
    {"normalization": "l2", "eps": 1e-4, "goodness": "mean", "theta": 2.0},
    {"negatives": "permuted", "label_at_max": True},
    {},
    "relu",
    OptimizerConfig("adam", 0.03),
    lambda: oracle.Adam(0.03),
  ),
  "symba": (
    {"normalization": "l2", "eps": 1e-6, "goodness": "mean", "theta": 0.0, "loss": "symba"},
    {"negatives": "goodness_hard", "alpha": 4.0},
    {"alpha": 4.0, "interleaved": True},
    "relu",
    OptimizerConfig("adam", 0.05),
    lambda: oracle.Adam(0.05),
  ),
  "swish": (
    {"normalization": "l2", "eps": 1e-6, "goodness": "mean", "theta": 0.0, "loss": "swish"},
    {"negatives": "uniform", "alpha": 6.0},
    {"alpha": 6.0},
    "relu",
    OptimizerConfig("sgd", 2.0, 0.9),
    lambda: oracle.Sgd(2.0, 0.9, 0.0, ()),
  ),
  "min-goodness, cold": (
    {"normalization": "rms", "eps": 1e-6, "goodness": "sum", "theta": 0.5, "temperature": 2.0},
    {"maximize": False},
    {"sign": -1},
    "relu",
    OptimizerConfig("sgd", 0.2, 0.9),
    lambda: oracle.Sgd(0.2, 0.9, 0.0, ()),
  ),
}


@pytest.mark.parametrize("name", RECIPES)
def test_three_steps(name):
  shared, own, hand, activation, optimizer, make_oracle_optimizer = RECIPES[name]
  sizes = DEEP if name in ("loewex", "matlab") else SHALLOW
  method = forward_forward(ForwardForwardConfig(**shared, **own), CLASSES)
  network = make_mlp(sizes, activation)
  trainer = make_trainer(
    network,
    method,
    [score_sum(), softmax_head(CLASSES, 1)],
    image_shape=SHAPE,
    optimizer=make_optimizer(optimizer),
    readout_optimizer=make_optimizer(OptimizerConfig("dampened", 2.0, 0.9, 0.003)),
    schedule=schedules.interleaved() if hand.get("interleaved") else None,
  )
  state = jit(trainer.init)(jax.random.key(3), make_batch(0))
  first = layers64(trainer, state)
  by_hand = oracle.ForwardForward(
    layers64(trainer, state), [make_oracle_optimizer() for _ in sizes], **shared, **hand
  )
  head = {"kernel": np.zeros((sum(sizes[1:]), CLASSES))}
  head_optimizer = oracle.Dampened(2.0, 0.9, 0.003, ("kernel",))
  at_max = own.get("label_at_max", False)

  @jit
  def probe(state, batch):
    """The present answer, the views that the step will show, and the step."""
    present = trainer.answer(state, batch.image)
    source = {
      "softmax_hard": present.readouts["softmax_head"],
      "goodness_hard": sum(present.layers),
    }.get(own.get("negatives"))
    key = role_key(step_key(state.key, state.step), Role.VIEWS)
    return present, method.views(key, batch, source), *trainer.step(state, batch)

  for t in range(STEPS):
    batch = make_batch(t)
    present, views, state, metrics = probe(state, batch)

    # The answer, the readout's features and hard negatives come from the weights before the step.
    candidates = [
      by_hand.total_goodness(with_label(batch.image, np.full(ROWS, c), at_max))
      for c in range(CLASSES)
    ]
    for layer in range(len(sizes)):
      want = hand.get("sign", 1) * np.stack([c[layer] for c in candidates], -1)
      assert_close(present.layers[layer], want, f"scores of layer {layer}, step {t}", 5e-5, 5e-5)
    features = np.concatenate(by_hand.features(neutral(batch.image, at_max))[1:], -1)
    logits = features @ head["kernel"]
    assert_close(present.readouts["softmax_head"], logits, f"readout logits, step {t}", 5e-5, 5e-5)

    true, wrong = labels_shown(views)
    np.testing.assert_array_equal(true, batch.label)
    if own.get("negatives") != "permuted":
      assert not np.any(wrong == true)
    losses, g_pos, g_neg = by_hand.step(
      with_label(batch.image, true, at_max), with_label(batch.image, wrong, at_max)
    )
    assert_close(metrics["loss"], losses, f"losses, step {t}", 3e-5)
    assert_close(metrics["goodness_pos"], g_pos, f"positive goodness, step {t}", 3e-5)
    assert_close(metrics["goodness_neg"], g_neg, f"negative goodness, step {t}", 3e-5)

    q = oracle.softmax(logits)
    readout_loss = -np.log(q[np.arange(ROWS), true]).mean()
    assert_close(
      metrics["readout_loss/softmax_head"], readout_loss, f"readout loss, step {t}", 5e-5
    )
    grad = features.T @ (q - np.eye(CLASSES)[true]) / ROWS
    head = head_optimizer(head, {"kernel": grad})
    assert_close(
      state.readouts[1].params["kernel"], head["kernel"], f"readout, step {t}", 2e-5, 1e-5
    )

  # Adam divides by the gradient's size, so rounding of small gradients shows.
  atol = 4e-5 if optimizer.name == "adam" else 1e-5
  assert_layers(layers64(trainer, state), by_hand.layers, first, atol)
  if own.get("peer_strength"):
    for layer, s in enumerate(trainer.layer_states(state)):
      mean = s.stats["method"]["mean_activity"]
      assert_close(mean, by_hand.means[layer], f"mean activity of layer {layer}", 2e-5)


def test_initial_goodness_and_loss_of_the_public_codes():
  """E[G_1] = D/2 after "rms" with variance 1/fan_in; 1/(3 fan_in) after "l2" with PyTorch's init.

  The two scales differ by a thousand; a preset with the wrong one does not learn at its rates.
  """
  rng = np.random.default_rng(0)
  batch = Batch(
    jnp.asarray(rng.uniform(0, 1, (32, 28, 28, 1)), jnp.float32),
    jnp.asarray(rng.integers(0, 10, 32), jnp.int32),
  )

  def first_step(config, init, sizes):
    network = make_network(
      "mlp", numerics=float32(), activation="relu", kernel_init=init, sizes=sizes
    )
    trainer = make_trainer(
      network,
      forward_forward(config, 10),
      [score_sum()],
      image_shape=(28, 28, 1),
      optimizer=make_optimizer(OptimizerConfig("sgd", 1e-3)),
    )

    def run(key):
      return trainer.step(trainer.init(key, batch), batch)[1]

    return jit(run)(jax.random.key(17))

  matlab = first_step(ForwardForwardConfig(), "fan_in_normal", (1000,))
  # A unit's variance over the weights is that of relu(N(0, 1))**2, 5/4; units are independent.
  sigma = (1000 * 5 / 4) ** 0.5
  assert abs(float(matlab["goodness_pos"][0]) - 500) < 4 * sigma
  pezeshki = first_step(
    ForwardForwardConfig(normalization="l2", goodness="mean", theta=2.0), "torch_linear", (500, 500)
  )
  np.testing.assert_allclose(pezeshki["goodness_pos"], (4.25e-4, 6.67e-4), rtol=0.3)
  np.testing.assert_allclose(pezeshki["loss"], 1.1269, atol=1e-3)


def test_permuting_hidden_units_changes_no_goodness_and_lengths_are_not_handed_on():
  """Both hold for Hinton's layers; a layer norm or a mean over the wrong axis would break them."""
  method = forward_forward(ForwardForwardConfig(goodness="mean"), CLASSES)
  trainer = make_trainer(
    make_mlp(SHALLOW),
    method,
    [score_sum()],
    image_shape=SHAPE,
    optimizer=make_optimizer(OptimizerConfig("sgd", 1e-3)),
  )
  batch = make_batch(0)
  state = jit(trainer.init)(jax.random.key(0), batch)
  order = np.random.default_rng(0).permutation(SHALLOW[0])

  def with_dense(state, first, second):
    layers = [
      dataclasses.replace(s, params={"layer": {"dense": d}, "method": {}})
      for s, d in zip(state.layers, (first, second), strict=True)
    ]
    return dataclasses.replace(state, layers=tuple(layers))

  one, two = (s.params["layer"]["dense"] for s in state.layers)
  permuted = with_dense(
    state,
    {"kernel": one["kernel"][:, order], "bias": one["bias"][order]},
    {"kernel": two["kernel"][order], "bias": two["bias"]},
  )
  longer = with_dense(state, jax.tree.map(lambda w: 7 * w, one), two)
  answer = jit(trainer.answer)
  base, same, long = (answer(s, batch.image).layers for s in (state, permuted, longer))
  for layer in range(2):
    np.testing.assert_allclose(same[layer], base[layer], rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(long[0], 49 * base[0], rtol=1e-5)
  np.testing.assert_allclose(long[1], base[1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("style", ["overlay", "prepend", "pattern"])
def test_views_differ_only_in_the_label(style):
  """The same image in both views, the candidate views and the neutral one; nothing else moves."""
  config = ForwardForwardConfig(label_style=style, normalization="none", pattern_size=20)
  method = forward_forward(config, CLASSES)
  batch = make_batch(1)
  pos, neg = np.asarray(jit(method.views)(jax.random.key(0), batch, None)).reshape(2, ROWS, -1)
  plain = np.asarray(jit(method.plain_view)(batch.image)).reshape(ROWS, -1)
  scored = np.asarray(jit(method.score_views)(batch.image)).reshape(CLASSES, ROWS, -1)
  code = {"overlay": CLASSES, "prepend": CLASSES, "pattern": 20}[style]
  pixels = np.asarray(batch.image).reshape(ROWS, -1)[:, CLASSES if style == "overlay" else 0 :]
  for view in (pos, neg, plain, *scored):
    np.testing.assert_array_equal(view[:, code:], pixels)
  label = np.asarray(batch.label)
  np.testing.assert_array_equal(pos, scored[label, np.arange(ROWS)])
  assert not np.any(np.all(pos == neg, axis=-1))
  np.testing.assert_allclose(plain[:, :code], scored.mean(0)[:, :code], rtol=1e-6)
  if style != "pattern":
    np.testing.assert_array_equal(pos[:, :code], np.eye(CLASSES)[label])


@pytest.mark.parametrize("style", ["channels", "image_pattern"])
def test_labels_of_convolutional_networks(style):
  """The image as it is, at its place, and beside or upon it nothing but the label's own code."""
  config = ForwardForwardConfig(
    label_style=style, label_value=0.5, normalization="none", pattern_seed=3
  )
  method = forward_forward(config, CLASSES)
  batch = make_batch(1)
  pos, neg = np.asarray(jit(method.views)(jax.random.key(0), batch, None))
  plain = np.asarray(jit(method.plain_view)(batch.image))
  scored = np.asarray(jit(method.score_views)(batch.image))
  image, label = np.asarray(batch.image), np.asarray(batch.label)

  def code(view):
    """What the label left, `[B, H, W, c]`."""
    if style == "image_pattern":
      return view - image
    np.testing.assert_array_equal(view[..., :1], image)
    return view[..., 1:]

  if style == "channels":
    codes = np.broadcast_to(0.5 * np.eye(CLASSES)[:, None, None], (CLASSES, 5, 5, CLASSES))
  else:
    codes = 0.5 * np.sign(scored[:, 0] - image[0])
    assert len(np.unique(codes.reshape(CLASSES, -1), axis=0)) == CLASSES
  for c in range(CLASSES):
    np.testing.assert_allclose(code(scored[c]), np.stack([codes[c]] * ROWS), atol=1e-6)
  np.testing.assert_allclose(code(pos), codes[label], atol=1e-6)
  wrong = np.stack([np.abs(code(neg)[i] - codes).sum((1, 2, 3)).argmin() for i in range(ROWS)])
  assert np.all(wrong != label)
  np.testing.assert_allclose(code(neg), codes[wrong], atol=1e-6)
  np.testing.assert_allclose(code(plain), np.stack([codes.mean(0)] * ROWS), atol=1e-6)


def test_goodness_of_maps():
  """One step on convolutional maps: each layer's loss from its own map, as the field defines it.

  Label maps, mean goodness over height, width and channels, unit mean square between the layers;
  batch statistics over positives and negatives together.
  """
  config = ForwardForwardConfig(label_style="channels", goodness="mean", theta=2.0)
  network = make_network(
    "resnet18", numerics=float32(), width=1 / 16, kernel_init=make_initializer(False)
  )
  network = network._replace(layers=network.layers[:4:3])  # stem, and a block with a shortcut
  method = forward_forward(config, CLASSES)
  trainer = make_trainer(
    network,
    method,
    [score_sum()],
    image_shape=SHAPE,
    optimizer=make_optimizer(OptimizerConfig("sgd", 0.1)),
  )
  batch = make_batch(0)
  state = jit(trainer.init)(jax.random.key(3), batch)
  new, metrics = jit(trainer.step)(state, batch)
  key = role_key(step_key(state.key, state.step), Role.VIEWS)
  x = np.asarray(method.views(key, batch, None), np.float64)
  assert x.shape == (2, ROWS, 5, 5, 1 + CLASSES)
  for layer, s, moved, loss, g_pos in zip(
    network.layers,
    trainer.layer_states(state),
    trainer.layer_states(new),
    metrics["loss"],
    metrics["goodness_pos"],
    strict=True,
  ):
    np.testing.assert_allclose((x**2).mean((2, 3, 4)), 1, rtol=1e-4)
    flat = jnp.asarray(x.reshape(-1, *x.shape[2:]), jnp.float32)
    out, _ = layer.apply(s.params["layer"], s.stats["layer"], flat, train=True)
    y = np.asarray(out.act, np.float64).reshape(2, ROWS, *out.act.shape[1:])
    goodness = (y**2).mean((2, 3, 4))
    pos, neg = np.log1p(np.exp(2 - goodness[0])), np.log1p(np.exp(goodness[1] - 2))
    assert_close(loss, (pos + neg).mean() / 2, f"loss of {layer.name}", 1e-4)
    assert_close(g_pos, goodness[0].mean(), f"goodness of {layer.name}", 1e-4)
    for old, after in zip(jax.tree.leaves(s.params), jax.tree.leaves(moved.params), strict=True):
      assert float(jnp.abs(old - after).max()) > 0
    x = y / np.sqrt((y**2).mean((2, 3, 4), keepdims=True))


def test_hybrid_supervision_shows_no_label():
  """Unsupervised: the positive view is the image, and layers have no class scores."""
  method = forward_forward(
    ForwardForwardConfig(supervision="hybrid", normalization="none"), CLASSES
  )
  batch = make_batch(2)
  pos, neg = np.asarray(jit(method.views)(jax.random.key(0), batch, None))
  np.testing.assert_array_equal(pos, batch.image)
  np.testing.assert_array_equal(method.plain_view(batch.image), batch.image)
  assert method.score_views is None and method.negatives_from is None
  assert np.all((neg[:, None] == np.asarray(batch.image)[None]).any(axis=1))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("supervision", "none"),
    ("label_style", "overlays"),
    ("negatives", "hard"),
    ("normalization", "layer"),
    ("goodness", "max"),
    ("loss", "hinge"),
    ("peer", "matlab"),
    ("temperature", 0.0),
    ("alpha", -1.0),
    ("eps", 1e-20),
    ("peer_momentum", 1.0),
  ],
)
def test_bad_configurations_are_named(field, value):
  with pytest.raises(ValueError, match=field):
    forward_forward(ForwardForwardConfig(**{field: value}), CLASSES)


def test_goodness_hard_negatives_need_a_goodness_to_climb():
  """With scores -G every weight would be clipped to one value: uniform negatives, silently."""
  with pytest.raises(ValueError, match="goodness_hard"):
    forward_forward(ForwardForwardConfig(negatives="goodness_hard", maximize=False), CLASSES)


def test_overlay_needs_room_for_the_image():
  method = forward_forward(ForwardForwardConfig(), 10)
  with pytest.raises(ValueError, match="prepend"):
    method.plain_view(jnp.zeros((2, 3, 3, 1)))


def test_permuted_once_keeps_its_negatives_and_permuted_draws_them_anew():
  """Redrawn every step, the full-batch preset would train on other data than its source does."""
  batch = make_batch(0)

  def views(negatives, seed):
    method = forward_forward(ForwardForwardConfig(negatives=negatives), CLASSES)
    return np.asarray(method.views(jax.random.key(seed), batch, None))

  np.testing.assert_array_equal(views("permuted_once", 0), views("permuted_once", 1))
  assert (views("permuted", 0) != views("permuted", 1)).any()


@pytest.mark.parametrize("kind", ["sum", "mean"])
def test_goodness_of_p_bits_has_the_gradient_of_their_flips(kind):
  """At one unit a site, z^2 = z: the slope of the mean goodness is that of the probability."""
  activation = Pbits(PbitConfig(units=1))
  method = forward_forward(ForwardForwardConfig(goodness=kind), 4)
  v = jnp.asarray(np.random.default_rng(0).normal(size=(1, 2, 6)), jnp.float32)

  def goodness(v, key):
    act, square = activation.emit(key, v)
    out = LayerOut(v, act, act, square, act_square=square)
    return jnp.sum(method.goodness({}, {}, out))

  got = jax.vmap(jax.grad(goodness), (None, 0))(v, jax.random.split(jax.random.key(0), 64))
  p = 1 / (1 + np.exp(-(np.asarray(v, np.float64) - 0.5)))
  want = p * (1 - p) / (1 if kind == "sum" else 6)
  np.testing.assert_allclose(got, np.broadcast_to(want, got.shape), rtol=1e-4)
