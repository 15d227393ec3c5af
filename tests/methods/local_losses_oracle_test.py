"""Three steps of local cross-entropy, predsim and Mono-Forward against float64 formulas by hand.

The oracle knows neither the library's heads nor its norms: every gradient below is calculus. What
the ladder from DTG-FF to deep supervision promises (neighbours start equal) is asserted, too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core.heads import uniform_head
from fflax.core.numerics import bfloat16, float32
from fflax.core.readouts import score_sum, softmax_head
from fflax.methods import local_losses as local_losses_module
from fflax.methods.local_losses import LocalLossesConfig, local_losses
from fflax.networks.registry import make_network
from fflax.training.optimizers import OptimizerConfig, make_optimizer
from fflax.training.step import make_trainer
from fflax.types import Batch, LayerOut
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
  made_up_state,
  make_batch,
  make_initializer,
  make_mlp,
  numeric_gradient,
)

LOW, HIGH = 0.5, 2.0


class Layers:
  """Dense layers with heads; `step` changes `layers` and returns the losses."""

  def __init__(self, layers, optimizers, *, beta=0.0, goodness=False, detach=True, norm=True):
    self.layers, self.optimizers = layers, optimizers
    self.beta, self.goodness, self.detach, self.norm = beta, goodness, detach, norm

  def hand_on(self, z):
    if not self.norm:
      return z
    return (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-5)

  def hand_on_backward(self, z, grad):
    if not self.norm:
      return grad
    size, y = np.sqrt(z.var(-1, keepdims=True) + 1e-5), self.hand_on(z)
    centred = grad - grad.mean(-1, keepdims=True)
    return (centred - y * (grad * y).mean(-1, keepdims=True)) / size

  def temperature(self, p):
    return LOW + (HIGH - LOW) * oracle.sigmoid(p["alpha"]) if self.goodness else 1.0

  def features(self, p, z):
    return z**2 / self.temperature(p) if self.goodness else z

  def logits(self, x):
    found = []
    for p in self.layers:
      z = oracle.dense(p, x)[1]
      found.append(self.features(p, z) @ p["head_kernel"] + p.get("head_bias", 0))
      x = self.hand_on(z)
    return found

  def local(self, p, z, label):
    """Loss and gradients of one layer, the one of its activities under "z"."""
    rows, grads, dz, loss = len(z), {}, np.zeros_like(z), 0.0
    onehot = np.eye(CLASSES)[label]
    if self.beta < 1:
      f = self.features(p, z)
      q = oracle.softmax(f @ p["head_kernel"] + p.get("head_bias", 0))
      loss -= (1 - self.beta) * np.mean(np.log(np.sum(q * onehot, -1)))
      d = (1 - self.beta) * (q - onehot) / rows
      grads |= {"head_kernel": f.T @ d, "head_bias": d.sum(0)}
      df, t = d @ p["head_kernel"].T, self.temperature(p)
      dz += df * 2 * z / t if self.goodness else df
      if self.goodness:
        s = oracle.sigmoid(p["alpha"])
        grads["alpha"] = np.sum(-df * f / t) * (HIGH - LOW) * s * (1 - s)
    if self.beta > 0:
      same = np.where(label[:, None] == label[None], 1, -1 / (CLASSES - 1))
      y = z @ p["aux_kernel"]
      y -= y.mean(-1, keepdims=True)
      size = np.linalg.norm(y, axis=-1, keepdims=True)
      unit = y / (1e-8 + size)
      gap = unit @ unit.T - same
      loss += self.beta * np.mean(gap**2)
      du = self.beta * 4 * gap @ unit / rows**2
      dy = (du - unit * np.sum(du * unit, -1, keepdims=True)) / size
      dy -= dy.mean(-1, keepdims=True)
      grads["aux_kernel"] = z.T @ dy
      dz += dy @ p["aux_kernel"].T
    return loss, {"z": dz, **grads}

  def step(self, x, label):
    seen = []
    for p in self.layers:
      a, z = oracle.dense(p, x)
      seen.append((x, a, z, *self.local(p, z, label)))
      x = self.hand_on(z)
    above = 0.0
    for i in reversed(range(len(seen))):
      p, (u, a, z, _, grads) = self.layers[i], seen[i]
      da = (grads["z"] + above) * (a > 0)
      grads |= {"kernel": u.T @ da, "bias": da.sum(0)}
      if i and not self.detach:
        above = self.hand_on_backward(seen[i - 1][2], da @ p["kernel"].T)
      trained = {k: w for k, w in p.items() if k not in self.layers[i].get("fixed", ())}
      trained.pop("fixed", None)
      self.layers[i] = {**p, **self.optimizers[i](trained, grads)}
    return [loss for *_, loss, _ in seen]


RECIPES = {
  "predsim": (
    {"loss": "predsim", "beta": 0.7, "head_init": "uniform", "normalization": "none"},
    {"beta": 0.7, "norm": False},
  ),
  "sim": ({"loss": "sim"}, {"beta": 1.0}),
  "Mono-Forward": (
    {"pool": "none", "bias": False, "head_init": "uniform", "normalization": "none"},
    {"norm": False},
  ),
  "DTG-FF's losses": ({"features": "goodness", "head": "fixed"}, {"goodness": True}),
  "deep supervision of goodness": (
    {"features": "goodness", "detach": False},
    {"goodness": True, "detach": False},
  ),
}


def make(sizes=DEEP, rate=0.1, readouts=(), **options):
  return make_trainer(
    make_mlp(sizes, dead_unit=False),
    local_losses(LocalLossesConfig(**{"dropout": 0.0, **options}), CLASSES),
    list(readouts) or [softmax_head(CLASSES) if options.get("loss") == "sim" else score_sum()],
    image_shape=SHAPE,
    optimizer=make_optimizer(OptimizerConfig("sgd", rate, 0.9)),
  )


def parts(trainer, state):
  layers = layers64(trainer, state)
  for flat, s in zip(layers, trainer.layer_states(state), strict=True):
    own = {**s.params["method"], **s.stats["method"]}
    flat |= {f"head_{n}": np.asarray(w, np.float64) for n, w in own.get("head", {}).items()}
    if "aux" in own:
      flat["aux_kernel"] = np.asarray(own["aux"]["kernel"], np.float64)
    if "alpha" in own:
      flat["alpha"] = np.asarray(own["alpha"], np.float64)
  return layers


@pytest.mark.parametrize("name", RECIPES)
def test_three_steps(name):
  options, shared = RECIPES[name]
  rate = 0.4 if options.get("head_init") == "uniform" else 0.1
  trainer = make(rate=rate, **options)
  state = jit(trainer.init)(jax.random.key(3), make_batch(0))
  first = parts(trainer, state)
  fixed = ("head_kernel", "head_bias") if options.get("head") == "fixed" else ()
  optimizers = [oracle.Sgd(rate, 0.9, 0.0, ()) for _ in DEEP]
  by_hand = Layers([{**p, "fixed": fixed} for p in first], optimizers, **shared)

  @jit
  def probe(state, batch):
    return trainer.answer(state, batch.image), *trainer.step(state, batch)

  for t in range(3):
    batch, x = make_batch(t), flat64(make_batch(t).image)
    scores = None if options.get("loss") == "sim" else by_hand.logits(x)
    losses = by_hand.step(x, np.asarray(batch.label))
    answer, state, metrics = probe(state, batch)
    assert_close(metrics["loss"], losses, f"losses, step {t}", 1e-4)
    if scores is None:
      assert answer.layers == (None,) * len(DEEP)
    else:
      assert_close(answer.readouts["score_sum"], sum(scores), f"scores, step {t}", 1e-4)
  want = [{k: w for k, w in p.items() if k not in ("fixed", *fixed)} for p in by_hand.layers]
  got = [{k: w for k, w in p.items() if k not in fixed} for p in parts(trainer, state)]
  for p, f in zip(parts(trainer, state), first, strict=True):
    assert all(np.array_equal(p[k], f[k]) for k in fixed), "a fixed head moved"
  if "alpha" in want[0]:  # a scalar that moves little
    moved = [float(p.pop("alpha")) for p in want]
    assert_close([float(p.pop("alpha")) for p in got], moved, "alpha", 1e-3)
    assert min(map(abs, moved)) > 1e-3
  assert_layers(got, want, first, 2e-5)


def layers_after_a_step(sizes=SHALLOW, **options):
  trainer = make(sizes, **options)
  state = jit(trainer.init)(jax.random.key(3), make_batch(0))
  new, metrics = jit(trainer.step)(state, make_batch(0))
  return [s.params["layer"] for s in trainer.layer_states(new)], metrics["loss"]


def test_neighbours_on_the_ladder_begin_alike():
  """A fixed and a learned head: the same loss and the same first step below the heads."""
  fixed, learned = (layers_after_a_step(features="goodness", head=h) for h in ("fixed", "learned"))
  assert_close(learned[1], fixed[1], "losses", 1e-6)
  for a, b in zip(*(jax.tree.leaves(layers) for layers, _ in (fixed, learned)), strict=True):
    assert_close(a, b, "layers", 1e-6, 1e-7)
  ends = [layers_after_a_step(sizes=(14,), detach=d) for d in (True, False)]
  for a, b in zip(*(jax.tree.leaves(layers) for layers, _ in ends), strict=True):
    assert_close(a, b, "a single layer has nothing to detach", 1e-6, 1e-7)


def score(options, act, square=None):
  """Class scores of a layer whose activities are `act` `[B, ...]`, and its extras."""
  method = local_losses(LocalLossesConfig(**options), CLASSES)
  views = LayerOut(act[None], act[None], act[None], None, act_square=square)

  @jit
  def run(key):
    params, stats = method.init_layer(key, jax.tree.map(lambda a: a[0], views), None)
    return method.class_scores(params, stats, views), params, stats

  return run(jax.random.key(0))


@pytest.mark.parametrize(
  ("options", "grid"),
  [
    ({"pool_size": 2}, (2, 2)),
    ({"pool": "number", "pool_size": 30}, (1, 2)),
    ({"pool": "none"}, (4, 4)),
  ],
)
def test_what_heads_read_of_maps(options, grid):
  act = np.random.default_rng(0).normal(size=(3, 4, 4, 9))
  options = {"features": "goodness", "head": "fixed", "temperature": (0.8, 0.8), **options}
  got, params, stats = score(options, jnp.asarray(act, jnp.float32))
  assert not params
  rows, columns = 4 // grid[0], 4 // grid[1]
  bins = (act**2).reshape(3, grid[0], rows, grid[1], columns, 9).mean((2, 4)).reshape(3, -1)
  head = {k: np.asarray(v, np.float64) for k, v in stats["head"].items()}
  assert_close(got, bins / 0.8 @ head["kernel"] + head["bias"], "scores", 1e-4, 1e-4)


def test_squares_of_stochastic_units_have_their_own_gradient():
  """The goodness of p-bits is read from the square that comes along."""
  act = jnp.ones((2, 5))
  options = {"features": "goodness", "head": "fixed"}
  plain, carried = (score(options, act, s)[0] for s in (None, 2 * act[None]))
  head = score(options, act)[2]["head"]
  assert_close(carried - head["bias"][None], 2 * (plain - head["bias"][None]), "twice")


@pytest.mark.parametrize(("features", "same"), [("goodness", True), ("linear", False)])
def test_heads_of_squares_are_float32_whatever_the_numerics(features, same):
  """As DTG-FF's; bfloat16 would lose what tells examples apart."""
  act = jnp.asarray(np.random.default_rng(0).normal(size=(6, 9)), jnp.float32)
  config = LocalLossesConfig(features=features)
  exact, coarse = (local_losses(config, CLASSES, n) for n in (float32(), bfloat16(native=False)))
  params, stats = exact.init_layer(jax.random.key(0), LayerOut(act, act, act), None)
  views = LayerOut(*[act[None]] * 3)
  scores = [np.asarray(m.class_scores(params, stats, views)) for m in (exact, coarse)]
  assert np.array_equal(*scores) == same


def test_similarities_draw_from_a_key_of_their_own(monkeypatch):
  """Heads split the layer's key for their kernel and their bias."""
  drawn = []

  def spy(key, width, num_classes):
    drawn.append(key)
    return uniform_head(key, width, num_classes)

  monkeypatch.setattr(local_losses_module, "uniform_head", spy)
  method = local_losses(LocalLossesConfig(loss="predsim"), CLASSES)
  key = jax.random.key(7)
  method.init_layer(key, LayerOut(*[jnp.ones((2, 5))] * 3), None)
  data = lambda key: tuple(np.asarray(jax.random.key_data(key)))  # noqa: E731
  assert len(drawn) == 1
  assert data(drawn[0]) not in [data(key), *map(data, jax.random.split(key))]


def convolve(x, kernel):
  """3x3, with zeros around the map."""
  x = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  height, width = x.shape[1] - 2, x.shape[2] - 2
  places = ((i, j) for i in range(3) for j in range(3))
  return sum(x[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in places)


def test_a_step_of_predsim_on_maps():
  """Every gradient, that of the auxiliary convolution too, is a central difference."""
  rate, beta = 0.5, 0.6
  network = make_network(
    "small_cnn",
    numerics=float32(),
    kernel_init=make_initializer(False),
    channels=(4,),
    pool_after=(),
  )
  method = local_losses(LocalLossesConfig(loss="predsim", beta=beta), CLASSES)
  trainer = make_trainer(
    network, method, [score_sum()], image_shape=(4, 4, 1), optimizer=optax.sgd(rate)
  )
  batch = Batch(make_batch(0).image[:, :4, :4], make_batch(0).label)
  state = made_up_state(trainer, batch)
  new, metrics = jit(trainer.step)(state, batch)
  x, label = np.asarray(batch.image, np.float64), np.asarray(batch.label)

  def loss(own):
    conv, head = own["layer"]["conv"], own["method"]["head"]
    z = np.maximum(convolve(x, conv["kernel"]) + conv["bias"], 0)
    y = convolve(z, own["method"]["aux"]["conv"]["kernel"]).std((1, 2), ddof=1)
    y = y - y.mean(-1, keepdims=True)
    y /= 1e-8 + np.linalg.norm(y, axis=-1, keepdims=True)
    same = np.where(label[:, None] == label[None], 1, -1 / (CLASSES - 1))
    bins = z.reshape(len(z), 2, 2, 2, 2, -1).mean((2, 4)).reshape(len(z), -1)
    q = oracle.softmax(bins @ head["kernel"] + head["bias"])
    answer = -np.mean(np.log(q[np.arange(len(label)), label]))
    return (1 - beta) * answer + beta * np.mean((y @ y.T - same) ** 2)

  own = jax.tree.map(lambda a: np.array(a, np.float64), state.layers[0].params)
  assert_close(metrics["loss"][0], loss(own), "loss")
  grads = numeric_gradient(loss, own)
  assert all(rate * np.abs(g).max() > 1e-3 for g in jax.tree.leaves(grads)), "hardly moves"
  want = jax.tree.map(lambda p, g: p - rate * g, own, grads)
  jax.tree.map(lambda a, b: assert_close(a, b, "parameters"), new.layers[0].params, want)


def test_dropout_of_whole_channels():
  method = local_losses(
    LocalLossesConfig(normalization="none", dropout=0.5, drop_channels=True), CLASSES
  )
  out = LayerOut(*[jnp.ones((6, 3, 3, 40))] * 3)
  kept = np.asarray(method.hand_on(out, train=True, key=jax.random.key(0)))
  assert set(np.unique(kept)) == {0.0, 2.0}
  assert (kept == kept[:, :1, :1]).all()
  assert 0.3 < (kept == 0).mean() < 0.7
  np.testing.assert_array_equal(method.hand_on(out, train=False), out.out)


def test_similarities_alone_need_a_trained_readout():
  with pytest.raises(ValueError, match="use readout 'softmax_head'"):
    make(loss="sim", readouts=[score_sum()])


@pytest.mark.parametrize(
  ("field", "value"),
  [
    ("loss", "mse"),
    ("features", "squares"),
    ("head", "random"),
    ("head_init", "he"),
    ("pool", "max"),
    ("pool_size", 0),
    ("normalization", "batch"),
    ("temperature", (0.0, 1.0)),
    ("beta", 1.5),
    ("dropout", 1.0),
    ("smoothing", -0.1),
  ],
)
def test_bad_configurations_are_named(field, value):
  with pytest.raises(ValueError, match=field):
    local_losses(LocalLossesConfig(**{field: value}), CLASSES)
  with pytest.raises(ValueError, match="never answer"):
    local_losses(LocalLossesConfig(head="fixed", head_init="zero"), CLASSES)
