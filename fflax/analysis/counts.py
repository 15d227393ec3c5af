"""What a computation costs, as numbers that add up."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Key(NamedTuple):
  """What a number counts.

  Attributes:
    what: "macs" (multiply-accumulates, padding counted, as published tables have it), "macs_valid"
      (padding not counted), "ops" (element-wise operations), "bits" (moved between memory and
      arithmetic), "index_adds" or "pbits" (samples of a stochastic unit).
    kind: of "macs": the product, see `fflax.analysis.cost`; of "ops": its class; of "bits": whose;
      of "index_adds": the reading, "thermo" or "code".
    dtype: of the operands; of "index_adds": of the accumulator ("int18" has 18 bits).
    phase: "forward", "backward" or "recompute" (of `jax.checkpoint`).
  """

  what: str
  kind: str = ""
  dtype: str = ""
  phase: str = ""


@dataclasses.dataclass(frozen=True)
class Counts:
  """Counted operations; linear, so that batches, steps and epochs can be added and scaled.

  MACs with and without padding, and terms per batch and per example, are different numbers: never
  add them to each other.

  Attributes:
    items: how many of what. Whole numbers, unless scaled.
    notes: what a reader of the numbers must know.
  """

  items: Mapping[Key, float]
  notes: tuple[str, ...] = ()

  def total(self, what: str, **fields: str) -> float:
    """The sum over all keys with this `what` and these `kind`, `dtype` or `phase`."""
    return sum(n for key, n in self.items.items() if _matches(key, what, fields))

  def by(self, what: str, *fields: str) -> dict[tuple[str, ...], float]:
    """Sums of `what` for each combination of these fields, sorted."""
    sums: Counter[tuple[str, ...]] = Counter()
    for key, n in self.items.items():
      if key.what == what:
        sums[tuple(getattr(key, field) for field in fields)] += n  # type: ignore[assignment]
    return dict(sorted(sums.items()))

  def __add__(self, other: "Counts") -> "Counts":
    items = dict(self.items)
    for key, n in other.items.items():
      items[key] = items.get(key, 0) + n
    return Counts(items, unique([*self.notes, *other.notes]))

  def __mul__(self, factor: float) -> "Counts":
    return Counts({key: factor * n for key, n in self.items.items()}, self.notes)

  __rmul__ = __mul__

  def __sub__(self, other: "Counts") -> "Counts":
    return self + -1 * other

  def replace(self, **fields: str) -> "Counts":
    """The same numbers under keys with these fields."""
    counts = Counts({}, self.notes)
    for key, n in self.items.items():
      counts += Counts({key._replace(**fields): n})
    return counts

  def only(self, *whats: str) -> "Counts":
    """The items with one of these `what`s."""
    return Counts({key: n for key, n in self.items.items() if key.what in whats}, self.notes)


def _matches(key: Key, what: str, fields: Mapping[str, Any]) -> bool:
  return key.what == what and all(getattr(key, name) == value for name, value in fields.items())


def unique(notes: Iterable[str]) -> tuple[str, ...]:
  """Each note once, in order."""
  return tuple(dict.fromkeys(notes))


class PerBatch(NamedTuple):
  """A cost that is affine in the batch size B: `fixed + B * each`.

  Attributes:
    fixed: once a batch: weights read, weight gradients written, the optimiser.
    each: once an example.
  """

  fixed: Counts
  each: Counts

  def per_example(self, batch_size: int) -> Counts:
    """The cost of one example of a batch: `each + fixed / batch_size`."""
    return self.each + (1 / batch_size) * self.fixed


def split_batch(once: Counts, twice: Counts, batch_size: int) -> PerBatch:
  """Separates what is paid once a batch from what is paid for each example.

  Operands of products that do not grow with the batch are weights and their gradients, all others
  are activations; kind "products" of "bits" is split into these two.

  Args:
    once: counted at `batch_size`.
    twice: counted at twice that.
    batch_size: of `once`, at least 1.

  Returns:
    The two parts; both are secants where a cost is not affine (similarities of all pairs).
  """
  growth = twice - once
  fixed, each = once - growth, (1 / batch_size) * growth
  return PerBatch(_name_bits(fixed, "weights"), _name_bits(each, "activations"))


def _name_bits(counts: Counts, owner: str) -> Counts:
  items: Counter[Key] = Counter()
  for key, n in counts.items.items():
    if key.what == "bits" and key.kind == "products":
      key = key._replace(kind=owner)
    items[key] += n  # type: ignore[assignment]
  return Counts({key: n for key, n in items.items() if n}, counts.notes)
