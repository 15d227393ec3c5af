"""All numerics by name."""

import functools
from collections.abc import Callable, Mapping
from types import MappingProxyType

from fflax.core.int8 import int8
from fflax.core.int8_config import INT8_PRESETS
from fflax.core.numerics import Numerics, bfloat16, float32

NUMERICS: Mapping[str, Callable[[], Numerics]] = MappingProxyType(
  {
    "float32": float32,
    "bfloat16": bfloat16,
    **{name: functools.partial(int8, config, name=name) for name, config in INT8_PRESETS.items()},
  }
)
"""Numerics by name; each is `fflax.core.numerics.Numerics` of its default settings."""
