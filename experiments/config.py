"""The configuration of a run: one dataclass, carried over absl flags by a ConfigDict.

A configuration names one point of network x numerics x method x schedule x readout, the data and
the budget. `methods` and `networks` hold the options of every registered one, so that
`--config.method=backprop` turns any run into its matched control.
"""

import dataclasses
import hashlib
import importlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from experiments import kinds
from experiments.distributed import DistributedConfig, arguments
from fflax.core.int8_config import Int8Config
from fflax.core.pbit_config import PbitConfig
from fflax.core.readouts import READOUTS, ReadoutConfig
from fflax.data.augment import AugmentConfig
from fflax.methods.registry import METHODS
from fflax.networks.registry import NETWORKS, network_options
from fflax.training.lookahead import LookaheadConfig
from fflax.training.optimizers import OptimizerConfig
from fflax.training.schedules import StaggerConfig
from fflax.training.sharding import MeshConfig
from fflax.training.weight_store import WEIGHT_STORES

_SOURCE_OPTIONS = (
  "train_split",
  "validation_split",
  "test_split",
  "image_size",
  "num_classes",
  "superclasses",
)

# Options that the first runs did not have; at their defaults they are no part of a run's identity.
_LATER_METHOD_OPTIONS = {
  "backprop": ("head", "scale", "loss_classes", "normalize_input"),
  "collaborative": ("answer",),
  "hyperspherical": ("loss_classes", "center_rate"),
}
_LATER_NETWORK_OPTIONS = ("norm_groups", "label_maps")
_LATER_OPTIMIZER_OPTIONS = ("end_rate", "milestones", "drop", "accumulate")


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is trained on.

  Attributes:
    name: "digits", "synthetic", a path ending in .npz or .array_record (streamed), the name of one
      of these or of a prepared tensorflow-datasets set under `data_dir`, or "tfds:NAME".
    data_dir: where sets lie; empty for the default of tensorflow-datasets.
    validation: examples held out of the training split.
    train_split, validation_split, test_split: of tensorflow-datasets: a split or a slice of one,
      such as "train[:80%]"; empty for the source's own.
    image_size: of tensorflow-datasets: side in pixels that images are resized to; 0 for their own.
    num_classes: of `.npz` files and "synthetic"; 0 for the source's own.
    superclasses: put the classes together to so many: of cifar100 the 20 published; 0 for no.
    batch_size: examples a step.
    shuffle: a fresh order every epoch.
    normalization: "none" (pixels in [0, 1]), "standard" (published mean and deviation of the set),
      "dataset" (measured on the training split), "half" (0.5 and 0.5) or "imagenet".
    augment: random changes of the training images.
  """

  name: str = "digits"
  data_dir: str = ""
  validation: int = 0
  train_split: str = ""
  validation_split: str = ""
  test_split: str = ""
  image_size: int = 0
  num_classes: int = 0
  superclasses: int = 0
  batch_size: int = 100
  shuffle: bool = True
  normalization: str = "none"
  augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)

  @property
  def drawn_by_seed(self) -> bool:
    """Whether the seed decides which examples there are, not only in which order they come."""
    return bool(self.validation or self.name == "synthetic")

  def source_options(self) -> dict[str, Any]:
    """The options of the source that are set."""
    return {name: getattr(self, name) for name in _SOURCE_OPTIONS if getattr(self, name)}


@dataclasses.dataclass(frozen=True)
class ExperimentConfig:
  """One run.

  Attributes:
    seed: root of every random number of the run.
    epochs: passes over the training split, remainders of a batch dropped.
    method, methods: the method's name, and the options of each method by name.
    network, networks: the network's name, and the options of each network by name.
    activation, kernel_init: of the network's layers.
    pbits: settings of activation "pbits".
    numerics: how layers multiply, a name in `fflax.core.numerics_registry`.
    int8: settings of numerics "int8".
    weight_store: how weights are kept between steps: "float32" or "int8" (`weight_store.py`).
    rematerialize: whether gradients from above (end to end, look-ahead) run layers again instead of
      keeping activations.
    schedule: "simultaneous", "interleaved", "greedy", "alternating" or "staggered".
    lookahead: whether layers also learn from the losses of the layers above them.
    epochs_per_layer: of schedule "greedy", how long each layer's turn is; the last layer goes on to
      the end of the run, at the final rate of its schedule. 0: `epochs` // layers.
    stagger: of schedule "staggered": the epochs in which each layer learns.
    readouts: names; the first is the run's own, the others are reported beside it.
    readout: options of the readouts.
    optimizer, readout_optimizer: of the layers and of trained readouts.
    data: what is trained on.
    eval_every, checkpoint_every: epochs between evaluations and between checkpoints.
    eval_samples: 0: random units answer with their expectation; T: answers average T passes, which
      needs activation "pbits".
    eval_batch_size: examples at a time in evaluation (times K views under candidate labels).
    mesh: the devices that share each batch, or the layers; no part of a run's identity.
    distributed: the processes that have these devices; no part of a run's identity.
  """

  seed: int = 0
  epochs: int = 60
  method: str = "forward_forward"
  methods: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  network: str = "mlp"
  networks: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
  activation: str = "relu"
  pbits: PbitConfig = dataclasses.field(default_factory=PbitConfig)
  kernel_init: str = "fan_in_normal"
  numerics: str = "float32"
  int8: Int8Config = dataclasses.field(default_factory=Int8Config)
  weight_store: str = "float32"
  rematerialize: bool = False
  schedule: str = "simultaneous"
  epochs_per_layer: int = 0
  stagger: StaggerConfig = dataclasses.field(default_factory=StaggerConfig)
  lookahead: LookaheadConfig = dataclasses.field(default_factory=LookaheadConfig)
  readouts: tuple[str, ...] = ("score_sum",)
  readout: ReadoutConfig = dataclasses.field(default_factory=ReadoutConfig)
  optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  readout_optimizer: OptimizerConfig = dataclasses.field(default_factory=OptimizerConfig)
  data: DataConfig = dataclasses.field(default_factory=DataConfig)
  eval_every: int = 5
  checkpoint_every: int = 10
  eval_samples: int = 0
  eval_batch_size: int = 500
  mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
  distributed: DistributedConfig = dataclasses.field(default_factory=DistributedConfig)

  def __post_init__(self) -> None:
    """Fills in the defaults of every registered method and network, and checks names and ranges.

    Raises:
      ValueError: one sentence about the first thing that is wrong.
    """
    fill = object.__setattr__  # the class is frozen; this is its construction
    _known("method", [self.method, *self.methods], METHODS)
    _known("network", [self.network, *self.networks], NETWORKS)
    _known("readout", self.readouts, READOUTS)
    fill(self, "methods", {n: self.methods.get(n, e.config()) for n, e in METHODS.items()})
    options = {n: {**network_options(n), **self.networks.get(n, {})} for n in NETWORKS}
    fill(self, "networks", options)
    fill(self, "readouts", tuple(self.readouts))
    if len(set(self.readouts)) != len(self.readouts) or not self.readouts:
      raise ValueError(f"readouts must be one or more different names, not {self.readouts}")
    _known("weight_store", [self.weight_store], WEIGHT_STORES)
    least = {
      "epochs": 1,
      "epochs_per_layer": 0,
      "eval_every": 1,
      "checkpoint_every": 1,
      "eval_samples": 0,
    }
    for field, bound in least.items():
      if getattr(self, field) < bound:
        raise ValueError(f"{field} must be at least {bound}, not {getattr(self, field)}")
    if self.eval_samples and self.activation != "pbits":
      raise ValueError(
        f"eval_samples averages over random units: activation {self.activation!r} has none"
      )
    if self.eval_batch_size < 1 or self.data.batch_size < 1:
      raise ValueError("batch sizes must be at least 1")
    if not 0 <= self.seed < 2**32:
      raise ValueError(f"seed must be in [0, 2**32), not {self.seed}")
    arguments(self.distributed)


def _known(what: str, names: Any, registry: Mapping[str, Any]) -> None:
  for name in names:
    if name not in registry:
      raise ValueError(f"unknown {what} {name!r}; there are {', '.join(registry)}")


def as_dict(config: Any) -> dict[str, Any]:
  """A configuration, or a part of one, as nested plain values, ready for JSON."""

  def plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
      return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
      return {k: plain(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple | list) else value

  return plain(config)


def to_flags(config: ExperimentConfig) -> ConfigDict:
  """The configuration as a typed ConfigDict, for `ml_collections.config_flags`."""

  def tuples(value: Any) -> Any:
    if isinstance(value, dict):
      return {k: tuples(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value

  return ConfigDict(tuples(as_dict(config)))


def load_preset(name: str) -> ExperimentConfig:
  """The configuration of `experiments/configs/<name>.py`; "name:argument" as in `--config`.

  Raises:
    ValueError: there is no such file.
  """
  stem, _, argument = name.partition(":")
  try:
    module = importlib.import_module(f"experiments.configs.{stem}")
  except ModuleNotFoundError:
    raise ValueError(f"there is no preset {stem!r} in experiments/configs") from None
  return from_mapping(module.get_config(*filter(None, [argument])).to_dict())


def preset_name(path: str) -> str:
  """The preset of a configuration file, as `load_preset` takes it."""
  file, colon, argument = path.partition(":")
  return pathlib.Path(file).stem + colon + argument


def from_mapping(values: Mapping[str, Any]) -> ExperimentConfig:
  """The inverse of `as_dict` and `to_flags`.

  Raises:
    ValueError: a field is unknown, of the wrong kind or impossible.
  """
  values = dict(kinds.group(values, "config"))
  nested = {
    "int8": Int8Config,
    "pbits": PbitConfig,
    "lookahead": LookaheadConfig,
    "stagger": StaggerConfig,
    "readout": ReadoutConfig,
    "optimizer": OptimizerConfig,
    "readout_optimizer": OptimizerConfig,
    "mesh": MeshConfig,
    "distributed": DistributedConfig,
  }
  for name, cls in nested.items():
    if name in values:
      values[name] = _make(cls, values[name], name)
  if "data" in values:
    data = dict(kinds.group(values["data"], "data"))
    if "augment" in data:
      data["augment"] = _make(AugmentConfig, data["augment"], "data.augment")
    values["data"] = _make(DataConfig, data, "data")
  methods = kinds.group(values.get("methods", {}), "methods")
  _known("method", methods, METHODS)
  values["methods"] = {n: _make(METHODS[n].config, m, f"methods.{n}") for n, m in methods.items()}
  networks = kinds.group(values.get("networks", {}), "networks")
  _known("network", networks, NETWORKS)
  values["networks"] = {n: _options(n, options) for n, options in networks.items()}
  return _make(ExperimentConfig, values, "config")


def _options(network: str, values: Any) -> dict[str, Any]:
  """The given options of a network; lists become tuples."""
  where = f"networks.{network}"
  return kinds.checked(kinds.group(values, where), network_options(network), where)


def _make(cls: type, values: Any, where: str) -> Any:
  own = {}
  for f in dataclasses.fields(cls):
    own[f.name] = f.default_factory() if callable(f.default_factory) else f.default
  return cls(**kinds.checked(kinds.group(values, where), own, where))


def fingerprint(config: ExperimentConfig) -> str:
  """Identifies a run: the SHA-256 of its configuration, without what does not change its numbers.

  Unused methods and networks, and options of the data that are not set, are left out, so that a
  release that adds one still resumes old runs.
  """
  values = as_dict(config)
  del values["mesh"], values["distributed"]
  values["methods"] = values["methods"][config.method]
  values["networks"] = values["networks"][config.network]
  options, defaults = config.methods[config.method], METHODS[config.method].config()
  for field in _LATER_METHOD_OPTIONS.get(config.method, ()):
    if getattr(options, field) == getattr(defaults, field):
      del values["methods"][field]
  own = network_options(config.network)
  for field in _LATER_NETWORK_OPTIONS:
    if values["networks"].get(field) == own.get(field):
      values["networks"].pop(field, None)
  left_out = {k for k in _SOURCE_OPTIONS if not values["data"][k]} | {"data_dir"}
  values["data"] = {k: v for k, v in values["data"].items() if k not in left_out}
  if config.schedule != "greedy":
    values["epochs_per_layer"] = 1  # not read; the default of the first runs
  if config.lookahead.mode == "none":
    del values["lookahead"]
  if config.int8.scale_groups == 1:
    del values["int8"]["scale_groups"]
  if config.int8 == Int8Config():
    del values["int8"]
  elif config.int8.activations == "rounded":
    del values["int8"]["activations"]  # runs from before there was a choice
  if config.pbits == PbitConfig():
    del values["pbits"]
  if config.weight_store == "float32":
    del values["weight_store"]
  if not config.rematerialize:
    del values["rematerialize"]
  if config.schedule != "staggered":
    del values["stagger"]
  if not config.eval_samples:
    del values["eval_samples"]
  unset = {k: v for k, v in as_dict(OptimizerConfig()).items() if k in _LATER_OPTIMIZER_OPTIONS}
  for name in ("optimizer", "readout_optimizer"):
    values[name] = {k: v for k, v in values[name].items() if unset.get(k, ...) != v}
  for field, default in dataclasses.asdict(ReadoutConfig()).items():
    if field.startswith("head_") and values["readout"][field] == default:
      del values["readout"][field]
  return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
  """The dotted names of the fields in which two `as_dict` configurations differ."""
  names = []
  for key in sorted({*old, *new}):
    a, b = old.get(key), new.get(key)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
      names += differences(a, b, f"{prefix}{key}.")
    elif a != b:
      names.append(f"{prefix}{key}")
  return names
