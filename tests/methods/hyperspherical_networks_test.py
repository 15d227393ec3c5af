"""Hyperspherical FF on deep conv nets: an auxiliary head at every layer, two ways to answer, and
losses among some of the classes.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core.numerics import float32
from fflax.core.prototypes import unit
from fflax.core.readouts import last_layer, score_sum
from fflax.methods.backprop import BackpropConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.methods.registry import make_method
from fflax.networks.registry import make_network
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.methods.tiny import CLASSES, SHALLOW, SHAPE, jit, make_batch, make_mlp


def make(network, shape, method="hyperspherical", config=None, classes=10):
  config = config or HypersphericalConfig(normalize_input=False, prototypes_per_class=2)
  return make_trainer(
    network,
    make_method(method, config, classes),
    [score_sum(), last_layer()],
    image_shape=shape,
    optimizer=optax.sgd(0.1),
  )


@pytest.mark.parametrize(
  ("name", "sizes"),
  # Heads pool to 2x2, and VGG8's last map of 32x32 images is 2x2 itself.
  [("vgg8", (128, 256, 256, 512, 512, 512, 512)), ("resnet18", (64, *(64, 128, 256, 512) * 2))],
)
def test_heads_of_deep_networks(name, sizes):
  """Full width, shapes only: a head reads its layer's map, prototypes live in the head's space."""
  trainer = make(make_network(name, numerics=float32()), (32, 32, 3))
  batch = Batch(
    jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32), jax.ShapeDtypeStruct((2,), jnp.int32)
  )
  state = jax.eval_shape(trainer.init, jax.random.key(0), batch)
  heads = [s.params["method"] for s in trainer.layer_states(state)]
  kernels = [next(k for k in jax.tree.leaves(h["aux"]) if k.ndim == 4).shape for h in heads]
  assert sorted(kernels) == sorted((3, 3, channels, 256) for channels in sizes)
  assert {h["prototypes"].shape for h in heads} == {(10, 2, 4 * 256)}
  answers = jax.eval_shape(trainer.answer, state, batch.image)
  assert [s.shape for s in answers.layers] == [(2, 10)] * len(sizes)
  assert {k: a.shape for k, a in answers.readouts.items()} == dict.fromkeys(
    ("score_sum", "last_layer"), (2, 10)
  )


@pytest.mark.parametrize(
  ("name", "options"),
  [
    # A short VGG; the stem, and a block with either shortcut.
    ("small_cnn", {"channels": (3, 4, 5), "pool_after": (2, 3), "pool": "avg"}),
    ("resnet18", {"width": 1 / 32}),
  ],
)
def test_two_steps_move_every_head_and_layer(name, options):
  config = HypersphericalConfig(normalize_input=False, aux_features=3, margin=0.1)
  network = make_network(name, numerics=float32(), **options)
  if name == "resnet18":
    network = network._replace(layers=tuple(network.layers[i] for i in (0, 1, 3)))
  trainer = make(network, (8, 8, 3), config=config)
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.normal(size=(8, 8, 8, 3)), jnp.float32)
  batch = Batch(image, jnp.arange(8, dtype=jnp.int32))

  first = jit(trainer.init)(jax.random.key(0), batch)
  step = jit(trainer.step)
  state, before = step(first, batch)
  state, after = step(state, batch)
  answers = jit(trainer.answer)(state, batch.image)
  assert np.isfinite(after["loss"]).all()
  assert np.mean(after["loss"]) < np.mean(before["loss"])
  for old, new in zip(trainer.layer_states(first), trainer.layer_states(state), strict=True):
    for part in ("layer", "method"):
      moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), old.params[part], new.params[part])
      assert any(jax.tree.leaves(moved))
    assert np.any(old.params["method"]["prototypes"] != new.params["method"]["prototypes"])
  total = sum(answers.layers)
  np.testing.assert_allclose(answers.readouts["score_sum"], total, rtol=1e-5, atol=1e-6)
  np.testing.assert_array_equal(answers.readouts["last_layer"], answers.layers[-1])


@pytest.mark.parametrize(
  ("method", "config", "part", "axis"),
  [
    ("hyperspherical", HypersphericalConfig(loss_classes=(0, 2)), "prototypes", 0),
    ("backprop", BackpropConfig(head="cosine", loss_classes=(0, 2)), "prototypes", 0),
    ("backprop", BackpropConfig(loss_classes=(0, 2)), "kernel", 1),
  ],
)
def test_classes_that_do_not_compete_keep_still(method, config, part, axis):
  """A prototype pushed away by tasks that do not hold its class would be forgotten by training."""
  trainer = make(make_mlp(SHALLOW), SHAPE, method, config, CLASSES)
  batch = make_batch(0)
  batch = batch._replace(label=2 * (batch.label % 2))
  state = jit(trainer.init)(jax.random.key(0), batch)
  new, metrics = jit(trainer.step)(state, batch)
  assert np.isfinite(metrics["loss"]).all()

  def own(state):
    extras = trainer.layer_states(state)[-1].params["method"]
    return np.moveaxis(np.asarray({**extras, **extras.get("head", {})}[part]), axis, 0)

  before, after = own(state), own(new)
  for c in range(CLASSES):
    assert np.any(before[c] != after[c]) == (c in (0, 2))
  if method == "hyperspherical":  # own and other score of two classes: the metrics show both
    scores = np.asarray(trainer.answer(state, batch.image).layers[-1])
    other = np.where(batch.label == 0, scores[:, 2], scores[:, 0])
    np.testing.assert_allclose(metrics["goodness_neg"][-1], other.mean(), atol=1e-5)


def test_cosine_head_of_the_control():
  """The same numbers as prototypes of the last layer have, times the scale."""
  config = BackpropConfig(head="cosine", scale=7.0)
  trainer = make(make_mlp(SHALLOW), SHAPE, "backprop", config, CLASSES)
  image = make_batch(0).image
  state = jit(trainer.init)(jax.random.key(0), make_batch(0))
  answers = trainer.answer(state, image)
  assert answers.layers[0] is None
  p = trainer.layer_states(state)[-1].params["method"]["head"]["prototypes"][:, 0]
  z = trainer.features(state, image)[-1]
  np.testing.assert_allclose(
    answers.readouts["score_sum"], 7 * unit(z) @ unit(p).T, rtol=1e-4, atol=1e-5
  )


@pytest.mark.parametrize("classes", [(1,), (0, 0), (0, CLASSES), (-1, 2)])
@pytest.mark.parametrize("make_config", [HypersphericalConfig, BackpropConfig])
def test_impossible_classes_of_the_loss(make_config, classes):
  name = "backprop" if make_config is BackpropConfig else "hyperspherical"
  with pytest.raises(ValueError, match="^loss_classes must be"):
    make(make_mlp(SHALLOW), SHAPE, name, make_config(loss_classes=classes), CLASSES)


@pytest.mark.parametrize("change", [{"head": "round"}, {"scale": 0.0}])
def test_bad_heads_are_named(change):
  with pytest.raises(ValueError, match=next(iter(change))):
    make_method("backprop", BackpropConfig(**change), CLASSES)
