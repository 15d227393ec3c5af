"""What a run's metrics say about layers that stopped collaborating, or that only do that."""

from collections.abc import Sequence

from fflax.training.metrics import Row

COLLAPSED, EXPLODED = 0.05, 20.0
"""Weights of the other layers' goodness below and above which a layer is named; start: 1."""


class Alarms:
  """Names each layer whose gamma collapses or explodes, once for each."""

  def __init__(self, layer_names: Sequence[str]):
    self._names = tuple(layer_names)
    self._raised: set[tuple[str, str]] = set()

  def hear(self, row: Row) -> list[str]:
    """The new alarms in a row of metrics, one sentence each."""
    lines = []
    for name in self._names:
      gamma = row.get(f"train/{name}/gamma")
      if gamma is None or COLLAPSED <= abs(gamma) <= EXPLODED:
        continue
      what = "collapsed" if abs(gamma) < COLLAPSED else "exploded"
      if (name, what) not in self._raised:
        self._raised.add((name, what))
        lines.append(f"collaboration of {name} {what}: gamma {gamma:.3g} at epoch {row['epoch']:g}")
    return lines
