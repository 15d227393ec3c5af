"""What a run is made of: the pure functions that `make_trainer` gives and a loop drives."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fflax.types import (
  Answers,
  Array,
  Batch,
  Key,
  LayerOut,
  LayerState,
  Locality,
  Metrics,
  Schedule,
  TrainState,
)


class Trainer(NamedTuple):
  """A run as pure functions.

  Attributes:
    init: `(key, batch) -> TrainState`.
    step: `(state, batch, loss_weights=None) -> (state, metrics)`; metrics are `[L]` per layer, and
      `readout_loss/<name>` scalars. `loss_weights` `[L]` scales the layers' losses (for audits).
    answer: `(state, image) -> Answers`; sampled answers draw from the state's key and step.
    goodness: `(state, batch, key) -> [L, V, B]` on the training views, or None.
    features: `(state, image) -> tuple` of what each layer hands on, on the plain view.
    layer_outs: `(state, image, key) -> tuple` of each layer's `LayerOut` there, in evaluation mode;
      random units are drawn, or expected if key is None.
    layer_states: `(state, stored=False) -> tuple` of L unstacked `LayerState`s, floats or stored.
    layer_names: L names.
    schedule: which layers learn when; the loop reads from it whose silence is no failure.
    locality: of the run: the method's own, or "lookahead" if layers look ahead.
    stages: `(sizes) -> fflax.training.stages.Stages`: the step, cut for a pipeline; or None.
    equal_layers: lengths of the L layers' runs of equal neighbours.
  """

  init: Callable[[Key, Batch], TrainState]
  step: Callable[..., tuple[TrainState, Metrics]]
  answer: Callable[[TrainState, Array], Answers]
  goodness: Callable[[TrainState, Batch, Key], Array] | None
  features: Callable[[TrainState, Array], tuple[Array, ...]]
  layer_outs: Callable[[TrainState, Array, Key | None], tuple[LayerOut, ...]]
  layer_states: Callable[..., tuple[LayerState, ...]]
  layer_names: tuple[str, ...]
  schedule: Schedule = Schedule("simultaneous")
  locality: Locality = "strict"
  stages: Callable[[Sequence[int]], Any] | None = None
  equal_layers: tuple[int, ...] = ()
