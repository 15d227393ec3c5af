"""How often the p-bits of a run fire, measured on examples that it was not trained on."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.assembly import Experiment, build, trainer_parts
from experiments.config import ExperimentConfig
from fflax.analysis.energy import accumulator_bits
from fflax.analysis.firing import Firing, Reader, find_readers, measure
from fflax.analysis.plain import plain_numerics
from fflax.core import tags
from fflax.core.numerics_registry import make_numerics
from fflax.random import Role, role_key
from fflax.training.chunk import make_chunk
from fflax.training.step import make_trainer
from fflax.types import Batch, TrainState


class Product(NamedTuple):
  """A product of counts in one sampled pass of one example.

  Attributes:
    name: of the layer, or of the readout, that multiplies.
    macs: multiply-accumulates, padding not counted.
    thermo, code: index additions, by how a count is read, see `fflax.analysis.firing`.
    accumulator_bits: that a sum of these counts times 8-bit weights needs.
  """

  name: str
  macs: int
  thermo: float
  code: float
  accumulator_bits: int


class Measured(NamedTuple):
  """What was measured.

  Attributes:
    steps: of training before.
    examples: how many, of the test split.
    layers: of each layer that counts: "layer", "units", "sites" and the rates of `Firing`.
    products: of the layers.
    heads: of the readouts that read features.
  """

  steps: int
  examples: int
  layers: list[dict[str, Any]]
  products: list[Product]
  heads: list[Product]

  def of(self, readouts: Sequence[str] = ()) -> list[Product]:
    """The layers' products and those of these readouts."""
    return self.products + [head for head in self.heads if head.name in readouts]

  def rate(self, reading: str, readouts: Sequence[str] = ()) -> float:
    """Index additions for each MAC of a product of counts, over all that `of` names."""
    products = self.of(readouts)
    return sum(getattr(p, reading) for p in products) / sum(p.macs for p in products)


def draws(config: ExperimentConfig) -> bool:
  """Whether the run's layers draw their units."""
  return config.activation == "pbits"


def _readers(
  config: ExperimentConfig, image_shape: tuple[int, ...], num_classes: int
) -> tuple[list[tuple[Reader, ...]], dict[str, tuple[Reader, ...]]]:
  """The products of counts of each layer, and of each readout of features; nothing is computed."""
  numerics = plain_numerics(make_numerics(config.numerics, config.int8))
  parts = trainer_parts(config, num_classes, steps_per_epoch=100, numerics=numerics)
  trainer = make_trainer(image_shape=image_shape, **parts)
  key = jax.eval_shape(lambda: jax.random.key(0))
  image = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  batch = Batch(image, jax.ShapeDtypeStruct((1,), jnp.int32))  # type: ignore[arg-type]
  state = jax.eval_shape(trainer.init, key, batch)
  features = jax.eval_shape(trainer.features, state, image)
  layers = []
  for index, layer in enumerate(parts["network"].layers):
    x = features[index - 1] if index else jax.eval_shape(parts["method"].plain_view, image)
    own = jax.eval_shape(trainer.layer_states, state)[index]
    emit = functools.partial(_emit, layer)
    layers.append(find_readers(emit, own.params["layer"], own.stats["layer"], x, key))
  counted = min(layer.counts for layer in parts["network"].layers)
  heads, read, shown = {}, features, parts["method"].readout_features
  if shown is not None:
    outs = jax.eval_shape(trainer.layer_outs, state, image, key)
    read = jax.eval_shape(lambda outs: tuple(map(shown, outs)), outs)
  for readout, own in zip(parts["readouts"], state.readouts, strict=True):
    if readout.view == "plain":

      def predict(params: Any, stats: Any, features: Any, readout: Any = readout) -> Any:
        with tags.counts(counted):
          return readout.predict(params, stats, (), features)

      heads[readout.name] = find_readers(predict, own.params, own.stats, read)
  return layers, heads


def _emit(layer: Any, params: Any, stats: Any, x: Any, key: Any) -> Any:
  return layer.apply(params, stats, x, train=False, key=key)[0].out


def measure_firing(
  experiment: Experiment, state: TrainState, *, examples: int = 500, batch_size: int = 100
) -> Measured:
  """Draws one sample of each of the first test examples, in evaluation mode.

  Raises:
    ValueError: the run's units do not count, or its readouts read layers of which some do not.
  """
  config, trainer = experiment.config, experiment.trainer
  if not draws(config):
    raise ValueError(
      f"firing rates are those of p-bits; this run has activation {config.activation!r}"
    )
  data = experiment.dataset.test
  shape, examples = data.image.shape[1:], min(examples, len(data.label))
  readers, head_readers = _readers(config, shape, experiment.dataset.num_classes)
  network = experiment.network.layers
  units = [layer.counts for layer in network]

  @jax.jit
  def sample(state: TrainState, image: Any, key: Any) -> list:
    outs = trainer.layer_outs(state, experiment.preprocess(None, image), key)
    return [out.counts if m else None for out, m in zip(outs, units, strict=True)]

  root = role_key(state.key, Role.PROBE)
  found: list[Firing | None] = [None] * len(network)
  for start in range(0, examples, batch_size):
    image = jnp.asarray(data.image[start : min(start + batch_size, examples)])
    for i, counts in enumerate(sample(state, image, jax.random.fold_in(root, start))):
      if counts is not None:
        above = readers[i + 1] if i + 1 < len(readers) else ()
        one, old = measure(counts, units[i], above), found[i]
        found[i] = one if old is None else old + one

  layers, products = [], []
  for i, (layer, firing) in enumerate(zip(network, found, strict=True)):
    if firing is not None:
      layers.append({"layer": layer.name, "units": units[i], "sites": firing.sites, **firing.rates})
      if i + 1 < len(network):
        adds = (firing.index_adds("thermo"), firing.index_adds("code"))
        for reader, thermo, code in zip(readers[i + 1], *adds, strict=True):
          width = accumulator_bits(reader.fan_in, units[i])
          products.append(Product(network[i + 1].name, reader.macs, thermo, code, width))
  heads = [
    _head(name, reader, [f for f in found if f is not None])
    for name, of_readout in head_readers.items()
    for reader in of_readout
  ]
  return Measured(int(state.step), examples, layers, products, heads)


def _head(name: str, reader: Reader, layers: Sequence[Firing]) -> Product:
  """A dense product of the last layers' counts: as many of them as its fan-in holds."""
  for first in range(len(layers)):
    read = layers[first:]
    if sum(f.sites for f in read) == reader.fan_in:
      thermo, code = (
        reader.outputs * sum(getattr(f, what) / f.examples for f in read) for what in ("on", "ones")
      )
      width = accumulator_bits(reader.fan_in, max(f.units for f in read))
      return Product(name, reader.macs, thermo, code, width)
  raise ValueError(f"readout {name!r} does not read whole layers of counts")


def measure_after(config: ExperimentConfig, steps: int, *, examples: int = 500) -> Measured:
  """Trains a run from its start for so many steps, and measures.

  Raises:
    ValueError: the data cannot be loaded, or the run is impossible.
  """
  experiment = build(config)
  state = experiment.init()
  if steps:
    chunk = make_chunk(experiment.trainer, experiment.feed, steps)
    state, _ = chunk(state, jnp.asarray(experiment.images), jnp.asarray(experiment.labels), steps)
  return measure_firing(experiment, state, examples=examples)


def as_dict(found: Measured) -> dict[str, Any]:
  """Plain values, ready for JSON."""
  return {
    **found._asdict(),
    "products": [p._asdict() for p in found.products],
    "heads": [p._asdict() for p in found.heads],
  }


def twin_of(config: ExperimentConfig, numerics: str) -> ExperimentConfig:
  """The same run with real-valued units: ReLU, and channel-wise FF where it was its binary form."""
  changed: dict[str, Any] = {
    "activation": "relu",
    "pbits": type(config.pbits)(),
    "numerics": numerics,
    "eval_samples": 0,
  }
  if config.method == "binary_stochastic":
    own, methods = config.methods["binary_stochastic"], dict(config.methods)
    methods["channelwise"] = dataclasses.replace(
      methods["channelwise"], competing=own.competing, class_groups=own.class_groups
    )
    changed |= {"method": "channelwise", "methods": methods}
  if numerics != config.numerics:
    changed |= {"int8": type(config.int8)(), "weight_store": "float32"}
  return dataclasses.replace(config, **changed)
