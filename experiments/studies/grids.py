"""The grids of `experiments.studies.grid`: which points a study compares, as data.

A point is a preset's configuration with a few fields changed; all points of a grid share data,
epochs and seeds, so that differences are paired.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from experiments.studies import local_grids, pbit_grids
from experiments.studies.comparison import Grid
from experiments.studies.table5 import PUBLISHED

_INT8: dict[str, Any] = {"numerics": "int8"}
_DIRECT: dict[str, Any] = {"numerics": "int8_nearest"}


def table1() -> Grid:
  """FF-INT8, Table I: backprop on MNIST by depth, float32 against direct int8."""
  arithmetic = {"float32": {}, "int8 nearest": _DIRECT, "int8 stochastic": _INT8}
  points: dict[str, Mapping[str, Any]] = {}
  for hidden in range(4):
    # Without a hidden layer: ten linear units under the linear head, together one linear map.
    sizes = (500,) * hidden or (10,)
    for label, numerics in arithmetic.items():
      activation = {} if hidden else {"activation": "identity"}
      points[f"{hidden} hidden, {label}"] = {
        **numerics,
        **activation,
        "networks": {"mlp": {"sizes": sizes}},
      }
  published = {"float32": (89.5, 93.4, 94.5, 94.3), "int8 nearest": (88.7, 73.8, 62.4, 65.2)}
  return Grid(
    "FF-INT8, Table I: backprop on MNIST",
    "bp_mnist_table1",
    points,
    {
      f"{hidden} hidden, {label}": round(100 - accuracy, 1)
      for label, row in published.items()
      for hidden, accuracy in enumerate(row)
    },
    "The paper does not state its rounding; its float32 column is far below what such nets reach. "
    "Without a hidden layer ours is ten linear units under the head.",
  )


def int8_digits() -> Grid:
  """Every strict rule and the control on the digits: what int8 costs, weights at rest included."""
  points: dict[str, Mapping[str, Any]] = {}
  for method in ("forward_forward", "hyperspherical", "backprop"):
    for label, fields in {
      "float32": {},
      "bfloat16": {"numerics": "bfloat16"},
      "int8 stochastic": _INT8,
      "int8 nearest": _DIRECT,
      "int8, int8 weights": {**_INT8, "weight_store": "int8"},
    }.items():
      points[f"{method}, {label}"] = {"method": method, **fields}
  return Grid("int8 on the digits", "ffint8_digits", points)


def lookahead_digits() -> Grid:
  """Which reading of look-ahead helps, in float32 and in int8, and by how much lambda."""
  looks: dict[str, dict[str, Any]] = {
    "strict": {},
    "exact, linear to 1": {"mode": "exact"},
    "scalar, linear to 1": {"mode": "scalar"},
    "exact, 0.001 an epoch (paper)": {"mode": "exact", "slope": 0.001},
    "exact, 0.01 an epoch": {"mode": "exact", "slope": 0.01},
    "exact, constant 0.1": {"mode": "exact", "schedule": "constant", "start": 0.1},
    "exact, constant 0.5": {"mode": "exact", "schedule": "constant", "start": 0.5},
    "exact, constant 1 (BP-DeepSup)": {"mode": "exact", "schedule": "constant", "start": 1.0},
    "exact, exponential": {"mode": "exact", "schedule": "exponential"},
    "exact, adaptive_ready": {"mode": "exact", "schedule": "adaptive_ready"},
    "exact, adaptive_norm": {"mode": "exact", "schedule": "adaptive_norm"},
    "exact, adaptive_cos": {"mode": "exact", "schedule": "adaptive_cos"},
  }
  both = ("strict", "exact, linear to 1", "scalar, linear to 1", "exact, 0.01 an epoch")
  points = {
    f"{numerics}, {label}": {"numerics": numerics, "lookahead": look}
    for label, look in looks.items()
    for numerics in ("float32", *(("int8",) if label in both else ()))
  }
  return Grid("Look-ahead on the digits, FF 256-256", "ffint8_digits", points)


def int8_mnist() -> Grid:
  """FF on MNIST, 784-1000-1000: int8 against its float32 twin, and the rivals (Table V, MLP)."""
  study = table5("ffint8_mlp", "MLP")
  points = {"strict, float32": {"lookahead": {"mode": "none"}}, **study.points}
  return study._replace(title="FF-INT8, Table V: MLP on MNIST", points=points)


def table5(preset: str, network: str) -> Grid:
  """FF-INT8, Table V: one network, FF and every rival; on CIFAR-10 a task for a GPU or TPU."""
  backprop = {"method": "backprop", "lookahead": {"mode": "none"}}
  return Grid(
    f"FF-INT8, Table V: {network}",
    preset,
    {
      "look-ahead, int8": _INT8,
      "look-ahead, float32": {},
      "strict, int8": {**_INT8, "lookahead": {"mode": "none"}},
      "backprop, float32": backprop,
      "backprop, int8 nearest": {**backprop, **_DIRECT},
      "backprop, int8 stochastic": {**backprop, **_INT8},
      "backprop, int8 ui8": {**backprop, "numerics": "int8_ui8"},
      "backprop, int8 dai8": {**backprop, "numerics": "int8_dai8"},
      "backprop, int8 gdai8 approximation": {**backprop, "numerics": "int8_gdai8_approximation"},
    },
    {name: round(100 - e.accuracy_percent, 1) for name, e in PUBLISHED[network].items()},
    "Its row for GDAI8 stands beside our approximation of it.",
  )


def int8_pairs(preset: str, title: str, *more: str) -> Grid:
  """Every method in float32 and in int8, on a net that a CPU can train.

  Args:
    preset: of all points.
    title: of the grid.
    more: methods beside the two strict families and backprop.
  """
  points = {}
  for method in ("forward_forward", "hyperspherical", *more, "backprop"):
    for numerics in ("float32", "int8"):
      points[f"{method}, {numerics}"] = {"method": method, "numerics": numerics}
  return Grid(title, preset, points)


def views_small_cnn() -> Grid:
  """What positive and negative views share, and where the label enters, on a small conv net."""
  networks: dict[str, dict[str, Any]] = {
    "joint batch norm": {},
    "batch norm by view": {"norm_groups": 2},
    "no batch norm": {"batch_norm": False},
    "label maps in every layer": {"label_maps": 10},
  }
  points: dict[str, Mapping[str, Any]] = {
    f"{label}, {numerics}": {"numerics": numerics, "networks": {"small_cnn": options}}
    for label, options in networks.items()
    for numerics in ("float32", "int8")
  }
  points["joint batch norm, int8 scales by view"] = {**_INT8, "int8": {"scale_groups": 2}}
  return Grid(
    "FF on CIFAR-10, a small conv net: statistics, scales, labels", "ffint8_small_cnn", points
  )


def collaborative(preset: str, title: str) -> Grid:
  """Plain FF, F-CFF and A-CFF, and who hears whom, on one recipe with the same seeds."""
  structures: dict[str, dict[str, Any]] = {
    "FF": {"structure": "none", "gamma_rule": "fixed"},
    "F-CFF, all": {"structure": "ones", "gamma_rule": "fixed"},
    "A-CFF, all": {"structure": "ones", "gamma_rule": "sgd"},
    "F-CFF, previous": {"structure": "previous", "gamma_rule": "fixed"},
    "F-CFF, next": {"structure": "next", "gamma_rule": "fixed"},
    "F-CFF, gamma 0.5": {"structure": "ones", "gamma_rule": "fixed", "gamma": 0.5},
    "oracle gamma": {"structure": "ones", "gamma_rule": "oracle"},
    "learned structure": {"structure": "learned_softmax", "gamma_rule": "sgd"},
  }
  points = {label: {"methods": {"collaborative": fields}} for label, fields in structures.items()}
  return Grid(title, preset, points)


def ladder(preset: str, title: str) -> Grid:
  """From DTG-FF to BP-DeepSup, one change at a time: features, head and the stopped gradient.

  Three factors of two on one recipe, neighbours from the same initial numbers; and plain backprop.
  """
  points: dict[str, Mapping[str, Any]] = {}
  for detach in (True, False):
    for features in ("goodness", "linear"):
      for head in ("fixed", "learned"):
        fields = {"detach": detach, "features": features, "head": head}
        label = f"{'detached' if detach else 'end to end'}, {features}, {head} heads"
        points[label] = {"methods": {"local_losses": fields}}
  points["backprop, one head"] = {"method": "backprop"}
  return Grid(
    title,
    preset,
    points,
    note="'detached, goodness, fixed heads' are the losses of DTG-FF, 'end to end, linear, learned "
    "heads' are BP-DeepSup. Backprop with one head has neither norms between layers nor dropout.",
    readouts=("score_sum", "last_layer"),
  )


def families(data: str, title: str) -> Grid:
  """Four rules on one small conv net, image set, optimiser and budget: what a rule is worth.

  predsim and its network's batch norm are those of its digits preset.
  """
  net = {"channels": (16, 32, 32), "pool_after": (1, 2), "pool": "avg"}
  common = {"data": {"name": data, "batch_size": 100}, "networks": {"small_cnn": net}}
  predsim = {
    "method": "local_losses",
    "methods": {
      "local_losses": {
        "loss": "predsim",
        "head_init": "zero",
        "pool": "number",
        "pool_size": 512,
        "normalization": "none",
      }
    },
    "networks": {"small_cnn": {**net, "batch_norm": True}},
    "activation": "leaky_relu",
    "kernel_init": "torch_linear",
  }
  points: dict[str, Mapping[str, Any]] = {
    "DTG-FF": common,
    "Local-CE": {**common, "method": "local_losses"},
    "predsim": {**common, **predsim},
    "BP-DeepSup": {
      **common,
      "method": "local_losses",
      "methods": {"local_losses": {"detach": False}},
    },
  }
  return Grid(
    title,
    "dtg_digits",
    points,
    note="Convolutions of 16, 32 and 32 channels, AdamW with the same rates for all.",
    readouts=("score_sum", "last_layer"),
  )


GRIDS: Mapping[str, Callable[[], Grid]] = MappingProxyType(
  {
    "ffint8_table1": table1,
    "ffint8_digits": int8_digits,
    "lookahead_digits": lookahead_digits,
    "ffint8_mnist": int8_mnist,
    "collaborative_digits": lambda: collaborative(
      "cff_digits", "Collaborative FF on the digits, 74-200-200"
    ),
    "collaborative_digits_deep": lambda: collaborative(
      "cff_digits_deep", "Collaborative FF on the digits, 74-4x200"
    ),
    "networkff_mnist": lambda: collaborative("networkff_mnist", "NetworkFF on MNIST, 784-2x500"),
    "ladder_digits": lambda: ladder("local_ce_digits", "From DTG-FF to BP-DeepSup: digits, MLP"),
    "ladder_cifar10": lambda: ladder(
      "local_ce_cifar10", "From DTG-FF to BP-DeepSup: CIFAR-10, VGG8"
    ),
    "families_mnist": lambda: families("mnist", "Four rules on MNIST: conv 16-32-32"),
    "families_fmnist": lambda: families(
      "fashion_mnist", "Four rules on Fashion-MNIST: conv 16-32-32"
    ),
    "families_cifar10": lambda: families("cifar10", "Four rules on CIFAR-10: conv 16-32-32"),
    "ffint8_cifar10_small": lambda: int8_pairs(
      "ffint8_small_cnn", "int8 on CIFAR-10, a small conv net"
    ),
    "ffint8_vit_digits": lambda: int8_pairs(
      "ffint8_vit_digits", "Attention under local rules: a small ViT on the digits", "local_losses"
    ),
    "ffint8_cifar10_small_views": views_small_cnn,
    "ffint8_cifar10_mobilenetv2": lambda: table5("ffint8_mobilenetv2", "MobileNet-V2"),
    "ffint8_cifar10_efficientnetb0": lambda: table5("ffint8_efficientnetb0", "EfficientNet-B0"),
    "ffint8_cifar10_resnet18": lambda: table5("ffint8_resnet18", "ResNet-18"),
    **local_grids.grids(),
    **pbit_grids.grids(),
  }
)
"""Grids by name."""
