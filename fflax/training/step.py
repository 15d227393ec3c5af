"""The driver: one training step of any method on any network.

The driver owns the forward sweep, `stop_gradient` at every layer boundary, key derivation, the
layers' optimiser states and who is active, so that a method cannot break locality by forgetting
something. The strict sweep differentiates, updates and hands on one layer after the other, so no
activation outlives its layer; the global sweep differentiates the sum of the losses end to end;
the look-ahead sweep stands between them.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh

from fflax.core import tags
from fflax.random import Role, role_key, step_key
from fflax.training.answers import layer_scores, read_layers
from fflax.training.blocks import find_blocks, stack_states, unstack_states
from fflax.training.checks import check_run
from fflax.training.hybrid_sweep import hybrid_sweep
from fflax.training.layer_step import Run, init_layer, load_params
from fflax.training.lookahead import Lookahead
from fflax.training.lookahead_sweep import lookahead_sweep
from fflax.training.readout_step import init_readouts, train_readouts
from fflax.training.recurrent_sweep import (
  heard_from_above,
  recurrent_sweep,
  require_sums,
)
from fflax.training.schedules import simultaneous
from fflax.training.sharding import data_parallel, split_layers
from fflax.training.stages import make_stages
from fflax.training.sweeps import (
  Sweep,
  collaborative_sweep,
  global_sweep,
  layer_outs,
  plain_features,
  read_features,
  strict_sweep,
)
from fflax.training.trainer import Trainer
from fflax.training.weight_store import WeightStore
from fflax.types import (
  Answers,
  Array,
  Batch,
  Between,
  Key,
  LayerOut,
  LayerState,
  Method,
  Metrics,
  Network,
  Optimizer,
  PyTree,
  Readout,
  Schedule,
  Shown,
  TrainState,
)

STACK_FROM = 8
"""Equal neighbours below this number are unrolled: a stack's slices are copied in every step, a
fifth of an MLP's step on a CPU (`experiments/benchmarks/README.md`), and save compilation only."""

_SWEEPS: Mapping[str, Callable[..., Sweep]] = {
  "strict": strict_sweep,
  "collaborative": collaborative_sweep,
  "global": global_sweep,
  "lookahead": lookahead_sweep,
  "recurrent": recurrent_sweep,
}


def present_answer(
  run: Run,
  state: TrainState,
  states: Sequence[LayerState],
  features: tuple[Array, ...],
  image: Array,
) -> Array | None:
  """The class scores that hard negatives are drawn from, before this step's updates."""
  if run.method.negatives_from == "scores":
    assert run.method.score_views is not None
    # The layers' own scores, whatever they answer once they have heard each other.
    shown = run.method.score_views(image)
    own_scores = read_layers(run, states, shown, run.method.class_scores)
    first, *others = [s for s in own_scores if s is not None]
    return lax.stop_gradient(sum(others, first))
  if run.method.negatives_from == "plain":
    heads = zip(run.readouts, state.readouts, strict=True)
    readout, own = next((r, s) for r, s in heads if r.loss is not None)
    return lax.stop_gradient(readout.predict(own.params, own.stats, (), features))
  return None


def make_trainer(
  network: Network,
  method: Method,
  readouts: Sequence[Readout],
  *,
  image_shape: tuple[int, ...],
  optimizer: Optimizer,
  readout_optimizer: Optimizer | None = None,
  schedule: Schedule | None = None,
  lookahead: Lookahead | None = None,
  weight_store: WeightStore | None = None,
  stack: bool | None = None,
  samples: int = 0,
  rematerialize: bool = False,
  mesh: Mesh | None = None,
) -> Trainer:
  """Makes a run's pure functions.

  Args:
    network: the layers.
    method: what each layer is asked to do.
    readouts: the first is the run's own; the others are reported beside it.
    image_shape: shape of one example, without the batch axis.
    optimizer: each layer carries its own state of it.
    readout_optimizer: for trained readouts; `optimizer` if None.
    schedule: `simultaneous()` if None.
    weight_store: how layers keep their parameters between steps; None: as they are.
    lookahead: whether layers also learn from the losses above them (strict methods only).
    stack: run equal neighbouring layers under `lax.scan` (strict methods only): always, never, or
      (None) from `STACK_FROM` of them on, where one program for all is worth its copies.
    samples: 0: random units answer with their expectation, in one pass; T: the answer is the mean
      softmax of T passes whose units are drawn, a Monte-Carlo estimate of the class probabilities.
    rematerialize: gradients from above (methods of global locality; look-ahead) keep no more of a
      layer than its input and run it again on the way down, "exact" look-ahead twice, with lambda
      from gradients three times: less memory, the same numbers up to rounding.
    mesh: of `make_mesh`: batches are split over its `data` axis.

  Returns:
    A `Trainer`; all of its functions are jit-able and vmap-able over states and keys.

  Raises:
    ValueError: the combination is impossible; the sentence says why.

  Example:
    >>> import optax
    >>> import fflax
    >>> network = fflax.make_network("mlp", numerics=fflax.float32(), sizes=(16,))
    >>> method = fflax.make_method("hyperspherical", fflax.HypersphericalConfig(), num_classes=3)
    >>> trainer = make_trainer(
    ...   network, method, [fflax.score_sum()], image_shape=(4,), optimizer=optax.sgd(0.1)
    ... )
    >>> batch = Batch(jnp.eye(4)[:3], jnp.arange(3))
    >>> state = jax.jit(trainer.init)(jax.random.key(0), batch)
    >>> state, metrics = jax.jit(trainer.step)(state, batch)
    >>> int(state.step), metrics["loss"].shape
    (1, (1,))
    >>> trainer.answer(state, batch.image).readouts["score_sum"].shape
    (3, 3)
  """
  if mesh is not None:
    network = split_layers(network, mesh)
  run = Run(
    network,
    method,
    tuple(readouts),
    optimizer,
    readout_optimizer or optimizer,
    schedule or simultaneous(),
    (1,) * len(network.layers),
    lookahead,
    weight_store,
    rematerialize=rematerialize,
  )
  check_run(network, method, run.schedule, run.readouts, lookahead, rematerialize)
  if samples < 0:
    raise ValueError(f"samples must be 0 or more, not {samples}")
  locality = method.locality if lookahead is None else "lookahead"
  num_layers = len(network.layers)
  counted = min(layer.counts for layer in network.layers)
  trains_readout = any(r.loss is not None for r in run.readouts)
  beside = trains_readout and method.end_to_end_view is None
  own_pass = beside and (not method.single_view or method.negatives_from == "plain")
  run = run._replace(readouts_listen=beside and not own_pass)

  def init_layers(key: Key, image: Array) -> tuple[list[LayerState], list[Array], tuple]:
    x, states, inputs = method.plain_view(image), [], []
    for i, above in enumerate(heard_from_above(run, key, image)):
      inputs.append(x)
      state, x = init_layer(run, key, i, x, above)
      states.append(state)
    features = read_features(run, states, image) if trains_readout else ()
    return states, inputs, init_readouts(run, key, features)

  def shapes_of_everything(key: Key, image: Array) -> tuple[list[LayerState], list[Array]]:
    """Refuses, by tracing, readouts that the layers cannot serve."""
    states, inputs, readout_states = init_layers(key, image)
    features, scores = read_features(run, states, image), layer_scores(run, states, image)
    for r, s in zip(run.readouts, readout_states, strict=True):
      r.predict(s.params, s.stats, scores, features)
    return states, inputs

  example = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
  states, inputs = jax.eval_shape(shapes_of_everything, jax.random.key(0), example)
  if method.recurrence is not None:
    require_sums(method, states)
  elif stack is not False and locality in ("strict", "collaborative"):
    smallest = STACK_FROM if stack is None else 2
    run = run._replace(blocks=find_blocks(network.layers, inputs, states, smallest))
  sweep = _SWEEPS[locality if method.recurrence is None else "recurrent"]

  def init(key: Key, batch: Batch) -> TrainState:
    states, _, readout_states = init_layers(key, batch.image)
    coupling = () if lookahead is None else lookahead.init(num_layers)
    return TrainState(
      jnp.zeros((), jnp.int32), key, stack_states(states, run.blocks), readout_states, coupling
    )

  def kept_states(state: TrainState) -> tuple[LayerState, ...]:
    return unstack_states(state.layers, run.blocks)

  def outs(state: TrainState, image: Array, key: Key | None) -> tuple[LayerOut, ...]:
    return layer_outs(run, kept_states(state), image, key)

  def layer_states(state: TrainState, stored: bool = False) -> tuple[LayerState, ...]:
    if stored:
      return kept_states(state)
    return tuple(dataclasses.replace(s, params=load_params(run, s)) for s in kept_states(state))

  def training_views(
    state: TrainState, states: Sequence[LayerState], features: tuple, batch: Batch, key: Key
  ) -> PyTree:
    """An array, or a `Between` for a recurrent method."""
    answer = present_answer(run, state, states, features, batch.image)
    return lax.stop_gradient(method.views(key, batch, answer))

  def both_views(key: Key, image: Array) -> tuple[Shown, Array]:
    batch = Batch(image, jnp.zeros(len(image), jnp.int32))
    state = init(key, batch)
    states, features = kept_states(state), read_features(run, kept_states(state), image)
    return training_views(state, states, features, batch, key), method.plain_view(image)

  shown, plain = jax.eval_shape(both_views, jax.random.key(0), example)
  if isinstance(shown, Between) != (method.recurrence is not None):
    raise ValueError(
      f"the views of method {method.name!r} must show what stands above the last layer if it is "
      "recurrent, and only then"
    )
  views = shown.below if isinstance(shown, Between) else shown
  if lookahead is not None and lookahead.observe is not None and views.shape[0] < 2:
    raise ValueError(
      f"this look-ahead compares positive with negative views, and method {method.name!r} shows "
      "one view only: use another lookahead.schedule"
    )
  if views.shape[0] % network.groups:
    raise ValueError(
      f"norm_groups or scale_groups part the batch in {network.groups}, which cuts through views: "
      f"method {method.name!r} shows {views.shape[0]} in training"
    )
  shared = network.stat_groups < views.shape[0] and jax.tree.leaves(
    [s.stats["layer"] for s in states]
  )
  if method.end_to_end_view is not None and shared:
    raise ValueError(
      f"statistics that views share would carry layers' own losses of method {method.name!r} down "
      f"the view that is trained end to end: use norm_groups={views.shape[0]}, or no batch norm"
    )
  if views.shape[1:] != plain.shape:
    raise ValueError(
      f"method {method.name!r} trains on views of shape {list(views.shape[2:])}, but its plain "
      f"view has {list(plain.shape[1:])}"
    )

  def step(
    state: TrainState, batch: Batch, loss_weights: Array | None = None
  ) -> tuple[TrainState, Metrics]:
    key = step_key(state.key, state.step)
    states, readout_states = kept_states(state), state.readouts
    features: tuple[Array, ...] = ()
    metrics: Metrics = {}
    if own_pass:
      features = read_features(run, states, batch.image)
      readout_states, metrics = train_readouts(run, state, features, batch.label, key)
    x = training_views(state, states, features, batch, role_key(key, Role.VIEWS))
    args = (run, state, x, batch.label, key, loss_weights)
    if method.end_to_end_view is not None:
      layers, readout_states, layer_metrics, metrics = hybrid_sweep(*args)
      new = TrainState(state.step + 1, state.key, layers, readout_states, state.coupling)
      return new, {**layer_metrics, **metrics}
    layers, coupling, layer_metrics, read = sweep(*args)
    if run.readouts_listen:
      heard = tuple(r[0] for r in read)
      with tags.counts(counted):
        readout_states, metrics = train_readouts(run, state, heard, batch.label, key)
    new = TrainState(state.step + 1, state.key, layers, readout_states, coupling)
    return new, {**layer_metrics, **metrics}

  def answer_once(state: TrainState, image: Array, key: Key | None = None) -> Answers:
    states = kept_states(state)
    scores = layer_scores(run, states, image, key)
    features = read_features(run, states, image, key)
    with tags.counts(0 if key is None else counted):
      predictions = {
        r.name: r.predict(s.params, s.stats, scores, features)
        for r, s in zip(run.readouts, state.readouts, strict=True)
      }
    return Answers(predictions, scores)

  def sampled_answer(state: TrainState, image: Array) -> Answers:
    """The mean probability of each class over `samples` passes."""
    root = role_key(step_key(state.key, state.step), Role.ANSWER)
    chances = lambda key: jax.tree.map(jax.nn.softmax, answer_once(state, image, key))  # noqa: E731
    keys = jax.random.split(root, samples)
    first = chances(keys[0])
    add = lambda total, key: (jax.tree.map(jnp.add, total, chances(key)), None)  # noqa: E731
    total, _ = lax.scan(add, first, keys[1:])
    return jax.tree.map(lambda a: a / samples, total)

  def goodness(state: TrainState, batch: Batch, key: Key) -> Array:
    assert method.goodness is not None
    states = kept_states(state)
    features = read_features(run, states, batch.image)
    x = training_views(state, states, features, batch, key)
    return jnp.stack([a for a in read_layers(run, states, x, method.goodness) if a is not None])

  def features(state: TrainState, image: Array) -> tuple[Array, ...]:
    return plain_features(run, kept_states(state), image)

  trainer = Trainer(
    init=init,
    step=step,
    answer=sampled_answer if samples else answer_once,
    goodness=None if method.goodness is None else goodness,
    features=features,
    layer_outs=outs,
    layer_states=layer_states,
    layer_names=tuple(layer.name for layer in network.layers),
    schedule=run.schedule,
    locality=locality,
    stages=functools.partial(make_stages, run, own_pass) if mesh is None else None,
    equal_layers=find_blocks(network.layers, inputs, states),
  )
  return trainer if mesh is None else data_parallel(trainer, mesh)
