"""The grids of binary stochastic FF: units, estimators and norms, on three data sets.

Every point answers by 1, 4 and 16 sampled passes and by the mean field, each by the goodness of the
last layer (the paper's GA) and by the softmax head on it (Sf).
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any

from experiments.studies.comparison import Grid
from fflax.methods.binary_stochastic import ESTIMATORS

DATA = {"digits": "the digits", "mnist": "MNIST", "cifar10": "CIFAR-10"}
_ANSWERS: dict[str, Any] = {
  "samples": (1, 4, 16, 0),
  "readouts": ("last_layer", "softmax_last"),
}
_NOTE = (
  "Real units answer in the column of the mean field. Published values are given as about so much; "
  "by which readout and how many samples is not known."
)
_REAL: dict[str, Any] = {
  "method": "channelwise",
  "activation": "relu",
  "pbits": {"units": 7},
  "optimizer": {"learning_rate": 1e-2},
}
CHANNELWISE, CHANNELWISE_INT8 = "channel-wise, float32", "channel-wise, int8"


def units(data: str) -> Grid:
  """How many p-bits share a pre-activation, beside real-valued units in float32 and int8."""
  points: dict[str, Mapping[str, Any]] = {f"M = {m}": {"pbits": {"units": m}} for m in (1, 2, 3, 7)}
  points |= {CHANNELWISE: _REAL, CHANNELWISE_INT8: {**_REAL, "numerics": "int8"}}
  published = {
    "mnist": {"M = 7": 1.0, CHANNELWISE: 0.58},
    "cifar10": {"M = 1": 47.0, "M = 7": 28.0, CHANNELWISE: 21.89},
  }
  return _grid("tied p-bits", data, points, published.get(data, {}))


def estimators(data: str) -> Grid:
  """Every estimator of the gradient, BSFF ("surprisal") and BGBSFF ("binary_slope") among them."""
  points: dict[str, Mapping[str, Any]] = {}
  for m in (1, 7):
    for name, (estimator, error) in ESTIMATORS.items():
      points[f"M = {m}, {name}"] = {
        "pbits": {"units": m, "estimator": estimator},
        "methods": {"binary_stochastic": {"error": error}},
      }
  published = {"cifar10": {"M = 1, surprisal": 47.0, "M = 7, surprisal": 28.0}}
  return _grid("estimators of the gradient", data, points, published.get(data, {}))


def norms(data: str) -> Grid:
  """Batch norm before the loss, after it, not at all, and what analog hardware could have."""
  choices: dict[str, dict[str, Any]] = {
    "batch norm": {},
    "batch norm, its statistics without a gradient": {"norm": "batch_frozen"},
    "batch norm after the loss": {"loss_input": "pre_norm"},
    "no norm": {"norm": "none"},
    "running gain": {"norm": "gain"},
    "running gain after the loss": {"norm": "gain", "loss_input": "pre_norm"},
    "learned bias": {"norm": "bias"},
    "running gain and learned bias": {"norm": "gain_bias"},
  }
  points: dict[str, Mapping[str, Any]] = {
    f"M = {m}, {label}": {"pbits": {"units": m}, "networks": {"cfse": options}}
    for m in (1, 7)
    for label, options in choices.items()
  }
  published = {
    "cifar10": {
      "M = 1, batch norm": 47.0,
      "M = 7, batch norm": 28.0,
      "M = 7, batch norm after the loss": 36.0,
    }
  }
  return _grid("batch norm and its substitutes", data, points, published.get(data, {}))


def _grid(
  what: str, data: str, points: Mapping[str, Mapping[str, Any]], published: Mapping[str, float]
) -> Grid:
  title = f"Binary stochastic FF on {DATA[data]}: {what}"
  return Grid(title, f"bsff_{data}", points, published, _NOTE, **_ANSWERS)


def grids() -> dict[str, Callable[[], Grid]]:
  """All of them by name: bsff_units_digits and so on."""
  kinds = {"units": units, "estimators": estimators, "norm": norms}
  return {
    f"bsff_{name}_{data}": functools.partial(make, data)
    for name, make in kinds.items()
    for data in DATA
  }
