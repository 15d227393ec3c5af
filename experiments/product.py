"""The product of choices: its points, small runs at them, and arrays that cover all pairs.

A point is one name for each factor; the names are those of the registries, so that a new one is
walked without a word here.
"""

import itertools
import random
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from experiments.config import ExperimentConfig, from_mapping
from fflax.core.numerics_registry import NUMERICS
from fflax.core.readouts import READOUTS
from fflax.data.dataset import Dataset, Split
from fflax.methods.registry import METHODS
from fflax.networks.registry import NETWORKS
from fflax.training.schedules import SCHEDULES

NUM_CLASSES = 4
BATCH_SIZE = 8
IMAGE_SHAPE = (16, 16, 1)
_TRIES = 20
EPOCHS = 64
"""Of one step each; under schedule "greedy" every layer of the deepest network has a turn."""


class Point(NamedTuple):
  """One point; `extra` is a name in `EXTRAS`, what stands across the other five choices."""

  network: str
  numerics: str
  method: str
  schedule: str
  readout: str
  extra: str = "none"

  def __str__(self) -> str:
    return " x ".join(self[: 5 if self.extra == "none" else 6])


EXTRAS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
  {
    "none": {},
    "look-ahead, exact": {"lookahead": {"mode": "exact", "schedule": "constant", "start": 1.0}},
    "look-ahead, scalar": {"lookahead": {"mode": "scalar", "schedule": "constant", "start": 1.0}},
    "int8 weights": {"weight_store": "int8"},
    "p-bits": {"activation": "pbits"},
    "sampled answers": {"activation": "pbits", "eval_samples": 2},
    "accumulated updates": {
      "optimizer": {"accumulate": 2},
      "readout_optimizer": {"accumulate": 2},
    },
    "rematerialized": {"rematerialize": True},
  }
)

FACTORS: Mapping[str, tuple[str, ...]] = MappingProxyType(
  {
    "network": tuple(NETWORKS),
    "numerics": tuple(NUMERICS),
    "method": tuple(METHODS),
    "schedule": SCHEDULES,
    "readout": tuple(READOUTS),
    "extra": tuple(EXTRAS),
  }
)

# Sizes at which a network is traced in seconds; channels are multiples of the number of classes,
# so that channel-wise methods can divide them. What is not named here has its default size.
SMALL: Mapping[str, Mapping[str, Any]] = MappingProxyType(
  {
    "mlp": {"sizes": (16, 16)},
    "small_cnn": {"channels": (4, 8), "pool_after": (1,)},
    "hff_cnn": {"width": 1 / 32},
    "local_mlp": {"features": (8, 8), "fields": (4, 2), "strides": (4, 1)},
    "resnet18": {"width": 1 / 16},
    "mobilenet_v2": {"width": 0.5},
    "efficientnet_b0": {"width": 0.5},
    "vit": {"features": 16, "depth": 2, "heads": 2, "mlp_ratio": 2},
    "cfse": {"channels": (8, 8), "groups": (1, 4), "pool_after": (2,)},
  }
)

# Networks that read flat views; to the others labels are shown as maps behind the image's channels.
_FLAT = ("mlp",)


def points(extras: Sequence[str] = ("none",)) -> Iterator[Point]:
  """All points, in the order of the registries."""
  names = {**FACTORS, "extra": tuple(extras)}
  for choice in itertools.product(*(names[field] for field in Point._fields)):
    yield Point(*choice)


def configuration(point: Point) -> ExperimentConfig:
  """A small run at `point`, through the door that flags and files come by.

  Raises:
    ValueError: as for any configuration.
  """
  writes = hasattr(METHODS[point.method].config(), "label_style") and point.method != "recurrent"
  own = {"label_style": "channels"} if writes and point.network not in _FLAT else {}
  return from_mapping(
    {
      "epochs": EPOCHS,
      "network": point.network,
      "networks": {point.network: dict(SMALL.get(point.network, {}))},
      "numerics": point.numerics,
      "method": point.method,
      "methods": {point.method: own},
      "schedule": point.schedule,
      "stagger": {"ends": (1,)},
      "readouts": (point.readout,),
      "data": {"batch_size": BATCH_SIZE},
      "eval_batch_size": BATCH_SIZE,
      **EXTRAS[point.extra],
    }
  )


def dataset() -> Dataset:
  """Grey images of four classes, one batch of them."""
  rng = np.random.default_rng(0)
  label = (np.arange(BATCH_SIZE) % NUM_CLASSES).astype(np.int32)
  split = Split(rng.integers(0, 256, (BATCH_SIZE, *IMAGE_SHAPE), np.uint8), label)
  return Dataset("noise", split, None, split, NUM_CLASSES, 255.0)


def covering(
  factors: Mapping[str, Sequence[str]],
  forbidden: Collection[frozenset[tuple[str, str]]] = (),
  possible: Callable[[dict[str, str]], bool] = lambda row: True,
  seed: int = 0,
) -> list[dict[str, str]]:
  """Few rows in which every allowed pair of values of two factors stands together at least once.

  The greedy algorithm of D. Cohen et al., "The AETG system", IEEE Transactions on Software
  Engineering 23 (7), 1997: a row begins with a pair that is still missing and takes, factor by
  factor in random order, the value that brings most missing pairs; the best of a few such rows
  stays. The same seed gives the same rows.

  Args:
    factors: name -> its values; two factors or more.
    forbidden: pairs `{(factor, value), (factor, value)}` that no row holds.
    possible: of a whole row; a pair is given up if `_TRIES` rows with it are not.
    seed: of the order.
  """
  rng = random.Random(seed)
  every = [(name, value) for name, values in factors.items() for value in values]
  missing = {frozenset((a, b)) for a, b in itertools.combinations(every, 2) if a[0] != b[0]}
  missing -= set(forbidden)

  def grown(begin: frozenset[tuple[str, str]]) -> dict[str, str] | None:
    row = dict(begin)
    others = [name for name in factors if name not in row]
    greedy = rng.random() < 0.7  # what brings most may be what is impossible
    for name in rng.sample(others, len(others)):
      pairs = {v: [frozenset(((name, v), kept)) for kept in row.items()] for v in factors[name]}
      gains = {
        v: sum(pair in missing for pair in p)
        for v, p in pairs.items()
        if not any(pair in forbidden for pair in p)
      }
      if not gains:
        return None
      most = max(gains.values()) if greedy else 0
      row[name] = rng.choice([v for v, gain in gains.items() if gain >= most])
    return row if possible(row) else None

  rows = []
  while missing:
    begin = min(missing, key=sorted)  # sets have no order of their own
    found = [row for row in (grown(begin) for _ in range(_TRIES)) if row is not None]
    held = [{frozenset(p) for p in itertools.combinations(row.items(), 2)} for row in found]
    missing -= {begin}
    if found:
      best = max(range(len(found)), key=lambda i: len(held[i] & missing))
      missing -= held[best]
      rows.append({name: found[best][name] for name in factors})
  return rows
