"""Panels that figures of notebooks share, drawn on axes that are given."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes


def draw_locality(ax: Axes, matrices: Mapping[str, np.ndarray], title: str) -> None:
  """Locality matrices side by side: row i, column j is dark if the loss of layer i moves layer j.

  Args:
    ax: to draw on.
    matrices: by name, each `[L, L]` bool.
    title: of the axes.
  """
  # A frame of nothing around each keeps them apart.
  padded = [np.pad(m.astype(float), 1, constant_values=np.nan) for m in matrices.values()]
  ax.imshow(np.concatenate(padded, axis=1), cmap="Blues", vmin=-0.25, vmax=1.3)
  width = len(padded[0])
  middles = width * np.arange(len(padded)) + (width - 1) / 2
  ax.set_xticks(middles, [name.replace(" ", "\n") for name in matrices])
  ax.set_yticks(range(1, width - 1), [f"loss {i}" for i in range(1, width - 1)])
  ax.set_title(title)
  ax.tick_params(length=0)
  ax.spines[:].set_visible(False)


def draw_seeds(ax: Axes, x: float, values: np.ndarray, color: Any, width: float = 16) -> None:
  """The value of every seed as a dot above `x`, and their mean as a line of `width` points."""
  ax.plot([x] * len(values), values, "o", ms=4, alpha=0.5, color=color)
  ax.plot(x, np.mean(values), "_", ms=width, mew=2.5, color=color)
