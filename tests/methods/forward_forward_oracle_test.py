"""Three steps of Forward-Forward against an independent float64 computation from the papers.

The recipes are those of the public codes at small sizes. Parameters must agree to float32 rounding
after they have moved far, so a factor of two, a sign, a gate, a stale activity or a decay in the
wrong place shows.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.numerics import float32
from fflax.core.readouts import score_sum, softmax_head
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.networks.initializers import Initializer
from fflax.networks.registry import make_network
from fflax.random import Role, role_key, step_key
from fflax.training import schedules
from fflax.training.optimizers import OptimizerConfig, make_optimizer
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.methods import numpy_oracles as oracle

CLASSES, ROWS, SHAPE, STEPS = 4, 12, (5, 5, 1), 3
DEEP, SHALLOW = (9, 9, 9), (9, 7)  # the last two of DEEP run stacked under one scan
PIXELS = 25


def _scatter(key, shape):
  """Irregular numbers of mean square 1 that compile much faster than random ones."""
  phase = (jax.random.key_data(key)[0] % 1009).astype(jnp.float32)
  return 2**0.5 * jnp.sin(jnp.arange(np.prod(shape)) ** 1.5 + phase).reshape(shape)


def _kernel(key, shape, dtype=jnp.float32):
  return (_scatter(key, shape) * shape[0] ** -0.5).astype(dtype)


def _bias(key, shape, dtype=jnp.float32, *, fan_in):
  """Not zero, so that decay of biases shows; unit 0 is dead on every example."""
  del fan_in
  return (0.1 * _scatter(key, shape)).at[0].set(-30.0).astype(dtype)


INITIALIZER = Initializer(_kernel, _bias)


def make_batch(seed, low=0.0):
  rng = np.random.default_rng(seed)
  image = rng.uniform(low, 1, (ROWS, *SHAPE)).astype(np.float32)
  return Batch(jnp.asarray(image), jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32))


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


def layers_of(trainer, state):
  """Flat float64 parameters of every layer."""
  return [
    {k: np.asarray(v, np.float64) for k, v in s.params["layer"]["dense"].items()}
    for s in trainer.layer_states(state)
  ]


def labels_shown(views):
  """The labels that stand in the two views `[2, B, 5, 5, 1]`, whatever their normalisation."""
  return np.asarray(views).reshape(2, ROWS, PIXELS)[..., :CLASSES].argmax(-1)


def close(got, want, what, rtol=1e-5, atol=3e-6):
  np.testing.assert_allclose(np.asarray(got), want, rtol=rtol, atol=atol, err_msg=what)


RECIPES = {
  "loewex": (
    {"normalization": "rms", "eps": 1e-8, "goodness": "sum", "theta": 1.0, "peer": "variance"},
    {"negatives": "uniform", "peer_strength": 3.0},
    {"straight_through": True, "strength": 3.0},
    "relu_ste",
    OptimizerConfig("sgd", 0.06, 0.9, 3e-3, decay_bias=True),
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
  network = make_network(
    "mlp", numerics=float32(), activation=activation, kernel_init=INITIALIZER, sizes=sizes
  )
  trainer = make_trainer(
    network,
    method,
    [score_sum(), softmax_head(CLASSES, 1)],
    image_shape=SHAPE,
    optimizer=make_optimizer(optimizer),
    readout_optimizer=make_optimizer(OptimizerConfig("dampened", 2.0, 0.9, 0.003)),
    schedule=schedules.interleaved() if hand.get("interleaved") else None,
  )
  state = jax.jit(trainer.init)(jax.random.key(3), make_batch(0))
  first = layers_of(trainer, state)
  by_hand = oracle.ForwardForward(
    layers_of(trainer, state), [make_oracle_optimizer() for _ in sizes], **shared, **hand
  )
  head = {"kernel": np.zeros((sum(sizes[1:]), CLASSES))}
  head_optimizer = oracle.Dampened(2.0, 0.9, 0.003, ("kernel",))
  at_max = own.get("label_at_max", False)

  @jax.jit
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
      close(present.layers[layer], want, f"scores of layer {layer}, step {t}", 5e-5, 5e-5)
    features = np.concatenate(by_hand.features(neutral(batch.image, at_max))[1:], -1)
    logits = features @ head["kernel"]
    close(present.readouts["softmax_head"], logits, f"readout logits, step {t}", 5e-5, 5e-5)

    true, wrong = labels_shown(views)
    np.testing.assert_array_equal(true, batch.label)
    if own.get("negatives") != "permuted":
      assert not np.any(wrong == true)
    losses, g_pos, g_neg = by_hand.step(
      with_label(batch.image, true, at_max), with_label(batch.image, wrong, at_max)
    )
    close(metrics["loss"], losses, f"losses, step {t}", 3e-5)
    close(metrics["goodness_pos"], g_pos, f"positive goodness, step {t}", 3e-5)
    close(metrics["goodness_neg"], g_neg, f"negative goodness, step {t}", 3e-5)

    q = oracle.softmax(logits)
    readout_loss = -np.log(q[np.arange(ROWS), true]).mean()
    close(metrics["readout_loss/softmax_head"], readout_loss, f"readout loss, step {t}", 5e-5)
    grad = features.T @ (q - np.eye(CLASSES)[true]) / ROWS
    head = head_optimizer(head, {"kernel": grad})
    close(state.readouts[1].params["kernel"], head["kernel"], f"readout, step {t}", 2e-5, 1e-5)

  for layer, (got, want) in enumerate(zip(layers_of(trainer, state), by_hand.layers, strict=True)):
    for part in ("kernel", "bias"):
      # Adam divides by the gradient's size, so rounding of small gradients shows.
      atol = 4e-5 if optimizer.name == "adam" else 1e-5
      close(got[part], want[part], f"{part} of layer {layer}", 1e-5, atol)
      moved = np.abs(want[part] - first[layer][part])[..., 1:].max()
      assert moved > 0.01, f"{part} of layer {layer} hardly moved ({moved}): the test is blind"
    if own.get("peer_strength"):
      mean = trainer.layer_states(state)[layer].stats["method"]["mean_activity"]
      close(mean, by_hand.means[layer], f"mean activity of layer {layer}", 2e-5)
