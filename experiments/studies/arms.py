"""Ways to learn class by class: the presets as they are run, and the arms made of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from experiments import config
from fflax.core.readouts import make_readout
from fflax.data.augment import AugmentConfig


class Arm(NamedTuple):
  """One way to learn.

  Attributes:
    preset: its name.
    chosen: the run of one task; its epochs are those of every task.
    groups: of classes; 1 is joint training.
    loss: which classes compete in the loss: "all" there are, those "seen" so far, or the "current"
      ones of the task.
    buffer: exemplars kept of every seen class, repeated to the number of a new class's examples.
    trunk: "trained" in every task, "frozen" after the first, or "random": never trained.
    shots: of a trunk that is not trained: images that a class after the first task is stored by,
      as the mean of their features; 0: all of them.
  """

  preset: str
  chosen: config.ExperimentConfig
  groups: int
  loss: str = "seen"
  buffer: int = 0
  trunk: str = "trained"
  shots: int = 0

  def label(self) -> str:
    """For tables."""
    if self.groups == 1:
      return f"{self.preset}, joint"
    if self.trunk != "trained":
      shots = f", new classes by {self.shots} images" if self.shots else ""
      return f"{self.preset}, trunk {self.trunk}{shots}"
    return f"{self.preset}, loss over {self.loss}, {self.buffer} exemplars"


def check(arm: Arm) -> None:
  """Refuses arms that cannot be run, or whose answer would know what it must not.

  Raises:
    ValueError: one sentence.
  """
  if not hasattr(arm.chosen.methods[arm.chosen.method], "loss_classes") and arm.loss != "all":
    raise ValueError(
      f"method {arm.chosen.method!r} has no loss over some of the classes: use --losses=all"
    )
  for name in arm.chosen.readouts:
    if arm.loss != "all" and make_readout(name, arm.chosen.readout, 2).loss is not None:
      raise ValueError(
        f"readout {name!r} of {arm.preset!r} is trained over all classes: use --losses=all"
      )
  if arm.loss == "current" and arm.buffer:
    raise ValueError("with exemplars the classes of a task's data are all seen: use loss 'seen'")
  if arm.shots and arm.trunk == "trained":
    raise ValueError("shots are of a trunk that is not trained on the new classes")
  if arm.chosen.data.normalization == "dataset":
    raise ValueError("normalization 'dataset' would know the classes to come: use another one")
  if arm.chosen.data.validation:
    raise ValueError("classes come without a validation part: set data.validation to 0")


def make_arms(
  chosen: Mapping[str, config.ExperimentConfig],
  groups: int,
  losses: Sequence[str],
  buffers: Sequence[str],
  shots: Sequence[str] = (),
  controls: bool = True,
) -> list[Arm]:
  """All arms of a study, at least one.

  Args:
    chosen: the runs, by label.
    groups: of classes.
    losses: "all", "seen" and "current", each with every buffer; but with exemplars the classes of a
      task's data are all seen, so "current" goes without.
    buffers: numbers of exemplars.
    shots: numbers of images by which a frozen trunk learns a class.
    controls: whether there are joint training, frozen and random trunks.

  Raises:
    ValueError: an arm is impossible, or something that is asked for is in no arm.
  """
  numbers = {"buffers": buffers, "shots": shots}
  for name, values in numbers.items():
    if not all(v.strip().isdecimal() for v in values):
      raise ValueError(f"--{name} takes whole numbers, not {','.join(values)}")
  if not set(losses) <= {"all", "seen", "current"}:
    raise ValueError(f"--losses takes all, seen and current, not {','.join(losses)}")
  sizes, few = [int(b) for b in buffers], [int(s) for s in shots]
  if "current" in losses and 0 not in sizes:
    raise ValueError("--losses=current goes without exemplars: give --buffers a 0 too")
  if "current" in losses and any(sizes) and "seen" not in losses:
    raise ValueError(
      "with exemplars the classes of a task's data are all seen: give --losses 'seen' too, or "
      "--buffers=0 alone"
    )
  if 0 in few:
    raise ValueError("--shots takes numbers from 1 on")
  arms = []
  for loss in losses:
    for size in sizes:
      if loss != "current" or not size:
        arms += [Arm(n, c, groups, loss, size) for n, c in chosen.items()]
  frozen = ([0] if controls else []) + few
  if controls:
    arms += [Arm(n, c, 1, "all") for n, c in chosen.items()]
  for number in frozen:
    arms += [Arm(n, c, groups, losses[0], 0, "frozen", number) for n, c in chosen.items()]
  if controls:
    first = next(iter(chosen))
    arms.append(Arm(first, chosen[first], groups, losses[0], trunk="random"))
  for arm in arms:
    check(arm)
  return arms


def runs(
  presets: Mapping[str, config.ExperimentConfig],
  *,
  epochs: int,
  batch_size: int | None = None,
  data_dir: str = "",
  prototypes: Sequence[str] = (),
) -> dict[str, config.ExperimentConfig]:
  """The presets as they are run, by label.

  Args:
    presets: by name.
    epochs: of every task.
    batch_size: None: the preset's.
    data_dir: where sets lie; empty: where the preset says.
    prototypes: modes of hyperspherical presets, a run each; none: theirs.

  Raises:
    ValueError: no preset has prototypes, or the presets differ in their data; one sentence.
  """
  found = {}
  for name, one in presets.items():
    changes: dict[str, Any] = {"data_dir": data_dir or one.data.data_dir, "validation": 0}
    if batch_size:
      changes["batch_size"] = batch_size
    data = dataclasses.replace(one.data, **changes)
    one = dataclasses.replace(one, epochs=epochs, data=data)
    modes = prototypes if one.method == "hyperspherical" else ()
    for mode in modes:
      method = dataclasses.replace(one.methods[one.method], prototypes=mode)
      changed = dataclasses.replace(one, methods={**one.methods, one.method: method})
      found[f"{name} ({mode})"] = changed
    if not modes:
      found[name] = one
  if prototypes and not any(one.method == "hyperspherical" for one in found.values()):
    raise ValueError("--prototypes are of hyperspherical presets, and there is none")
  _check_data(found)
  return found


def _check_data(chosen: Mapping[str, config.ExperimentConfig]) -> None:
  """All arms learn from one data set, so what is learned from must be the same everywhere."""
  shared = {
    name: config.as_dict(dataclasses.replace(one.data, batch_size=1, augment=AugmentConfig()))
    for name, one in chosen.items()
  }
  first = next(iter(shared))
  for name, data in shared.items():
    differing = config.differences(shared[first], data, "data.")
    if differing:
      raise ValueError(
        f"all presets of this study learn from the same data, but {name!r} differs from {first!r} "
        f"in {', '.join(differing)}"
      )
