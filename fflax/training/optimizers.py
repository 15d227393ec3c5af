"""Optimisers: one optax transformation, of which every layer carries its own state."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import optax

from fflax.core.numerics import GRADIENT_STATE, Numerics
from fflax.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """One optimiser.

  Attributes:
    name: "sgd" (momentum as in PyTorch: decay enters the momentum), "dampened" (the Matlab code's
      `v <- m v + (1 - m) g`, `w -= lr (v + decay w)`), "adam", "adamw" (decoupled decay).
    learning_rate: the peak rate.
    momentum: of "sgd" and "dampened".
    weight_decay: see `name`.
    no_decay: names of the parameters that do not decay: biases, and what only has a direction.
    schedule: "constant", "cosine" (to `end_rate`), "cooldown" (constant, then linear in the second
      half of the epochs; see `cooldown`) or "steps" (times `drop` after each of `milestones`).
    cooldown: which published cool-down: "matlab", "ff_py" or "loewex".
    warmup_epochs: linear warm-up of "cosine".
    clip_norm: per-layer global-norm clipping; 0 for none.
    end_rate: where "cosine" ends.
    milestones, drop: of "steps": epochs after which the rate is multiplied, and by what.
    accumulate: k > 1: the mean gradient of k batches makes one update, as one batch of k times the
      size would; a step of the run is still one batch, and counts as a k-th for the schedule.
      Whatever else moves with a batch (statistics of batch norm, running means) moves k times.
      It says nothing of a trained readout, whose optimiser has an `accumulate` of its own.
  """

  name: str = "adam"
  learning_rate: float = 1e-3
  momentum: float = 0.9
  weight_decay: float = 0.0
  no_decay: tuple[str, ...] = ("bias", "prototypes")
  schedule: str = "constant"
  cooldown: str = "loewex"
  warmup_epochs: float = 0.0
  clip_norm: float = 0.0
  end_rate: float = 0.0
  milestones: tuple[int, ...] = ()
  drop: float = 0.25
  accumulate: int = 1

  def __post_init__(self) -> None:
    """Refuses impossible numbers and unknown names with one sentence."""
    if self.name not in OPTIMIZERS:
      raise ValueError(f"unknown optimizer {self.name!r}; there are {', '.join(OPTIMIZERS)}")
    if self.schedule not in ("constant", "cosine", "cooldown", "steps"):
      raise ValueError(
        f"unknown learning-rate schedule {self.schedule!r}; there are constant, cosine, cooldown, "
        "steps"
      )
    if self.cooldown not in COOLDOWNS:
      raise ValueError(f"unknown cooldown {self.cooldown!r}; there are {', '.join(COOLDOWNS)}")
    if not 0 < self.learning_rate < float("inf"):
      raise ValueError(f"learning_rate must be positive and finite, not {self.learning_rate}")
    if not 0 <= self.momentum < 1:
      raise ValueError(f"momentum must be in [0, 1), not {self.momentum}")
    for field in ("weight_decay", "warmup_epochs", "clip_norm"):
      if not 0 <= getattr(self, field) < float("inf"):
        raise ValueError(f"{field} must be finite and not negative, not {getattr(self, field)}")
    if not 0 <= self.end_rate <= self.learning_rate:
      raise ValueError(f"end_rate must be between 0 and learning_rate, not {self.end_rate}")
    if any(type(epoch) is not int or epoch < 1 for epoch in self.milestones):
      raise ValueError(f"milestones must be epochs from 1 on, not {self.milestones}")
    if not 0 < self.drop <= 1:
      raise ValueError(f"drop must be in (0, 1], not {self.drop}")
    if type(self.accumulate) is not int or self.accumulate < 1:
      raise ValueError(f"accumulate must be a number of batches, not {self.accumulate!r}")


def cooldown_gain(kind: str, epoch: Array, epochs: int) -> Array:
  """The published linear cool-downs, for epochs counted from 0.

  matlab (e from 1): 1 if e <= E/2 else (1 + 2(E - e))/E; ff_py (e from 0): 1 if e < E/2 else
  (1 + 2(E - e))/E; loewex (e from 0): 1 if e <= E//2 else 2(1 + E - e)/E.
  """
  if kind == "matlab":
    e = epoch + 1
    gain = jnp.where(e <= epochs / 2, 1.0, (1 + 2 * (epochs - e)) / epochs)
  elif kind == "ff_py":
    gain = jnp.where(epoch < epochs / 2, 1.0, (1 + 2 * (epochs - epoch)) / epochs)
  else:
    gain = jnp.where(epoch <= epochs // 2, 1.0, 2 * (1 + epochs - epoch) / epochs)
  return jnp.maximum(gain, 0.0)  # a run longer than planned must not climb the loss


COOLDOWNS = ("matlab", "ff_py", "loewex")


def learning_rate_schedule(
  config: OptimizerConfig, epochs: int, steps_per_epoch: int
) -> optax.Schedule:
  """Learning rate as a function of the optimiser's own step count, in batches.

  Raises:
    ValueError: the warm-up is longer than the run.
  """
  rate = config.learning_rate
  if config.schedule == "constant":
    return optax.constant_schedule(rate)
  if config.schedule == "cosine":
    total = epochs * steps_per_epoch
    warmup = int(config.warmup_epochs * steps_per_epoch)
    if warmup >= total:
      raise ValueError(f"warmup_epochs {config.warmup_epochs} must be below epochs {epochs}")
    decay = optax.cosine_decay_schedule(rate, total - warmup, config.end_rate / rate)
    if warmup == 0:
      return decay
    return optax.join_schedules([optax.linear_schedule(0.0, rate, warmup), decay], [warmup])
  if config.schedule == "steps":
    drops = {epoch * steps_per_epoch: config.drop for epoch in config.milestones}
    return optax.piecewise_constant_schedule(rate, drops)
  return lambda count: rate * cooldown_gain(config.cooldown, count // steps_per_epoch, epochs)


def _decays(config: OptimizerConfig) -> Callable[[PyTree], PyTree]:
  """The mask of the parameters that decay, by their path."""

  def mask(params: PyTree) -> PyTree:
    def one(path: tuple, leaf: Array) -> bool:
      del leaf
      return str(getattr(path[-1], "key", path[-1])) not in config.no_decay

    return jax.tree_util.tree_map_with_path(one, params)

  return mask


def _sgd(config: OptimizerConfig, decay: optax.GradientTransformation) -> list:
  return [decay, optax.trace(config.momentum) if config.momentum else optax.identity()]


def _dampened(config: OptimizerConfig, decay: optax.GradientTransformation) -> list:
  return [optax.ema(config.momentum, debias=False), decay]


def _adam(config: OptimizerConfig, decay: optax.GradientTransformation) -> list:
  del config
  return [decay, optax.scale_by_adam()]


def _adamw(config: OptimizerConfig, decay: optax.GradientTransformation) -> list:
  del config
  return [optax.scale_by_adam(), decay]


OPTIMIZERS: Mapping[str, Callable[..., list]] = {
  "sgd": _sgd,
  "dampened": _dampened,
  "adam": _adam,
  "adamw": _adamw,
}


def make_optimizer(
  config: OptimizerConfig, *, epochs: int = 1, steps_per_epoch: int = 1
) -> optax.GradientTransformation:
  """The optax transformation of `config`; `epochs` and `steps_per_epoch` place its schedule.

  With `accumulate`, updates are zero but in every k-th call; batches that are left over at the end
  of a run, or of a layer's last turn, have no effect; where turns alternate, they count in the
  layer's next one. The state holds the sum and the count, so a run may be cut anywhere.

  Raises:
    ValueError: the warm-up is longer than the run.
  """
  decay = (
    optax.add_decayed_weights(config.weight_decay, mask=_decays(config))
    if config.weight_decay
    else optax.identity()
  )
  clip = [optax.clip_by_global_norm(config.clip_norm)] if config.clip_norm else []
  rate = learning_rate_schedule(config, epochs, steps_per_epoch)
  steps = OPTIMIZERS[config.name](config, decay)
  k = config.accumulate
  each = rate if k == 1 else lambda count: rate(count * k)
  found = optax.chain(*clip, *steps, optax.scale_by_learning_rate(each))
  return found if k == 1 else optax.MultiSteps(found, k).gradient_transformation()


def for_numerics(
  optimizer: optax.GradientTransformation, numerics: Numerics
) -> optax.GradientTransformation:
  """The optimiser of a network whose products may carry a state of their gradients.

  A parameter named `GRADIENT_STATE` is replaced by its "gradient", which is its next value; the
  optimiser, its clipping and its decay never see it. The updates of the parameters beside it are
  multiplied by `numerics.learning_rate_scale` of that value.

  Args:
    optimizer: of all other parameters.
    numerics: of the network; returned is `optimizer` itself if they carry no state.
  """
  if numerics.gradient_state is None:
    return optimizer
  scale = numerics.learning_rate_scale

  def is_trained(tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(
      lambda path, _: getattr(path[-1], "key", None) != GRADIENT_STATE, tree
    )

  def replace(updates: PyTree, params: PyTree) -> PyTree:
    if not isinstance(updates, Mapping):
      return updates
    factor: Array | float = 1.0
    for child in updates.values():
      if scale is not None and isinstance(child, Mapping) and GRADIENT_STATE in child:
        factor = scale(child[GRADIENT_STATE])
    new = {}
    for name, update in updates.items():
      if name == GRADIENT_STATE:
        new[name] = update - params[name]
      elif isinstance(update, Mapping):
        new[name] = replace(update, params[name])
      else:
        new[name] = jax.tree.map(lambda u, f=factor: f * u, update)
    return new

  return optax.chain(optax.masked(optimizer, is_trained), optax.stateless(replace))
