"""Grids around DTG-FF: what depth, width, pooling, temperature, norms, optimisers and labels do.

The controls that its paper (Y. Chen, 2026, arXiv 2606.06539) lacks. Every grid keeps the trunk and
the data of one preset; deep supervision and backprop have its norm between layers, no dropout.
"""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from experiments import config
from experiments.studies.comparison import Grid

Fields = Mapping[str, Any]


class Trunk(NamedTuple):
  """What a grid varies of one preset.

  Attributes:
    preset: its name.
    title: of its data.
    network: whose sizes are varied.
    option: of the network, that holds the sizes.
    pool_after: layers that pool; they come first, so that nets of every depth see the same maps.
    width, widths: units of a layer where depth is varied, and those that are compared.
    norm: between layers, in the words of backprop.
  """

  preset: str
  title: str
  network: str
  option: str
  pool_after: tuple[int, ...]
  width: int
  widths: tuple[int, ...]
  norm: str


_WIDTHS = (64, 128, 256, 512)
TRUNKS: Mapping[str, Trunk] = MappingProxyType(
  {
    "digits": Trunk(
      "dtg_digits", "the digits", "small_cnn", "channels", (1,), 64, (16, 32, 64, 128),
      "channel_layer",
    ),
    "synth": Trunk(
      "synth_dtg", "the teacher-student task", "mlp", "sizes", (), 128, (32, 64, 128, 256), "none"
    ),
    "cifar10": Trunk(
      "dtg_cifar10", "CIFAR-10", "small_cnn", "channels", (1, 2), 256, _WIDTHS, "channel_layer"
    ),
  }
)  # fmt: skip
_DEPTH, _DEPTHS = 4, (2, 4, 6, 8)


def _methods(norm: str) -> dict[str, dict[str, Any]]:
  """DTG-FF and its two controls, all answering by "score_sum"."""

  def control(**own: Any) -> dict[str, Any]:
    return {"method": "backprop", "methods": {"backprop": {"normalization": norm, **own}}}

  found = {"DTG-FF": {}, "deep supervision": control(heads="all"), "backprop": control()}
  return {name: {**fields, "readouts": ("score_sum",)} for name, fields in found.items()}


def _crossed(methods: Mapping[str, Fields], variants: Mapping[str, Fields]) -> dict[str, Fields]:
  """A point for every method in every variant."""
  return {
    f"{name}, {label}": {**fields, **own}
    for name, fields in methods.items()
    for label, own in variants.items()
  }


def _network(name: str, option: str, sizes: tuple[int, ...], pool_after: tuple[int, ...]) -> Fields:
  """A network of these sizes; maps are pooled by their mean after some of its layers."""
  options: dict[str, Any] = {option: sizes}
  if pool_after:
    options |= {"pool_after": pool_after, "pool": "avg"}
  return {"network": name, "networks": {name: options}}


def depth_and_width(data: str) -> Grid:
  """Depth at one width, and width at one depth: published nets differ in both, and in pooling."""
  trunk = TRUNKS[data]
  shapes = {f"{d} layers of {trunk.width}": (trunk.width,) * d for d in _DEPTHS}
  shapes |= {f"{_DEPTH} layers of {w}": (w,) * _DEPTH for w in trunk.widths}
  nets = {
    label: _network(trunk.network, trunk.option, sizes, trunk.pool_after)
    for label, sizes in shapes.items()
  }
  pooled = f" Layers {trunk.pool_after} pool, whatever the depth." if trunk.pool_after else ""
  return Grid(
    f"Depth and width apart: {trunk.title}",
    trunk.preset,
    _crossed(_methods(trunk.norm), nets),
    note=_NOTE + pooled,
  )


def pooling() -> Grid:
  """VGG8 against VGG11 with their channels and their places of pooling crossed, on CIFAR-10."""
  channels = {
    "VGG8": (128, 256, 256, 512, 512, 512, 512),
    "VGG11": (64, 128, 256, 256, 512, 512, 512, 512),
  }
  places = {"late (VGG8's)": (2, 4, 5, 6), "early (VGG11's)": (1, 2, 4, 6)}
  nets = {
    f"channels of {net}, pooled {place}": _network("small_cnn", "channels", sizes, pool_after)
    for net, sizes in channels.items()
    for place, pool_after in places.items()
  }
  published = {
    "DTG-FF, channels of VGG8, pooled late (VGG8's)": 8.21,
    "DTG-FF, channels of VGG11, pooled early (VGG11's)": 15.64,
    "deep supervision, channels of VGG8, pooled late (VGG8's)": 6.27,
    "backprop, channels of VGG8, pooled late (VGG8's)": 5.2,
  }
  note = f"{_NOTE} The published VGG11 answers by its concatenating head, the other DTG-FF by sum."
  return Grid(
    "VGG8 and VGG11, channels and pooling crossed",
    "dtg_cifar10",
    _crossed(_methods("channel_layer"), nets),
    published,
    note,
  )


def temperature(data: str) -> Grid:
  """Temperatures learned, fixed and absent, and a norm on each of the three paths or none."""
  trunk = TRUNKS[data]
  network = config.load_preset(trunk.preset).network
  bounds = {
    "T learned in [0.5, 2]": (0.5, 2.0),
    "T learned in [0.1, 10]": (0.1, 10.0),
    "T = 0.5": (0.5, 0.5),
    "no T": (1.0, 1.0),
    "T = 1.25": (1.25, 1.25),
    "T = 2": (2.0, 2.0),
  }

  def dtg(**fields: Any) -> dict[str, Any]:
    return {"methods": {"dtg": fields}}

  normed = {"networks": {network: {"batch_norm": True}}}
  points: dict[str, Fields] = {label: dtg(temperature=t) for label, t in bounds.items()}
  points |= {
    "RMS handed on": dtg(normalization="rms"),
    "no norm handed on": dtg(normalization="none"),
    "no norm handed on, no T": dtg(normalization="none", temperature=(1.0, 1.0)),
    "goodness batch-normalised": normed,
    "goodness batch-normalised, no T": {**normed, **dtg(temperature=(1.0, 1.0))},
    "readouts of unit columns": dtg(readout="unit_columns"),
    "readouts of unit columns, no T": dtg(readout="unit_columns", temperature=(1.0, 1.0)),
    "no dropout between layers": dtg(dropout=0.0),
    "head without dropout and smoothing": {"readout": {"head_dropout": 0.0, "head_smoothing": 0.0}},
  }
  readouts = ("norm_head", "softmax_head", "score_sum")
  published = {
    "T learned in [0.5, 2]": 8.67,
    "no T": 9.39,
    "no norm handed on": 9.47,
    "readouts of unit columns": 9.78,
    "readouts of unit columns, no T": 10.29,
  }
  return Grid(
    f"Temperature and norms of DTG-FF: {trunk.title}",
    trunk.preset,
    {label: {**fields, "readouts": readouts} for label, fields in points.items()},
    published if data == "cifar10" else {},
    "The third path, to the classifier, is normed in norm_head and not in softmax_head, which read "
    "the same features of one state. Published values are of the concatenating head (norm_head).",
    readouts=readouts,
  )


_SGD: Fields = {
  **{"name": "sgd", "learning_rate": 0.05, "momentum": 0.9, "weight_decay": 5e-4},
  **{"no_decay": ("bias",), "schedule": "cosine", "end_rate": 0.0, "clip_norm": 0.0},
}


def optimizers(data: str) -> Grid:
  """Every method under every method's own optimiser: whose recipe is it that wins?"""
  trunk = TRUNKS[data]
  protocols: dict[str, Fields] = {
    f"{label} of {name}": config.as_dict(config.load_preset(f"{preset}_{data}").optimizer)
    for label, name, preset in (
      ("AdamW, cosine, clipped,", "DTG-FF", "dtg"),
      ("Adam, steps,", "predsim", "predsim"),
      ("Adam, constant,", "Mono-Forward", "monoforward"),
    )
  }
  protocols["SGD, cosine, of backprop"] = _SGD
  methods: dict[str, Fields] = {
    **_methods(trunk.norm),
    "Local-CE": {"method": "local_losses", "readouts": ("score_sum",)},
    "predsim's loss": {
      "method": "local_losses",
      "methods": {"local_losses": {"loss": "predsim"}},
      "readouts": ("score_sum",),
    },
  }
  points = {
    f"{name}; {protocol}": {**fields, "optimizer": optimizer}
    for name, fields in methods.items()
    for protocol, optimizer in protocols.items()
  }
  return Grid(
    f"Methods and optimisers crossed: {trunk.title}",
    trunk.preset,
    points,
    note=f"{_NOTE} Rates and milestones are each preset's, not searched again. Every layer has an "
    "optimiser of its own under every method, backprop too, so clipping is by layer.",
  )


def coarse_synth() -> Grid:
  """Is it the number of classes or their grouping? The same teacher's labels, put together."""
  labels = {
    "50 classes": {"data": {"num_classes": 50}},
    "50 classes as 10": {"data": {"num_classes": 50, "superclasses": 10}},
    "10 classes": {"data": {"num_classes": 10}},
  }
  return Grid(
    "Coarse against fine labels: the teacher-student task",
    "synth_dtg",
    _crossed(_methods("none"), labels),
    note="Classes of the teacher with the same last digit stand together: nothing else joins them.",
  )


def coarse_cifar100() -> Grid:
  """CIFAR-100 under its 100 classes and its 20 superclasses: the same images."""
  labels = {"fine": {}, "coarse": {"data": {"superclasses": 20}}}
  published = {
    "DTG-FF, coarse": 33.86,
    "DTG-FF, fine": 48.72,
    "deep supervision, coarse": 25.87,
    "deep supervision, fine": 37.37,
  }
  note = f"{_NOTE} Published: seed 114514, DTG-FF by its concatenating head."
  return Grid(
    "Coarse against fine labels: CIFAR-100",
    "dtg_cifar100_probe",
    _crossed(_methods("channel_layer"), labels),
    published,
    note,
  )


_NOTE = "Answers are by the sum of the layers' logits; of backprop by its one head."


def grids() -> dict[str, Callable[[], Grid]]:
  """Grids by name."""
  found: dict[str, Callable[[], Grid]] = {}
  for data in TRUNKS:
    found[f"depth_width_{data}"] = functools.partial(depth_and_width, data)
    if data != "synth":
      found[f"temperature_{data}"] = functools.partial(temperature, data)
      found[f"optimizers_{data}"] = functools.partial(optimizers, data)
  found["pooling_cifar10"] = pooling
  found["coarse_synth"] = coarse_synth
  found["coarse_cifar100"] = coarse_cifar100
  return found
