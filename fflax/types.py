"""The vocabulary of fflax: what a layer, a network, a method, a readout and a training state are.

A *layer* is the unit of locality; a *method* says what every layer is asked to do, a *readout* how
the layers become one prediction, a *schedule* which layers learn when. The driver
(`fflax.training`) owns what a method must not get wrong: `stop_gradient`, keys, optimiser states.

Shape letters: V views, B examples, K classes, L layers, D features.
"""

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, Literal, NamedTuple, Protocol

import jax
import optax

Array = jax.Array
Key = jax.Array
"""A typed key, as `jax.random.key` makes it."""
PyTree = Any
Metrics = dict[str, Array]

Locality = Literal["strict", "collaborative", "lookahead", "global"]


class Batch(NamedTuple):
  """One batch of labelled examples.

  Attributes:
    image: `[B, ...]` float32, standardised as the method wants it.
    label: `[B]` int32 in `[0, K)`.
  """

  image: Array
  label: Array


class LayerOut(NamedTuple):
  """What a layer computes for its input; every array keeps the input's leading axes.

  Attributes:
    pre: pre-activation (after batch norm where there is one), before the nonlinearity.
    act: `activation(pre)`, before any pooling. Goodness is usually read here.
    out: what the layer emits: `act`, pooled if the layer pools.
    square: `out` squared, with a gradient of its own, where the layer's units are stochastic (see
      `fflax.core.pbits`); None: `out * out`.
    log_prob: log-probability of all that the units drew, float32, with the leading axes only, where
      their gradient is left to the loss (the estimator "score" of p-bits); else None.
    act_square: the same of `act`.
    affine: scale and shift `[B, C]` of `out = scale * counts + shift`, where the next layer is to
      multiply the counts alone, see `fflax.core.absorption.AffineCounts`.
    carried: constant maps `[B, H, W, K]` that the next layer receives behind what the method hands
      on, as this layer received them: the label, where a network is told to carry it; else None.
    counts: what p-bits drew, pooled, before any norm; None where units are real or expected.
  """

  pre: Array
  act: Array
  out: Array
  square: Array | None = None
  log_prob: Array | None = None
  counts: Array | None = None
  act_square: Array | None = None
  affine: tuple[Array, Array] | None = None
  carried: Array | None = None


class Between(NamedTuple):
  """What is shown from both sides: to a layer that hears the one above it, or to a whole network.

  Attributes:
    below: the input, or what the layer below handed on.
    above: what the layer above handed on; above the last layer, what the method shows there.
  """

  below: Array
  above: Array


Shown = Array | Between
"""What a layer or a network reads: from below alone, or from both sides."""


class LayerInit(Protocol):
  def __call__(self, key: Key, x: Shown) -> tuple[PyTree, PyTree]:
    """Returns `(params, stats)` for inputs like `x` `[B, ...]`; `stats` is `{}` if none move."""


class LayerApply(Protocol):
  def __call__(
    self, params: PyTree, stats: PyTree, x: Shown, *, train: bool, key: Key | None = None
  ) -> tuple[LayerOut, PyTree]:
    """Maps `x` `[B, ...]` to its `LayerOut` and the new statistics (unchanged unless `train`)."""


class Layer(NamedTuple):
  """A layer as pure functions: the unit of locality.

  Attributes:
    name: unique within its network, used in metrics and figures.
    init: see `LayerInit`.
    apply: see `LayerApply`.
    spec: layers with equal `spec` compute the same function of (params, stats, x), to be stacked.
    counts: M, if the layer emits an affine map of counts up to M whenever its units are drawn, so
      that products with it are additions; else 0.
    two_way: whether it takes a `Between`, too. Made for one, it also takes what is below alone.
  """

  name: str
  init: LayerInit
  apply: LayerApply
  spec: Hashable
  counts: int = 0
  two_way: bool = False


class Network(NamedTuple):
  """A sequence of layers.

  Attributes:
    name: as registered.
    layers: from the input to the last layer.
    groups: equal parts of the batch, views stacked along it, that have statistics or scales of
      their own: the views of a method must be a multiple, so that no part cuts through a view.
    stat_groups: how many of them batch norm has statistics of its own for; divides `groups`.
  """

  name: str
  layers: tuple[Layer, ...]
  groups: int = 1
  stat_groups: int = 1


class ViewsFn(Protocol):
  def __call__(self, key: Key, batch: Batch, class_scores: Array | None) -> Shown:
    """What the network is shown in training, `[V, B, ...]`.

    `class_scores` `[B, K]` is the present network's answer (see `Method.negatives_from`), or None.
    """


class Place(NamedTuple):
  """Where a layer stands: `position` from 0 among `depth` layers."""

  position: int
  depth: int

  @property
  def is_last(self) -> bool:
    """Whether no layer stands above."""
    return self.position == self.depth - 1


class Broadcast(NamedTuple):
  """What a layer of a collaborative method hears from the others, without a gradient.

  Attributes:
    goodness: `[L, V, B]` of all layers, before any update; in answers `[L, B, K]`, class scores.
    position: `[]` int32: which of the layers listens.
  """

  goodness: Array
  position: Array | int


class InitLayerFn(Protocol):
  def __call__(self, key: Key, out: LayerOut, place: Place) -> tuple[PyTree, PyTree]:
    """The layer's trainable extras and its statistics, for an example `out` `[B, ...]`."""


class HandOnFn(Protocol):
  def __call__(self, out: LayerOut, *, train: bool, key: Key | None = None) -> PyTree:
    """What the next layer receives. The driver, not the method, stops the gradient there."""


class LocalLossFn(Protocol):
  def __call__(
    self, params: PyTree, stats: PyTree, out: LayerOut, label: Array, context: PyTree, key: Key
  ) -> tuple[Array, tuple[PyTree, Metrics]]:
    """This layer's scalar loss, its new statistics and its metrics (scalars).

    `params`, `stats` are the extras of `init_layer`; `out` has leading axes `[V, B]`; `context` is
    the `Broadcast` of the layers if the method is collaborative, None otherwise.
    """


class ClassScoresFn(Protocol):
  def __call__(self, params: PyTree, stats: PyTree, out: LayerOut) -> Array | None:
    """`[B, K]` from a layer's `out` on the score views (leading axes `[V, B]`), or None."""


class GoodnessFn(Protocol):
  def __call__(self, params: PyTree, stats: PyTree, out: LayerOut) -> Array:
    """The layer's goodness of every view and example, `[V, B]`, float32."""


class Recurrence(NamedTuple):
  """How the layers of a method settle together: time steps, each from the last one's activities.

  A pass from the input up starts them; nothing is heard from above in it. Then, at once for all
  layers, `h_t = damping * h_{t-1} + (1 - damping) * layer(Between(below_{t-1}, above_{t-1}))`.

  Attributes:
    steps: T, in training; a layer has its loss at every one of them.
    damping: the share of the last activities.
    window: the first and the last time step, from 1, over which class scores are averaged.
  """

  steps: int
  damping: float
  window: tuple[int, int]


class Method(NamedTuple):
  """A local rule (or its backprop control) as pure functions, one factory per paper.

  Attributes:
    name: as registered.
    paper: the source, one line.
    locality: the declared class; `fflax.core.locality` holds the method to it.
    single_pass: True if the method predicts from one pass (no candidate labels).
    views: what the network is shown in training, `[V, B, ...]`.
    plain_view: `(image) -> [B, ...]`: what it is shown when the label is unknown.
    score_views: `(image) -> [V, B, ...]`: what it is shown so that `class_scores` can be computed:
      one view per candidate label, or the plain view alone; None if layers give no class scores.
    init_layer, hand_on, local_loss, class_scores: see the protocols of this module.
    goodness: optional; logged, plotted, and what collaborating layers tell each other.
    temperature: `params -> scalar`, a layer's learned temperature, from its extras.
    positive_is_high: whether training raises the goodness of positive views (or lowers it).
    single_view: True if training shows the plain view alone (`views` is `plain_view[None]`).
      Trained readouts then learn from the training pass itself; otherwise from a pass of their own.
    negatives_from: which answer of the present network `views` needs as `class_scores`:
      "plain" (the trained readout on the plain view), "scores" (the summed layer scores) or None.
    readout_features: `out -> [B, ...]`, what trained readouts read of a layer's output `[B, ...]`;
      None: what it hands on.
    end_to_end_view: of a global method, the one view whose gradient crosses layers. What trained
      readouts read of it is not detached. None: all views, and readouts train beside the layers.
    heard_scores: `(stats, Broadcast) -> [B, K]`: what a layer answers once it has heard the class
      scores of all, which all must have; None: its own scores.
    recurrence: None, or how layers settle over time. `views` and `score_views` are then `Between`:
      what stands below the first layer and above the last. The plain view goes up once.
  """

  name: str
  paper: str
  locality: Locality
  single_pass: bool
  views: ViewsFn
  plain_view: Callable[[Array], Array]
  score_views: Callable[[Array], Shown] | None
  init_layer: InitLayerFn
  hand_on: HandOnFn
  local_loss: LocalLossFn
  class_scores: ClassScoresFn
  goodness: GoodnessFn | None = None
  negatives_from: Literal["plain", "scores"] | None = None
  positive_is_high: bool = True
  single_view: bool = False
  readout_features: Callable[[LayerOut], Array] | None = None
  temperature: Callable[[PyTree], Array] | None = None
  end_to_end_view: int | None = None
  recurrence: Recurrence | None = None
  heard_scores: Callable[[PyTree, Broadcast], Array] | None = None


class Readout(NamedTuple):
  """How layers become one prediction.

  Attributes:
    name: as registered.
    view: "scores": reads the layers' class scores on the method's score views;
      "plain": reads the layers' features (`Method.readout_features`) on the plain view, in one
      pass.
    init: `(key, features) -> (params, stats)`, from the tuple of `[B, ...]` features: what is
      trained, and what moves without a gradient; `{}` each if there is nothing.
    loss: `(params, stats, features, label, key) -> (scalar, new stats)`, or None if there is
      nothing to train.
    predict: `(params, stats, scores, features) -> [B, K]`; `scores` is a tuple with `[B, K]` or
      None for each layer (view "scores"), `features` a tuple of `[B, ...]` (view "plain"); the
      other is ().
  """

  name: str
  view: Literal["plain", "scores"]
  init: Callable[[Key, tuple[Array, ...]], tuple[PyTree, PyTree]]
  loss: Callable[[PyTree, PyTree, tuple[Array, ...], Array, Key], tuple[Array, PyTree]] | None
  predict: Callable[[PyTree, PyTree, tuple[Array | None, ...], tuple[Array, ...]], Array]


class Schedule(NamedTuple):
  """Which layers learn when.

  Attributes:
    name: as registered.
    active: `(step, num_layers) -> [L] bool`, or None: every layer learns in every step.
    reforward: True: the next layer sees this layer's output after its update ("interleaved").
    frozen_stats: statistics (of batch norm) of a layer that does not learn: "hold": they normalise
      and do not move; "update": those of the batch normalise, and the running ones move on.
    readouts_from: the step from which on trained readouts learn.
  """

  name: str
  active: Callable[[Array, int], Array] | None = None
  reforward: bool = False
  frozen_stats: Literal["hold", "update"] = "hold"
  readouts_from: int = 0


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class LayerState:
  """State of one layer, or of a run of equal layers stacked on a leading axis.

  Attributes:
    params: `{"layer": ..., "method": ...}`, all that the layer's optimiser trains.
    opt_state: of the layer's own optax transformation.
    stats: `{"layer": ..., "method": ...}`, all that moves without a gradient.
  """

  params: PyTree
  opt_state: PyTree
  stats: PyTree


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ReadoutState:
  """One readout: parameters, optimiser state (`{}` and `()` if it is not trained), statistics."""

  params: PyTree
  opt_state: PyTree
  stats: PyTree = dataclasses.field(default_factory=dict)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
  """Everything that training changes, as one pytree of arrays.

  Attributes:
    step: `[]` int32, the number of steps taken.
    key: typed root key of the run; never changes, steps fold their number into it.
    layers: one `LayerState` per block of equal stacked layers (usually one per layer).
    readouts: one `ReadoutState` per readout of the run.
    coupling: what a sweep carries that belongs to no layer (running averages of an adaptive
      look-ahead); `()` if there is nothing.
  """

  step: Array
  key: Key
  layers: tuple[LayerState, ...]
  readouts: tuple[ReadoutState, ...]
  coupling: PyTree = ()


class Answers(NamedTuple):
  """What a network answers to a batch of images.

  Attributes:
    readouts: readout name -> `[B, K]` class scores.
    layers: `[B, K]` of every layer on the score views, or None for a layer without class scores.
  """

  readouts: dict[str, Array]
  layers: tuple[Array | None, ...]


Optimizer = optax.GradientTransformation
