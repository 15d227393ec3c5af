"""Schedules: which layers learn when."""

import dataclasses
from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp

from fflax.types import Array, Schedule


def simultaneous() -> Schedule:
  """One forward pass; every layer updates from it; the next layer sees the pre-update output."""
  return Schedule("simultaneous")


def interleaved() -> Schedule:
  """Within a step, layer l is updated first and layer l + 1 sees its new output (one more pass)."""
  return Schedule("interleaved", reforward=True)


def greedy(steps_per_layer: int) -> Schedule:
  """Layer 1 learns for `steps_per_layer` steps, then layer 2, and so on; the last one goes on.

  Layers that are not learning keep every bit of their parameters, optimiser state and statistics.

  Raises:
    ValueError: `steps_per_layer` is not positive.
  """
  if steps_per_layer < 1:
    raise ValueError(f"schedule greedy needs steps_per_layer >= 1, not {steps_per_layer}")

  def active(step: Array, num_layers: int) -> Array:
    return jnp.arange(num_layers) == jnp.minimum(step // steps_per_layer, num_layers - 1)

  return Schedule("greedy", active=active)


def alternating() -> Schedule:
  """Step t trains layer t mod L: each update sees the others' newest parameters.

  The order of G. Lorberbom et al. (AAAI 2024, arXiv 2305.12393, algorithm 2), with a batch for
  every update: a round over the layers takes L steps.
  """

  def active(step: Array, num_layers: int) -> Array:
    return jnp.arange(num_layers) == step % num_layers

  return Schedule("alternating", active=active)


def staggered(
  starts: Sequence[int],
  ends: Sequence[int],
  *,
  frozen_stats: Literal["hold", "update"] = "hold",
  readouts_from: int = 0,
) -> Schedule:
  """Layer l learns in the steps of the half-open interval `[starts[l], ends[l])`.

  Staggered layer termination of channel-wise FF (A. Papachristodoulou et al., AAAI 2024, arXiv
  2312.12668, "ILT"). Outside of its interval a layer keeps every bit of its parameters and
  optimiser state, and of its statistics too unless `frozen_stats` is "update", as in the paper's
  code; before trained readouts begin, so do they.

  Args:
    starts: in steps, one for each layer.
    ends: as `starts`.
    frozen_stats: see `fflax.types.Schedule`.
    readouts_from: see `fflax.types.Schedule`.

  Raises:
    ValueError: an interval is empty, or the lists differ in length.
  """
  starts, ends = tuple(starts), tuple(ends)
  if len(starts) != len(ends) or any(not 0 <= s < e for s, e in zip(starts, ends, strict=False)):
    raise ValueError(
      f"schedule staggered needs as many starts as ends, each 0 <= start < end; got {starts} and "
      f"{ends}"
    )

  def active(step: Array, num_layers: int) -> Array:
    if num_layers != len(starts):
      raise ValueError(
        f"schedule staggered has intervals for {len(starts)} layers, the network has {num_layers}"
      )
    return (jnp.asarray(starts) <= step) & (step < jnp.asarray(ends))

  return Schedule(
    "staggered", active=active, frozen_stats=frozen_stats, readouts_from=readouts_from
  )


@dataclasses.dataclass(frozen=True)
class StaggerConfig:
  """Options of schedule "staggered", in epochs.

  Attributes:
    starts, ends: of each layer's interval; a list of one number is that of all layers. `ends`
      must be given.
    frozen_stats: "hold" or "update", see `fflax.types.Schedule`.
    readouts_from: the epoch from which on trained readouts learn.
  """

  starts: tuple[int, ...] = (0,)
  ends: tuple[int, ...] = ()
  frozen_stats: str = "hold"
  readouts_from: int = 0

  def __post_init__(self) -> None:
    """Refuses impossible numbers with one sentence."""
    for field in ("starts", "ends"):
      values = getattr(self, field)
      if not isinstance(values, tuple | list) or any(type(v) is not int for v in values):
        raise ValueError(f"stagger.{field} must be a list of epochs, not {values!r}")
      object.__setattr__(self, field, tuple(values))
    if self.frozen_stats not in ("hold", "update"):
      raise ValueError(f"stagger.frozen_stats must be hold or update, not {self.frozen_stats!r}")
    if self.readouts_from < 0:
      raise ValueError(f"stagger.readouts_from must be 0 or more, not {self.readouts_from}")

  def intervals(self, num_layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Starts and ends of `num_layers` layers.

    Raises:
      ValueError: they are given for another number of layers.
    """
    if not self.ends:
      raise ValueError("schedule 'staggered' needs stagger.ends: the epochs in which layers stop")
    lists = []
    for field in ("starts", "ends"):
      values = getattr(self, field)
      if len(values) not in (1, num_layers):
        raise ValueError(
          f"stagger.{field} has {len(values)} entries, but the network has {num_layers} layers"
        )
      lists.append(values * num_layers if len(values) == 1 else values)
    return lists[0], lists[1]


SCHEDULES = ("simultaneous", "interleaved", "greedy", "alternating", "staggered")


def layer_epochs(
  name: str, config: StaggerConfig, epochs: int, epochs_per_layer: int, num_layers: int
) -> int:
  """For how many epochs a layer learns at most; what its learning-rate schedule spans.

  Raises:
    ValueError: the run would end before a layer's or a readout's turn, or the intervals are
      impossible.
  """
  if name == "greedy":
    turn = epochs_per_layer or max(1, epochs // num_layers)
    if epochs <= turn * (num_layers - 1):
      raise ValueError(
        f"schedule 'greedy' would never train the last of {num_layers} layers: epochs "
        f"{epochs} must be above {turn * (num_layers - 1)} (epochs_per_layer {turn} for each "
        "layer before it)"
      )
    return turn
  if name == "alternating":
    return max(1, -(-epochs // num_layers))
  if name == "staggered":
    starts, ends = config.intervals(num_layers)
    staggered(starts, ends)
    latest = max(*starts, config.readouts_from)
    if epochs <= latest:
      raise ValueError(
        f"schedule 'staggered' starts its last learner at epoch {latest}, so epochs must be above "
        f"that, not {epochs}"
      )
    return max(min(e, epochs) - s for s, e in zip(starts, ends, strict=True))
  return epochs


def make_schedule(
  name: str,
  config: StaggerConfig | None = None,
  *,
  num_layers: int,
  steps_per_epoch: int = 1,
  epochs_per_layer: int = 1,
) -> Schedule:
  """The schedule of that name.

  Args:
    name: in `SCHEDULES`.
    config: of "staggered".
    num_layers: of the network.
    steps_per_epoch: what an epoch is.
    epochs_per_layer: of "greedy".

  Raises:
    ValueError: unknown name, or impossible numbers.
  """
  if name not in SCHEDULES:
    raise ValueError(f"unknown schedule {name!r}; there are {', '.join(SCHEDULES)}")
  if name == "greedy":
    return greedy(epochs_per_layer * steps_per_epoch)
  if name == "staggered":
    config = config or StaggerConfig()
    starts, ends = config.intervals(num_layers)
    return staggered(
      [s * steps_per_epoch for s in starts],
      [e * steps_per_epoch for e in ends],
      frozen_stats="update" if config.frozen_stats == "update" else "hold",
      readouts_from=config.readouts_from * steps_per_epoch,
    )
  return {"interleaved": interleaved, "alternating": alternating}.get(name, simultaneous)()
