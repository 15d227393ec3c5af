"""Three steps of hyperspherical FF against an independent float64 computation, and what it implies.

The oracle uses the closed-form gradients; a missing stop-gradient, a margin at the wrong class, a
prototype that decays or an EMA of raw features would differ by far more than rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.readouts import score_sum
from fflax.methods.hyperspherical import HypersphericalConfig, hyperspherical
from fflax.training.optimizers import OptimizerConfig, make_optimizer
from fflax.training.step import make_trainer
from tests.methods import numpy_oracles as oracle
from tests.methods.tiny import (
  CLASSES,
  DEEP,
  SHALLOW,
  SHAPE,
  assert_close,
  assert_layers,
  flat64,
  jit,
  layers64,
  make_batch,
  make_mlp,
)

SHARED = {"scale": 10.0, "margin": 0.1, "pooling": 6.0, "loss": "smooth", "eps": 1e-6}
RECIPES = {
  "learned, mixture, sgd": (
    {**SHARED, "normalization": "rms"},
    {"prototypes": "learned", "prototypes_per_class": 2},
    OptimizerConfig("sgd", 0.1, 0.9, 0.01),
    lambda: oracle.Sgd(0.1, 0.9, 0.01, ("kernel",)),
  ),
  "learned, decaying extras, adam": (
    {**SHARED, "normalization": "l2", "margin": 0.0},
    {"prototypes": "learned"},
    OptimizerConfig("adam", 0.03),
    lambda: oracle.Adam(0.03),
  ),
  "decaying prototypes": (
    {**SHARED, "normalization": "none"},
    {"prototypes": "learned"},
    OptimizerConfig("sgd", 0.05, 0.0, 0.1, no_decay=("bias",)),
    lambda: oracle.Sgd(0.05, 0.0, 0.1, ("kernel", "prototypes")),
  ),
  "fixed, hard margin": (
    {**SHARED, "normalization": "rms", "loss": "hard", "margin": 0.3},
    {"prototypes": "fixed_etf"},
    OptimizerConfig("sgd", 0.1, 0.9),
    lambda: oracle.Sgd(0.1, 0.9, 0.0, ()),
  ),
  "moving averages": (
    {**SHARED, "normalization": "rms"},
    {"prototypes": "ema", "prototypes_per_class": 2, "ema_decay": 0.8},
    OptimizerConfig("sgd", 0.1, 0.9),
    lambda: oracle.Sgd(0.1, 0.9, 0.0, ()),
  ),
  "moving averages around a running mean": (
    {**SHARED, "normalization": "rms"},
    {"prototypes": "ema_centered", "ema_decay": 0.8, "center_rate": 0.3},
    OptimizerConfig("sgd", 0.1, 0.9),
    lambda: oracle.Sgd(0.1, 0.9, 0.0, ()),
  ),
}


def make(sizes, config, optimizer):
  return make_trainer(
    make_mlp(sizes, dead_unit=False),
    hyperspherical(config, CLASSES),
    [score_sum()],
    image_shape=SHAPE,
    optimizer=make_optimizer(optimizer),
  )


def parts(trainer, state):
  """Flat float64 parameters of every layer, prototypes among them."""
  layers = layers64(trainer, state)
  for flat, s in zip(layers, trainer.layer_states(state), strict=True):
    for name, x in {**s.params["method"], **s.stats["method"]}.items():
      flat[name] = np.asarray(x, np.float64)
  return layers


@pytest.mark.parametrize("name", RECIPES)
def test_three_steps(name):
  shared, own, optimizer, make_oracle_optimizer = RECIPES[name]
  sizes = DEEP if "mixture" in name else SHALLOW
  trainer = make(sizes, HypersphericalConfig(**shared, **own), optimizer)
  state = jit(trainer.init)(jax.random.key(3), make_batch(0))
  first = parts(trainer, state)
  by_hand = oracle.Hyperspherical(
    parts(trainer, state),
    [make_oracle_optimizer() for _ in sizes],
    mode=own["prototypes"],
    decay=own.get("ema_decay", 0.0),
    rate=own.get("center_rate", 0.0),
    **shared,
  )

  @jit
  def probe(state, batch):
    return trainer.answer(state, batch.image), *trainer.step(state, batch)

  for t in range(3):
    batch = make_batch(t)
    scores = by_hand.scores(flat64(batch.image))
    losses = by_hand.step(flat64(batch.image), np.asarray(batch.label))
    answer, state, metrics = probe(state, batch)
    for layer in range(len(sizes)):
      assert_close(answer.layers[layer], scores[layer], f"scores of layer {layer}, step {t}")
    assert_close(answer.readouts["score_sum"], sum(scores), f"summed scores, step {t}")
    assert_close(metrics["loss"], losses, f"losses, step {t}", 3e-5)
    own_score = [s[np.arange(len(s)), np.asarray(batch.label)].mean() for s in scores]
    assert_close(metrics["goodness_pos"], own_score, f"own score, step {t}")

  got, want = parts(trainer, state), by_hand.layers
  atol = 4e-5 if optimizer.name == "adam" else 1e-5
  if own["prototypes"].startswith("fixed"):
    for g, f, w in zip(got, first, want, strict=True):
      np.testing.assert_array_equal(g.pop("prototypes"), f.pop("prototypes"))
      w.pop("prototypes")
  assert_layers(got, want, first, atol)


def test_training_sends_no_gradient_to_the_input_and_prediction_does():
  """With stop-gradients in the deployed graph every attack would look harmless."""
  trainer = make(SHALLOW, HypersphericalConfig(), OptimizerConfig("sgd", 0.1))
  batch = make_batch(0)
  state = jit(trainer.init)(jax.random.key(0), batch)

  @jit
  def gradients(image):
    training = jax.grad(lambda x: jnp.sum(trainer.step(state, batch._replace(image=x))[1]["loss"]))(
      image
    )
    deployed = [
      jax.grad(lambda x, i=i: jnp.sum(trainer.answer(state, x).layers[i][:, 0]))(image)
      for i in range(2)
    ]
    return training, deployed

  training, deployed = gradients(batch.image)
  assert not np.any(training)
  reached = [np.linalg.norm(d.reshape(len(d), -1), axis=-1) > 1e-3 for d in deployed]
  assert all(np.mean(r) > 0.5 for r in reached), "only examples that are dead may be silent"


def test_moving_averages_receive_no_gradient():
  """Prototypes of "ema" are statistics: the optimiser never sees them."""
  trainer = make(SHALLOW, HypersphericalConfig(prototypes="ema", ema_decay=1.0),
                 OptimizerConfig("sgd", 0.5, 0.9, 0.1, no_decay=("bias",)))  # fmt: skip
  batch = make_batch(0)
  state = jit(trainer.init)(jax.random.key(0), batch)
  new, _ = jit(trainer.step)(state, batch)
  for a, b in zip(trainer.layer_states(state), trainer.layer_states(new), strict=True):
    assert a.params["method"] == {}
    np.testing.assert_array_equal(a.stats["method"]["prototypes"], b.stats["method"]["prototypes"])
    assert np.any(a.params["layer"]["dense"]["kernel"] != b.params["layer"]["dense"]["kernel"])


def test_dead_layer_has_the_loss_of_equal_scores():
  """All features zero: log(1 + (K-1) exp(alpha m)), and training stays finite."""
  trainer = make(SHALLOW, HypersphericalConfig(margin=0.1), OptimizerConfig("sgd", 0.1))
  batch = make_batch(0)._replace(image=jnp.zeros((12, *SHAPE)))
  state = jit(trainer.init)(jax.random.key(0), batch)
  dense = state.layers[0].params["layer"]["dense"]
  dense["bias"] = jnp.full_like(dense["bias"], -1.0)
  new, metrics = jit(trainer.step)(state, batch)
  np.testing.assert_allclose(metrics["loss"][0], np.log(1 + 3 * np.exp(10 * 0.1)), rtol=1e-5)
  assert all(np.all(np.isfinite(w)) for s in new.layers for w in jax.tree.leaves(s.params))


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("prototypes", "mean"),
    ("loss", "soft"),
    ("normalization", "layer"),
    ("scale", 0.0),
    ("prototypes_per_class", 0),
    ("margin", -0.1),
    ("ema_decay", 1.5),
    ("center_rate", -0.1),
    ("eps", 1e-20),
  ],
)
def test_bad_configurations_are_named(field, value):
  with pytest.raises(ValueError, match=field):
    hyperspherical(HypersphericalConfig(**{field: value}), CLASSES)
