"""Three steps of the backprop controls against a backward pass written by hand in float64.

If the control is wrong, every comparison of the library is.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.normalize import channel_rms_norm as rms
from fflax.core.normalize import layer_norm
from fflax.core.readouts import last_layer, score_sum
from fflax.methods.backprop import BackpropConfig, backprop
from fflax.training.optimizers import OptimizerConfig, make_optimizer
from fflax.training.step import make_trainer
from fflax.types import LayerOut
from tests.methods import numpy_oracles as oracle
from tests.methods.tiny import (
  CLASSES,
  DEEP,
  SHAPE,
  assert_close,
  assert_layers,
  flat64,
  jit,
  layers64,
  make_batch,
  make_mlp,
)

RECIPES = {
  "single head, sgd": (
    {"smoothing": 0.0, "normalization": "none", "eps": 1e-6},
    "last",
    OptimizerConfig("sgd", 0.2, 0.9, 0.01),
    lambda: oracle.Sgd(0.2, 0.9, 0.01, ("kernel", "head_kernel")),
  ),
  "deep supervision, through lengths": (
    {"smoothing": 0.1, "normalization": "rms", "eps": 1e-6},
    "all",
    OptimizerConfig("sgd", 0.1, 0.9, 0.01, no_decay=()),
    lambda: oracle.Sgd(0.1, 0.9, 0.01, ("kernel", "bias", "head_kernel", "head_bias")),
  ),
  "deep supervision, adam": (
    {"smoothing": 0.0, "normalization": "none", "eps": 1e-6},
    "all",
    OptimizerConfig("adam", 0.02),
    lambda: oracle.Adam(0.02),
  ),
}


def parts(trainer, state):
  layers = layers64(trainer, state)
  for flat, s in zip(layers, trainer.layer_states(state), strict=True):
    for name, w in s.params["method"].get("head", {}).items():
      flat[f"head_{name}"] = np.asarray(w, np.float64)
  return layers


@pytest.mark.parametrize("name", RECIPES)
def test_three_steps(name):
  shared, heads, optimizer, make_oracle_optimizer = RECIPES[name]
  trainer = make_trainer(
    make_mlp(DEEP, dead_unit=False),
    backprop(BackpropConfig(heads=heads, **shared), CLASSES),
    [score_sum(), last_layer()],
    image_shape=SHAPE,
    optimizer=make_optimizer(optimizer),
  )
  state = jit(trainer.init)(jax.random.key(3), make_batch(0))
  first = parts(trainer, state)
  assert ["head_kernel" in p for p in first] == [heads == "all", heads == "all", True]
  by_hand = oracle.Backprop(
    parts(trainer, state), [make_oracle_optimizer() for _ in DEEP], **shared
  )

  @jit
  def probe(state, batch):
    return trainer.answer(state, batch.image), *trainer.step(state, batch)

  for t in range(3):
    batch = make_batch(t)
    logits = by_hand.forward(flat64(batch.image))[-1]
    losses = by_hand.step(flat64(batch.image), np.asarray(batch.label))
    answer, state, metrics = probe(state, batch)
    total = sum(z for z in logits if z is not None)
    assert_close(answer.readouts["score_sum"], total, f"summed logits, step {t}", 3e-5)
    assert_close(answer.readouts["last_layer"], logits[-1], f"last logits, step {t}", 3e-5)
    assert_close(metrics["loss"], losses, f"losses, step {t}", 3e-5)
  atol = 4e-5 if optimizer.name == "adam" else 1e-5
  assert_layers(parts(trainer, state), by_hand.layers, first, atol)


def test_heads_of_maps_read_the_spatial_mean():
  method = backprop(BackpropConfig(), CLASSES)
  out = jax.random.normal(jax.random.key(0), (1, 6, 3, 2, 5))
  layer_out = LayerOut(out, out, out)
  params = {"head": {"kernel": jnp.ones((5, CLASSES)), "bias": jnp.arange(4.0)}}
  want = np.asarray(out[0]).mean((1, 2)).sum(-1)[:, None] + np.arange(4)
  np.testing.assert_allclose(
    jit(method.class_scores)(params, {}, layer_out), want, rtol=1e-4, atol=1e-5
  )


def test_a_dead_example_does_not_poison_the_gradient():
  """End-to-end gradients pass through the length normalisation, also where a layer is silent."""
  trainer = make_trainer(
    make_mlp((9, 9), dead_unit=False),
    backprop(BackpropConfig(normalization="rms"), CLASSES),
    [score_sum()],
    image_shape=SHAPE,
    optimizer=make_optimizer(OptimizerConfig("sgd", 0.1)),
  )
  batch = make_batch(0)
  state = jit(trainer.init)(jax.random.key(0), batch)
  dense = state.layers[0].params["layer"]["dense"]
  dense["bias"] = jnp.full_like(dense["bias"], -100.0)
  new, _ = jit(trainer.step)(state, batch)
  assert all(np.all(np.isfinite(w)) for s in new.layers for w in jax.tree.leaves(s.params))


@pytest.mark.parametrize(("name", "own"), [("channel_layer", layer_norm), ("channel_rms", rms)])
def test_norms_over_channels_are_of_maps_too_and_never_of_the_image(name, own):
  method = backprop(BackpropConfig(normalization=name, eps=0.1), CLASSES)
  for shape in ((2, 5), (2, 3, 3, 5)):
    x = np.random.default_rng(0).standard_normal(shape, np.float32)
    np.testing.assert_array_equal(method.hand_on(LayerOut(x, x, x), train=True), own(x, 0.1))
    np.testing.assert_array_equal(method.plain_view(x), x)


def test_an_image_left_as_it_is_keeps_the_norm_between_layers():
  method = backprop(BackpropConfig(normalization="rms", normalize_input=False), CLASSES)
  x = jax.random.normal(jax.random.key(0), (2, 5))
  np.testing.assert_array_equal(method.plain_view(x), x)
  lengths = jnp.mean(jnp.square(method.hand_on(LayerOut(x, x, x), train=True)), axis=-1)
  np.testing.assert_allclose(lengths, 1.0, rtol=1e-5)


@pytest.mark.parametrize(
  ("field", "value"),
  [("heads", "both"), ("normalization", "layer"), ("smoothing", 1.0), ("eps", 1e-14)],
)
def test_bad_configurations_are_named(field, value):
  options = {"normalization": "rms", field: value}
  with pytest.raises(ValueError, match=field):
    backprop(BackpropConfig(**options), CLASSES)
