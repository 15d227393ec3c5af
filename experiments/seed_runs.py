"""Several seeds of a configuration as one program: every state under one `jax.vmap`, in memory."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.assembly import Experiment, build
from experiments.config import ExperimentConfig
from fflax.training.chunk import make_chunk
from fflax.types import TrainState


class SeedRuns(NamedTuple):
  """Runs that differ in their seeds alone.

  Attributes:
    experiment: what they share.
    fresh: states before training; every array has a leading axis of seeds.
    states: the same after the last step.
  """

  experiment: Experiment
  fresh: TrainState
  states: TrainState

  def error_percent(self) -> np.ndarray:
    """Test error of every seed by the first readout, in percent, `[seeds]`."""
    run = self.experiment
    accuracy = jax.vmap(run.evaluator("test", run.dataset.test))(self.states)
    return 100 * (1 - np.asarray(accuracy[f"test/accuracy/{run.config.readouts[0]}"]))


def train_seeds(config: ExperimentConfig, seeds: Sequence[int]) -> SeedRuns:
  """Trains to the end of the plan and keeps nothing on disk; `config.seed` counts for nothing.

  A seed's run is the one that `experiments.train` makes, up to rounding. One that diverges is not
  stopped: its error is what its last state answers.

  Raises:
    ValueError: the combination is impossible, seeds would have data of their own, or the run asks
      for several devices or for data that are streamed.
  """
  if config.data.drawn_by_seed:
    raise ValueError(
      "seeds with examples of their own do not share a program: use experiments.sweep"
    )
  if set(config.mesh.axes.values()) != {1}:
    raise ValueError("seeds in one program are on one device: leave mesh at 1")
  run = build(config)
  if run.feed.stream is not None:
    raise ValueError("seeds in one program want their set in memory, not as records")
  keys = jax.vmap(jax.random.key)(jnp.asarray(seeds, jnp.uint32))
  fresh = jax.jit(jax.vmap(run.trainer.init, in_axes=(0, None)))(keys, run.example())
  chunk = make_chunk(run.trainer, run.feed, run.plan.num_steps, over_seeds=True)
  # The chunk takes its argument's memory for itself.
  states, _ = chunk(jax.tree.map(jnp.copy, fresh), run.images, run.labels, run.plan.num_steps)
  return SeedRuns(run, fresh, states)
