"""Numerics by name."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fflax.core.int8 import int8
from fflax.core.int8_config import INT8_PRESETS, Int8Config
from fflax.core.numerics import FLOAT_NUMERICS, Numerics

NUMERICS: Mapping[str, Callable[[], Numerics]] = MappingProxyType(
  {
    **FLOAT_NUMERICS,
    **{name: functools.partial(int8, c, name=name) for name, c in INT8_PRESETS.items()},
  }
)
"""Numerics by name: the floats, the paper's int8, and the int8 of its rivals."""


def make_numerics(name: str, config: Int8Config | None = None) -> Numerics:
  """The registered numerics `name`.

  Args:
    name: in `NUMERICS`.
    config: settings of "int8"; the others have none.

  Raises:
    ValueError: unknown name, an impossible setting, or settings for numerics that have none.
  """
  if name not in NUMERICS:
    raise ValueError(f"unknown numerics {name!r}; there are {', '.join(NUMERICS)}")
  if config is None or config == Int8Config():
    return NUMERICS[name]()
  if name != "int8":
    raise ValueError(f"the settings of int8 belong to numerics 'int8', not to {name!r}")
  return int8(config)
