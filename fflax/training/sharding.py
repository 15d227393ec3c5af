"""Devices in a mesh, and runs that share each batch over its `data` axis.

One mesh with three axes serves every kind of parallelism: `sweep` (runs beside each other), `data`
(the examples of a batch) and `layer` (layers that learn in a pipeline).

Data parallelism changes where numbers are computed, and nothing else. A step stays one program for
the whole batch, under `jit`; constraints say that the batch axis is split over `data` and that the
state is whole on every device, and the compiler parts the work and adds up between devices. So the
batches, the random numbers (each a function of its key and its place), statistics of batch norm and
scales of int8 are the whole batch's, and a result is that of one device, up to the order of sums.
A checkpoint knows no devices: what eight have saved, one resumes. Where several
processes run together (`jax.distributed`), the mesh has equally many devices of each.

Views are stacked before the batch, and a layer sees all of them as `[V * B, ...]`: each device then
has an equal share of those rows, cut regardless of views. Where V and the devices do not divide
each other, the compiler moves rows between them once more in every layer.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec, Sharding

from fflax.training.trainer import Trainer
from fflax.types import Array, Batch, Layer, LayerOut, Metrics, Network, PyTree, TrainState

AXES = ("sweep", "data", "layer")
PIPELINES = ("mpmd", "spmd")

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """How many devices a run shares its work over; at most one of the two numbers is above 1.

  Attributes:
    data: parts of every batch.
    layer: parts of the network, in a pipeline.
    pipeline: "mpmd": a program for each part, of any layers (`fflax.training.pipeline`); "spmd":
      one program for all, of equal layers (`fflax.training.spmd_pipeline`).
  """

  data: int = 1
  layer: int = 1
  pipeline: str = "mpmd"

  def __post_init__(self) -> None:
    """Refuses an unknown kind of pipeline."""
    if self.pipeline not in PIPELINES:
      raise ValueError(f"mesh.pipeline must be one of {PIPELINES}, not {self.pipeline!r}")

  @property
  def axes(self) -> dict[str, int]:
    """The sizes of the mesh's axes."""
    return {"data": self.data, "layer": self.layer}


def equal_share(devices: Sequence[jax.Device], number: int, who: str) -> list[jax.Device]:
  """So many of the devices, equally many of each process: its first ones.

  Args:
    devices: of all processes, one process after the other.
    number: how many.
    who: asks for them.

  Raises:
    ValueError: the processes cannot have equal shares, or have too few devices; one sentence.
  """
  of: dict[int, list[jax.Device]] = {}
  for device in devices:
    of.setdefault(device.process_index, []).append(device)
  each, rest = divmod(number, len(of))
  if rest:
    raise ValueError(
      f"{who} asks for {number} devices, which {len(of)} processes cannot share out equally: use "
      f"a multiple of {len(of)}"
    )
  least = min(map(len, of.values()))
  if each > least and len(of) > 1:
    raise ValueError(
      f"{who} asks for {each} devices of each of {len(of)} processes, but one of them has {least}"
    )
  if each > least:
    raise ValueError(f"{who} asks for {each} devices, but there are {least}")
  return [device for own in of.values() for device in own[:each]]


def make_mesh(sweep: int = 1, data: int = 1, layer: int = 1) -> Mesh:
  """The mesh of `sweep * data * layer` devices, with axes "sweep", "data" and "layer".

  They are the first ones; of several processes, the first ones of each.

  The compiler parts programs over it as it sees fit (axes of type `Auto`), within the constraints
  of this module.

  Raises:
    ValueError: an axis is not positive, there are fewer devices, or the processes cannot have
      equal shares; one sentence.
  """
  sizes = dict(zip(AXES, (sweep, data, layer), strict=True))
  for name, size in sizes.items():
    if size < 1:
      raise ValueError(f"mesh.{name} must be at least 1, not {size}")
  asked = " x ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "data 1"
  found = equal_share(jax.devices(), math.prod(sizes.values()), f"the mesh ({asked})")
  shape, types = tuple(sizes.values()), (AxisType.Auto,) * len(AXES)
  return jax.make_mesh(shape, AXES, axis_types=types, devices=found)


def put(x: Array, sharding: Sharding) -> Array:
  """As `jax.device_put`, which moves no typed keys to the devices of other processes.

  Where they take part, every process gives the same value.
  """
  if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return jax.device_put(x, sharding)
  data = jax.device_put(jax.random.key_data(x), sharding)
  return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))


def replicate(tree: T, mesh: Mesh | None) -> T:
  """`tree` with every array whole on every device of the mesh; as it is, without a mesh."""
  if mesh is None:
    return tree
  whole = NamedSharding(mesh, PartitionSpec())
  return jax.tree.map(lambda x: put(x, whole), tree)


def split_batch(tree: T, mesh: Mesh) -> T:
  """Constrains the leading axis of every array to be split over `data`, values unchanged.

  An axis that does not divide (of the two examples that shapes are read from) is left alone.
  """
  split = NamedSharding(mesh, PartitionSpec("data"))

  def one(x: Array) -> Array:
    return x if len(x) % mesh.shape["data"] else lax.with_sharding_constraint(x, split)

  return jax.tree.map(one, tree)


def split_layers(network: Network, mesh: Mesh) -> Network:
  """The same network; each layer's work on a batch is split over `data`.

  Stated at every layer, for the compiler would not find the split again where views and batch are
  stacked in one axis, and every device would compute everything.
  """

  def one(layer: Layer) -> Layer:
    def apply(
      params: PyTree, stats: PyTree, x: PyTree, *, train: bool, key: Array | None = None
    ) -> tuple[LayerOut, PyTree]:
      out, stats = layer.apply(params, stats, split_batch(x, mesh), train=train, key=key)
      return split_batch(out, mesh), stats

    return layer._replace(apply=apply)

  return network._replace(layers=tuple(map(one, network.layers)))


def data_parallel(trainer: Trainer, mesh: Mesh) -> Trainer:
  """The same trainer; batches are split over `data`, states and goodness whole on every device.

  Its network's layers are those of `split_layers`.
  """
  whole = NamedSharding(mesh, PartitionSpec())

  def step(
    state: TrainState, batch: Batch, loss_weights: Array | None = None
  ) -> tuple[TrainState, Metrics]:
    new = trainer.step(state, split_batch(batch, mesh), loss_weights)
    return lax.with_sharding_constraint(new, whole)

  def goodness(state: TrainState, batch: Batch, key: Array) -> Array:
    assert trainer.goodness is not None
    return lax.with_sharding_constraint(trainer.goodness(state, batch, key), whole)

  return trainer._replace(
    step=step,
    answer=lambda state, image: trainer.answer(state, split_batch(image, mesh)),
    goodness=None if trainer.goodness is None else goodness,
  )
