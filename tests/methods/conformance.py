"""The conformance suite: what every method must keep, registered or not.

A method joins by one line in `CASES`; one that is not registered (a toy, a paper in the making) is
held to the same checks by `run(Case(...))`. What is peculiar to a method belongs into its own test.

The programs of a case are compiled once and shared by its checks, at a low optimisation level
(compiling takes a quarter of the time); the tests of the driver run at the default level.
"""

import dataclasses
import functools
import inspect
import tempfile
import typing
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_digits

from fflax import types
from fflax.core import readouts
from fflax.core.locality import agrees, locality_matrix
from fflax.core.numerics_registry import NUMERICS
from fflax.methods.backprop import BackpropConfig
from fflax.methods.binary_stochastic import BinaryStochasticConfig
from fflax.methods.channelwise import ChannelwiseConfig
from fflax.methods.collaborative import CollaborativeConfig
from fflax.methods.dtg import DtgConfig
from fflax.methods.dtg_mlp import DtgMlpConfig
from fflax.methods.forward_forward import ForwardForwardConfig
from fflax.methods.hyperspherical import HypersphericalConfig
from fflax.methods.local_losses import LocalLossesConfig
from fflax.methods.recurrent import RecurrentConfig
from fflax.methods.registry import make_method
from fflax.networks.registry import make_network
from fflax.training import checkpoint, schedules
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.types import Batch, LayerState, Method, Metrics, PyTree, Schedule, TrainState

NUM_CLASSES = 10
NUM_LAYERS = 3
IMAGE_SHAPE = (8, 8, 1)
BATCH_SIZE = 64
NUM_TRAIN = 1408
NUM_STEPS = {"mlp": 300, "cnn": 120, "wide cnn": 120}

# Two orders of summation differ by units in the last place (2**-23 of the numbers that take part),
# and three steps of training pass that on. A wrong key or view makes differences of order 1.
ROUNDING = 2.0**-14

# The first layer sees pixels; the others are equal, so that the driver stacks them.
NETWORKS: Mapping[str, tuple[str, dict[str, Any]]] = {
  "mlp": ("mlp", {"sizes": (40,) * NUM_LAYERS}),
  "cnn": ("small_cnn", {"channels": (4,) * NUM_LAYERS, "pool_after": (1,), "batch_norm": True}),
  # For rules that divide the channels among the classes.
  "wide cnn": (
    "small_cnn",
    {"channels": (10,) * NUM_LAYERS, "pool_after": (1,), "batch_norm": True},
  ),
}

# Which layers (columns) the loss of a layer (row) moves.
_ROW, _COLUMN = np.indices((NUM_LAYERS, NUM_LAYERS))
MATRICES: Mapping[str, np.ndarray] = {
  "own": _ROW == _COLUMN,
  "own and below": _ROW >= _COLUMN,
  "last moves all": _ROW == NUM_LAYERS - 1,
  "own, last moves all": (_ROW == _COLUMN) | (_ROW == NUM_LAYERS - 1),
}


class Case(NamedTuple):
  """One configuration of one method.

  Attributes:
    method: as registered.
    what: what is special about this configuration.
    make: `(num_classes, numerics) -> Method`.
    accuracy: by the name of a network in `NETWORKS`, what the first readout must exceed on held-out
      digits after `NUM_STEPS` steps.
    moves: the expected matrix, in `MATRICES`.
    brief: networks on which the checks in `NOT_BRIEF` are left out, because another case stands for
      the same code.
  """

  method: str
  what: str
  make: Callable[..., Method]
  accuracy: Mapping[str, float]
  moves: str = "own"
  brief: tuple[str, ...] = ()

  def __str__(self) -> str:
    return f"{self.method} ({self.what})"


def _case(method: str, what: str, config: Any, **options: Any) -> Case:
  return Case(method, what, functools.partial(make_method, method, config), **options)


_FF, _RFF, _CFF, _HFF, _CWC, _BSFF, _BP = (
  ForwardForwardConfig,
  RecurrentConfig,
  CollaborativeConfig,
  HypersphericalConfig,
  ChannelwiseConfig,
  BinaryStochasticConfig,
  BackpropConfig,
)
_ff = functools.partial(_case, "forward_forward", accuracy={"mlp": 0.7})
_rff = functools.partial(_case, "recurrent", accuracy={"mlp": 0.5})
_hff = functools.partial(_case, "hyperspherical", accuracy={"mlp": 0.9})
_cff = functools.partial(_case, "collaborative", accuracy={"mlp": 0.7})
_cwc = functools.partial(_case, "channelwise", accuracy={"mlp": 0.8})
_bsff = functools.partial(_case, "binary_stochastic", accuracy={"mlp": 0.8})
_local = functools.partial(_case, "local_losses", accuracy={"mlp": 0.9})
_bp = functools.partial(_case, "backprop", accuracy={"mlp": 0.9, "cnn": 0.5})

CASES: tuple[Case, ...] = (
  _ff("uniform", _FF()),
  _ff("softmax_hard", _FF(negatives="softmax_hard"), brief=("mlp",)),
  _ff("goodness_hard", _FF(negatives="goodness_hard"), brief=("mlp",)),
  _ff("hybrid", _FF(supervision="hybrid"), brief=("mlp",)),
  _ff("peer signal", _FF(peer="signal"), brief=("mlp",)),
  _ff("peer variance", _FF(peer="variance"), brief=("mlp",)),
  _ff(
    "symba",
    _FF(loss="symba", goodness="mean"),
    accuracy={"mlp": 0.7, "cnn": 0.3},
    brief=("mlp", "cnn"),
  ),
  _ff("min goodness", _FF(maximize=False), brief=("mlp",)),
  _ff("prepend", _FF(label_style="prepend"), brief=("mlp",)),
  _ff("pattern", _FF(label_style="pattern"), brief=("mlp",)),
  _ff(
    "label maps",
    _FF(label_style="channels", goodness="mean"),
    accuracy={"cnn": 0.2},
    brief=("cnn",),
  ),
  _rff("softmax_hard", _RFF(negatives="softmax_hard", steps=4, answer_to=4)),
  _rff("peer signal", _RFF(peer="signal", steps=2, answer_from=1, answer_to=1), brief=("mlp",)),
  _cff("fixed", _CFF(structure="ones"), brief=("mlp",)),
  _cff(
    "adaptive",
    _CFF(gamma_rule="sgd", structure="learned_softmax"),
    accuracy={"mlp": 0.7, "wide cnn": 0.2},
    brief=("wide cnn",),
  ),
  _cff("oracle, previous layers", _CFF(gamma_rule="oracle", structure="previous"), brief=("mlp",)),
  _hff("learned", _HFF(aux_features=8), accuracy={"mlp": 0.9, "cnn": 0.6}, brief=("mlp", "cnn")),
  _hff("ema", _HFF(prototypes="ema")),
  _hff("fixed_random", _HFF(prototypes="fixed_random"), brief=("mlp",)),
  _hff("fixed_orthogonal", _HFF(prototypes="fixed_orthogonal"), brief=("mlp",)),
  _hff("fixed_etf", _HFF(prototypes="fixed_etf"), brief=("mlp",)),
  _hff("four prototypes, margin", _HFF(prototypes_per_class=4, margin=0.2), brief=("mlp",)),
  _hff("hard margin", _HFF(loss="hard", margin=0.2), brief=("mlp",)),
  _cwc("cross-entropy", _CWC(), accuracy={"mlp": 0.8, "wide cnn": 0.5}, brief=("mlp",)),
  _cwc("clamped", _CWC(loss="cwc_clamped"), brief=("mlp",)),
  _cwc("with pvn", _CWC(loss="cwg"), brief=("mlp",)),
  _cwc("class groups below", _CWC(competing=(5, 10))),
  _bsff("exact", _BSFF(), brief=("mlp",)),
  _bsff("binary error", _BSFF(error="binary")),
  _local(
    "predsim",
    LocalLossesConfig(loss="predsim", beta=0.5),
    accuracy={"mlp": 0.9, "cnn": 0.5},
    brief=("cnn",),
  ),
  _local("sim", LocalLossesConfig(loss="sim"), accuracy={"mlp": 0.8}, brief=("mlp",)),
  _local("fixed, goodness", LocalLossesConfig(features="goodness", head="fixed"), brief=("mlp",)),
  _local(
    "end to end, goodness",
    LocalLossesConfig(detach=False, features="goodness"),
    moves="own and below",
    brief=("mlp",),
  ),
  # A setting of local_losses, on maps; four channels bear no more.
  _case("dtg", "defaults", DtgConfig(), accuracy={"cnn": 0.4}, brief=("cnn",)),
  _case(
    "dtg_mlp",
    "hybrid",
    DtgMlpConfig(),
    moves="own, last moves all",
    accuracy={"mlp": 0.6},
    brief=("mlp",),
  ),
  _case("dtg_mlp", "strict", DtgMlpConfig(end_to_end=False), accuracy={"mlp": 0.6}, brief=("mlp",)),
  _bp("last", _BP(), moves="last moves all", accuracy={"mlp": 0.9}),
  _bp("all", _BP(heads="all", normalization="rms"), moves="own and below", brief=("mlp", "cnn")),
)


# --- data and comparisons -------------------------------------------------------------------------


@functools.cache
def digits() -> tuple[np.ndarray, np.ndarray]:
  """scikit-learn's digits in a fixed random order: images `[N, 8, 8, 1]` in [0, 1], labels."""
  data = load_digits()
  order = np.random.default_rng(0).permutation(len(data.target))
  image = (data.images[order, :, :, None] / 16).astype(np.float32)
  return image, data.target[order].astype(np.int32)


def batch_of_step(step: int) -> Batch:
  image, label = digits()
  first = step * BATCH_SIZE % NUM_TRAIN
  rows = slice(first, first + BATCH_SIZE)
  return Batch(jnp.asarray(image[rows]), jnp.asarray(label[rows]))


def test_images() -> tuple[np.ndarray, np.ndarray]:
  image, label = digits()
  return image[NUM_TRAIN:], label[NUM_TRAIN:]


def quick_jit(function: Callable) -> Any:
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})


def bits(tree: PyTree) -> list[tuple]:
  """Shape, dtype and bytes of every leaf: equal only if every bit is, NaN and keys included."""

  def one(leaf: jax.Array) -> tuple:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      leaf = jax.random.key_data(leaf)
    return leaf.shape, str(leaf.dtype), np.asarray(leaf).tobytes()

  return [one(leaf) for leaf in jax.tree.leaves(tree)]


def types_of(tree: PyTree) -> list[tuple]:
  """Shape, dtype and weakness of every leaf: what a compiled program depends on."""
  return [(x.shape, str(x.dtype), x.weak_type) for x in map(jax.typeof, jax.tree.leaves(tree))]


def assert_close(a: PyTree, b: PyTree, tolerance: float = ROUNDING) -> None:
  """Every leaf, relative to the largest number in it (or to 1)."""
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = max(1.0, np.max(np.abs(x), initial=0.0, where=np.isfinite(x)))
    np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)


def take(tree: PyTree, i: int) -> PyTree:
  return jax.tree.map(lambda a: a[i], tree)


# --- the bench: a case on a network, and its compiled programs ------------------------------------


class Bench:
  """A case on a network; programs and states are made when first asked for, once."""

  def __init__(self, case: Case, network: str = "mlp"):
    self.case = case
    self.network = network
    self.method = case.make(NUM_CLASSES)
    self.num_traces = 0

  def trainer(
    self, *, stack: bool = True, schedule: Schedule | None = None, numerics: str = "float32"
  ) -> Trainer:
    name, options = NETWORKS[self.network]
    found = [readouts.score_sum()] if self.method.score_views else []
    if not found or self.method.negatives_from == "plain":
      found.append(readouts.softmax_head(NUM_CLASSES))
    if self.method.end_to_end_view is not None:
      found.append(readouts.norm_head(NUM_CLASSES, 0))
    # The gradient's direction alone: one learning rate serves all methods, a zero gradient (without
    # momentum yet) moves nothing, and any other one moves visibly, however small it is.
    sgd = optax.chain(optax.normalize_by_update_norm(), optax.sgd(0.02, momentum=0.9))
    products = NUMERICS[numerics]()
    return make_trainer(
      make_network(name, numerics=products, **options),
      self.method if numerics == "float32" else self.case.make(NUM_CLASSES, products),
      found,
      image_shape=IMAGE_SHAPE,
      optimizer=sgd,
      schedule=schedule,
      stack=stack,
    )

  @functools.cached_property
  def stacked(self) -> Trainer:
    return self.trainer()

  @functools.cached_property
  def unrolled(self) -> Trainer:
    return self.trainer(stack=False)

  @functools.cached_property
  def init(self) -> Callable[[jax.Array, Batch], TrainState]:
    return quick_jit(self.stacked.init)

  @functools.cached_property
  def init_unrolled(self) -> Callable[[jax.Array, Batch], TrainState]:
    return quick_jit(self.unrolled.init)

  @functools.cached_property
  def fresh(self) -> TrainState:
    return self.init(jax.random.key(0), batch_of_step(0))

  @functools.cached_property
  def step(self) -> Callable[..., tuple[TrainState, Metrics]]:
    """`(state, batch, weights) -> (state, metrics)`, layers stacked; counts its traces."""

    def step(state: TrainState, batch: Batch, weights: jax.Array) -> tuple[TrainState, Metrics]:
      self.num_traces += 1
      return self.stacked.step(state, batch, weights)

    return quick_jit(step)

  @functools.cached_property
  def seeds_step(self) -> Callable[..., tuple[TrainState, Metrics]]:
    """The same over a leading axis of states and weights, layers unrolled."""
    return quick_jit(jax.vmap(self.unrolled.step, in_axes=(0, None, 0)))

  @functools.cached_property
  def answer(self) -> Callable[[TrainState, jax.Array], types.Answers]:
    return quick_jit(self.stacked.answer)

  def train(self, step: Callable, state: TrainState, num_steps: int) -> tuple[TrainState, list]:
    history = []
    for i in range(num_steps):
      state, metrics = step(state, batch_of_step(i), jnp.ones(NUM_LAYERS))
      history.append(metrics["loss"])
    return state, history

  @functools.cached_property
  def trained(self) -> tuple[TrainState, np.ndarray]:
    """The state after `NUM_STEPS` steps, and the losses `[NUM_STEPS, L]`."""
    state, history = self.train(self.step, self.fresh, NUM_STEPS[self.network])
    return state, np.asarray(history)

  def accuracy(self, answer: Callable, state: TrainState) -> float:
    image, label = test_images()
    scores = next(iter(answer(state, image).readouts.values()))
    return float(np.mean(np.argmax(scores, -1) == label))

  def matrix(self, step: Callable, trainer: Trainer, states: list[TrainState]) -> np.ndarray:
    """Which loss moves which layer in a step from any of these states."""

    def moved(weights: jax.Array) -> tuple[PyTree, ...]:
      after = [step(s, batch_of_step(0), weights)[0] for s in states]
      by_layer = zip(*[trainer.layer_states(s) for s in after], strict=True)
      return tuple([layer.params for layer in layers] for layers in by_layer)

    return locality_matrix(moved, NUM_LAYERS)


# --- the checks -----------------------------------------------------------------------------------


def check_signatures(bench: Bench) -> None:
  """A method with other argument names works until someone passes them by keyword."""

  def parameters(function: Callable) -> list[tuple]:
    found = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default is p.empty) for p in found if p.name != "self"]

  for field, hint in typing.get_type_hints(Method).items():
    value = getattr(bench.method, field)
    protocol = next((t for t in (hint, *typing.get_args(hint)) if hasattr(t, "_is_protocol")), None)
    if protocol is not None and value is not None:
      assert parameters(value) == parameters(protocol.__call__), f"{field} is no {protocol}"
  for field in ("plain_view", "score_views"):
    value = getattr(bench.method, field)
    assert value is None or len(parameters(value)) == 1, f"{field} takes one image batch"
  assert bench.method.locality in typing.get_args(types.Locality), bench.method.locality
  assert bench.method.name and bench.method.paper


def check_shapes(bench: Bench) -> None:
  """Views of another shape than the plain view would train a network that cannot be asked."""
  method, layers = (
    bench.method,
    make_network(
      NETWORKS[bench.network][0], numerics=NUMERICS["float32"](), **NETWORKS[bench.network][1]
    ).layers,
  )
  states = bench.stacked.layer_states(bench.fresh)

  def shapes(size: int) -> None:
    key = jax.random.key(1)
    batch = Batch(jnp.zeros((size, *IMAGE_SHAPE)), jnp.zeros((size,), jnp.int32))
    answer = None if method.negatives_from is None else jnp.zeros((size, NUM_CLASSES))
    views = {"views": method.views(key=key, batch=batch, class_scores=answer)}
    views["plain_view"] = method.plain_view(batch.image)[None]
    assert not method.single_view or len(views["views"]) == 1, "one view only"
    if method.score_views is not None:
      views["score_views"] = method.score_views(batch.image)
    example = views["plain_view"].shape[2:]
    for name, shown in views.items():
      # Layers that hear from above start from one pass without it.
      two_way = isinstance(shown, types.Between)
      x = shown.below if two_way else shown
      num_views = x.shape[0]
      if two_way:
        assert shown.above.dtype == jnp.float32 and shown.above.shape[:2] == (num_views, size)
      assert x.dtype == jnp.float32, f"{name} is {x.dtype}"
      assert x.shape == (num_views, size, *example), f"{name} {x.shape}, plain view {example}"
      for i, (layer, state) in enumerate(zip(layers, states, strict=True)):
        own, stats = state.params["method"], state.stats["method"]
        flat = x.reshape(num_views * size, *x.shape[2:])
        out, _ = layer.apply(state.params["layer"], state.stats["layer"], flat, train=False)
        x = method.hand_on(out=out, train=False, key=None)
        assert x.dtype == jnp.float32 and len(x) == num_views * size, "hand_on keeps the batch"
        x = x.reshape(num_views, size, *x.shape[1:])
        out = jax.tree.map(lambda a, v=num_views: a.reshape(v, size, *a.shape[1:]), out)
        if name == "score_views":
          scores = method.class_scores(params=own, stats=stats, out=out)
          wrong = scores is not None and (scores.shape, scores.dtype) != (
            (size, NUM_CLASSES),
            jnp.float32,
          )
          assert not wrong, f"class scores of layer {i} are {scores}"
        if name == "views":
          if method.goodness is not None:
            goodness = method.goodness(params=own, stats=stats, out=out)
            assert goodness.shape == (num_views, size) and goodness.dtype == jnp.float32
          context = None
          if method.locality == "collaborative":
            context = types.Broadcast(jnp.zeros((len(layers), num_views, size)), i)
          loss, (new, metrics) = method.local_loss(
            params=own, stats=stats, out=out, label=batch.label, context=context, key=key
          )
          assert loss.shape == () and loss.dtype == jnp.float32, f"loss is {loss}"
          assert jax.tree.structure(new) == jax.tree.structure(stats), "stats changed their form"
          assert "loss" not in metrics, "the driver reports the loss"
          assert all(jnp.shape(m) == () for m in metrics.values()), f"metrics are {metrics}"

  for size in (1, 5):
    jax.eval_shape(functools.partial(shapes, size))


def check_locality(bench: Bench) -> None:
  """The central claim, measured on real steps, layers stacked where they are equal."""
  expected = MATRICES[bench.case.moves]
  assert agrees(expected, bench.method.locality), "the case expects what is not declared"
  measured = bench.matrix(bench.step, bench.stacked, [bench.fresh])
  np.testing.assert_array_equal(measured, expected)


def check_locality_unrolled(bench: Bench) -> None:
  """The same, each layer on its own (and under a vmap over seeds)."""
  fresh = bench.init_unrolled(jax.random.key(0), batch_of_step(0))
  seeds = jax.tree.map(lambda a: jnp.stack([a] * 3), fresh)

  def first_seed(_: TrainState, batch: Batch, weights: jax.Array) -> tuple[TrainState, Metrics]:
    return take(bench.seeds_step(seeds, batch, jnp.stack([weights] * 3)), 0)

  measured = bench.matrix(first_seed, bench.unrolled, [fresh])
  np.testing.assert_array_equal(measured, MATRICES[bench.case.moves])


def check_locality_scheduled(bench: Bench) -> None:
  """The same, where one layer learns in each step (greedy) and is seen updated (interleaved)."""
  both = schedules.greedy(1)._replace(reforward=True)
  if bench.method.locality == "strict" and bench.method.recurrence is None:
    trainer = bench.trainer(schedule=both)
    steps = [dataclasses.replace(bench.fresh, step=jnp.int32(i)) for i in range(NUM_LAYERS)]
    measured = bench.matrix(quick_jit(trainer.step), trainer, steps)
    np.testing.assert_array_equal(measured, MATRICES[bench.case.moves])


def check_jacobian(bench: Bench) -> None:
  """The same claim by another way: the Jacobian of the losses that a step reports."""
  trainer = bench.unrolled
  state = bench.init_unrolled(jax.random.key(0), batch_of_step(0))

  def losses(params: tuple[PyTree, ...]) -> jax.Array:
    layers = tuple(
      LayerState(p, s.opt_state, s.stats) for p, s in zip(params, state.layers, strict=True)
    )
    return trainer.step(dataclasses.replace(state, layers=layers), batch_of_step(0))[1]["loss"]

  rows = quick_jit(jax.jacrev(losses))(tuple(s.params for s in state.layers))
  reach = [sum(np.abs(a).reshape(NUM_LAYERS, -1).sum(1) for a in jax.tree.leaves(r)) for r in rows]
  np.testing.assert_array_equal(np.stack(reach, axis=1) != 0, MATRICES[bench.case.moves])


def check_keys(bench: Bench) -> None:
  """A number that does not come from the key would make runs unrepeatable."""
  # Traced anew: in a program that is made, a number from outside would be a constant.
  again = quick_jit(lambda k, b: bench.stacked.init(k, b))(jax.random.key(0), batch_of_step(0))
  assert bits(bench.fresh) == bits(again), "the same key gave another state"
  other = bench.init(jax.random.key(1), batch_of_step(0))
  for a, b in zip(bench.fresh.layers, other.layers, strict=True):
    assert bits(a.params) != bits(b.params), "another key gave the same parameters"
  steps = [bench.step(bench.fresh, batch_of_step(0), jnp.ones(NUM_LAYERS)) for _ in range(2)]
  assert bits(steps[0]) == bits(steps[1]), "the same step gave other bits"


def check_types(bench: Bench) -> None:
  """A state that changes its types compiles the step again, and drifts out of float32."""
  state, metrics = bench.fresh, {}
  for i in range(3):
    state, metrics = bench.step(state, batch_of_step(i), jnp.ones(NUM_LAYERS))
    assert types_of(state) == types_of(bench.fresh), f"the types of the state changed in step {i}"
  assert not any(weak for *_, weak in types_of(bench.fresh)), "the fresh state has weak types"
  for layer in bench.fresh.layers:
    assert {str(x.dtype) for x in jax.tree.leaves(layer.params)} == {"float32"}
  assert bench.num_traces == 1, f"the step was traced {bench.num_traces} times"
  for name, value in metrics.items():
    shape = () if name.startswith("readout_loss/") else (NUM_LAYERS,)
    assert (value.shape, value.dtype) == (shape, jnp.float32), f"{name} is {value}"
  assert np.all(np.isfinite(metrics["loss"])), metrics["loss"]


def check_seeds(bench: Bench) -> None:
  """Seeds under one vmap, unrolled, equal seeds run alone, stacked; but for rounding."""
  keys = jax.random.split(jax.random.key(0), 3)
  each = [bench.init_unrolled(k, batch_of_step(0)) for k in keys]
  seeds = jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)
  for i in range(3):
    seeds, metrics = bench.seeds_step(seeds, batch_of_step(i), jnp.ones((3, NUM_LAYERS)))
  for j, key in enumerate(keys):
    alone = bench.init(key, batch_of_step(0))
    alone, history = bench.train(bench.step, alone, 3)
    assert_close(bench.stacked.layer_states(alone), take(seeds, j).layers)
    assert_close([r.params for r in alone.readouts], [r.params for r in take(seeds, j).readouts])
    assert_close(history[-1], metrics["loss"][j])


def check_evaluation(bench: Bench) -> None:
  """An answer that depends on its neighbours in the batch is not an answer to the image."""
  image, _ = test_images()
  state, size = bench.trained[0], len(image)
  answer = bench.answer(state, image)
  assert bits(answer) == bits(bench.answer(state, image)), "evaluation is not deterministic"
  padded = image.copy()
  padded[size // 2 :] = np.random.default_rng(1).normal(size=padded[size // 2 :].shape)
  halves = [take(a, slice(size // 2)) for a in (answer, bench.answer(state, padded))]
  assert bits(halves[0]) == bits(halves[1]), "padding changes the answer"
  order = np.random.default_rng(2).permutation(size)
  assert_close(take(answer, order), bench.answer(state, image[order]))
  assert_close(take(answer, slice(7)), bench.answer(state, image[:7]))


def check_checkpoint(bench: Bench) -> None:
  """State that lives outside the `TrainState` is lost when a run is cut."""
  state, _ = bench.train(bench.step, bench.fresh, 2)
  with tempfile.TemporaryDirectory() as directory:
    checkpoint.save(directory, 2, state)
    restored = checkpoint.restore(directory, bench.fresh)
  assert types_of(restored) == types_of(state), "the types of the state changed"
  assert bits(restored) == bits(state), "the restored state has other bits"
  after = [bench.step(s, batch_of_step(2), jnp.ones(NUM_LAYERS)) for s in (state, restored)]
  assert bits(after[0]) == bits(after[1]), "the resumed run has other bits"


def check_numerics(bench: Bench, name: str, tolerance: float) -> None:
  """Other products: the same state, the same locality, nearly the same losses."""
  trainer = bench.trainer(numerics=name)
  step = quick_jit(trainer.step)
  new, metrics = step(bench.fresh, batch_of_step(0), jnp.ones(NUM_LAYERS))
  assert types_of(new) == types_of(bench.fresh), "the types of the state changed"
  _, wide = bench.step(bench.fresh, batch_of_step(0), jnp.ones(NUM_LAYERS))
  assert_close(wide["loss"], metrics["loss"], tolerance)
  assert bits(wide["loss"]) != bits(metrics["loss"]), "the numerics were not used"
  measured = bench.matrix(step, trainer, [bench.fresh])
  np.testing.assert_array_equal(measured, MATRICES[bench.case.moves])


def check_int8_evaluation(bench: Bench) -> None:
  """Scales are taken from what is quantised: no example may set another one's."""
  image, _ = test_images()
  answer = quick_jit(bench.trainer(numerics="int8").answer)
  wild = image.copy()
  wild[7:] *= 100
  both = [take(answer(bench.trained[0], x), slice(7)) for x in (image, wild)]
  assert bits(both[0]) == bits(both[1]), "an answer depends on its neighbours"


def check_learning(bench: Bench) -> None:
  """Real digits, within seconds: every layer's loss falls, and the network answers."""
  state, losses = bench.trained
  assert np.all(np.isfinite(losses))
  first, last = losses[:5].mean(0), losses[-20:].mean(0)
  assert np.all((last < first) | ((first == 0) & (last == 0))), f"losses {first} became {last}"
  accuracy = bench.accuracy(bench.answer, state)
  bar = bench.case.accuracy[bench.network]
  assert accuracy > bar, f"test accuracy {accuracy:.3f} is not above {bar}"


CHECKS: Mapping[str, Callable[[Bench], None]] = {
  "signatures": check_signatures,
  "shapes": check_shapes,
  "locality": check_locality,
  "locality unrolled": check_locality_unrolled,
  "locality scheduled": check_locality_scheduled,
  "jacobian": check_jacobian,
  "keys": check_keys,
  "types": check_types,
  "seeds": check_seeds,
  "learning": check_learning,
  "evaluation": check_evaluation,
  "checkpoint": check_checkpoint,
  # Operands keep 8 bits: errors of 2**-9 each, which average out over a layer's inputs.
  "bfloat16": functools.partial(check_numerics, name="bfloat16", tolerance=0.02),
  # One scale for a whole tensor: errors of up to 1 / 127 of its largest value.
  "int8": functools.partial(check_numerics, name="int8", tolerance=0.1),
  "int8 evaluation": check_int8_evaluation,
}

# The costly ones.
NOT_BRIEF = (
  "locality unrolled",
  "locality scheduled",
  "jacobian",
  "seeds",
  "checkpoint",
  "bfloat16",
  "int8",
  "int8 evaluation",
)


def run(case: Case, network: str = "mlp") -> None:
  """Runs every check, and raises the failures of all of them."""
  bench, failures = Bench(case, network), []
  for name, check in CHECKS.items():
    if network in case.brief and name in NOT_BRIEF:
      continue
    of_method = [c for c in CASES if c.method == case.method] or [case]
    if name.startswith("int8") and case is not of_method[0]:
      continue  # products know nothing of a method's variants
    try:
      check(bench)
    except Exception as failure:
      failure.add_note(f"check {name!r} of {case} on {network}")
      failures.append(failure)
  if failures:
    raise ExceptionGroup(f"{case} on {network}", failures)
