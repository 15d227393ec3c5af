"""From a configuration to a run's parts: data on the device, trainer, feed, evaluation, proof."""

import itertools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from experiments import distributed, streams
from experiments.config import ExperimentConfig
from fflax.core.locality import agrees, locality_matrix
from fflax.core.numerics import GRADIENT_STATE, Numerics
from fflax.core.numerics_registry import make_numerics
from fflax.core.readouts import make_readout
from fflax.data import sources, stream
from fflax.data.augment import make_preprocess
from fflax.data.dataset import Dataset, Split
from fflax.data.normalize import Normalization, statistics
from fflax.methods.registry import make_method
from fflax.networks.registry import make_network
from fflax.training import lookahead
from fflax.training.checks import check_run
from fflax.training.chunk import Feed
from fflax.training.loop import Plan
from fflax.training.optimizers import OptimizerConfig, for_numerics, make_optimizer
from fflax.training.schedules import layer_epochs, make_schedule
from fflax.training.sharding import MeshConfig, make_mesh, replicate, split_batch
from fflax.training.spmd_pipeline import share_out
from fflax.training.stages import check_stages
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.training.weight_store import WEIGHT_STORES
from fflax.types import Array, Batch, Method, Network, Readout, Schedule, TrainState

Preprocess = Callable[[Array | None, Array], Array]


class Experiment(NamedTuple):
  """The parts of one run.

  Attributes:
    config: what it was made from.
    dataset: on the host.
    images, labels: the training split on the device, as stored; on the host, if it is streamed.
    network, method, readouts, schedule: the choices of the configuration.
    trainer: all of them as pure functions.
    feed: makes the batches.
    preprocess: `(key or None, image) -> [B, ...]` float32; key None for evaluation.
    plan: when the loop does what, in steps.
    mesh: the devices that share each batch, or None: one device.
  """

  config: ExperimentConfig
  dataset: Dataset
  images: Array
  labels: Array
  network: Network
  method: Method
  readouts: tuple[Readout, ...]
  schedule: Schedule
  trainer: Trainer
  feed: Feed
  preprocess: Preprocess
  plan: Plan
  mesh: Mesh | None = None

  def example(self, size: int = 2) -> Batch:
    """A preprocessed batch of the first training examples."""
    images, labels = jnp.asarray(self.images[:size]), jnp.asarray(self.labels[:size])
    return Batch(self.preprocess(None, images), labels)

  def init(self) -> TrainState:
    """The fresh state of the run."""
    fresh = jax.jit(self.trainer.init)(jax.random.key(self.config.seed), self.example())
    return replicate(fresh, self.mesh)

  def evaluator(self, name: str, split: Split) -> Callable[[TrainState], dict[str, Array]]:
    """Accuracy (fractions) on a split: `<name>/accuracy/<readout>`, `<name>/<layer>/accuracy`."""
    # What is drawn for an example depends on the batch that it stands in: not for another mesh.
    devices = 1 if self.config.eval_samples else self.config.mesh.data
    evaluate = streams.evaluation(
      self.trainer,
      lambda x: self.preprocess(None, x),
      split,
      self.config.eval_batch_size,
      self.dataset.num_classes,
      devices,
      self.mesh,
    )

    def run(state: TrainState) -> dict[str, Array]:
      values = evaluate(state)
      return {f"{name}/{k}": v for k, v in values.items() if "accuracy" in k}

    return run


def check(config: ExperimentConfig) -> None:
  """Refuses, without touching data, whatever can be seen to be impossible.

  Raises:
    ValueError: one sentence.
  """
  _check_score(config)
  _check_label_maps(config)
  # No data is loaded, so the number of classes and of steps is any.
  parts = trainer_parts(config, num_classes=2, steps_per_epoch=1)
  names = ("network", "method", "schedule", "readouts", "lookahead", "rematerialize")
  check_run(*(parts[name] for name in names))
  _check_accumulation(config, parts["method"])
  if config.mesh.layer > 1:
    _check_pipeline(config.mesh, parts)
  elif config.mesh.pipeline != MeshConfig().pipeline:
    raise ValueError(
      f"mesh.pipeline={config.mesh.pipeline!r} is for runs with several stages: set mesh.layer"
    )


def _check_pipeline(mesh: MeshConfig, parts: Mapping[str, Any]) -> None:
  """A run that cannot be cut into so many stages."""
  network, num_stages = parts["network"], mesh.layer
  num_layers = len(network.layers)
  if num_stages > num_layers:
    raise ValueError(
      f"mesh.layer={num_stages}: network {network.name!r} has {num_layers} layers to share out"
    )
  sizes = (num_layers - num_stages + 1, *(1,) * (num_stages - 1))
  check_stages(network, parts["method"], parts["schedule"], parts["lookahead"], sizes)
  if mesh.pipeline == "spmd":
    # The shapes, which only the data tell, may make fewer layers equal.
    runs = [len(list(run)) for _, run in itertools.groupby(la.spec for la in network.layers)]
    share_out(runs, num_stages, network.name)


def _mesh(config: ExperimentConfig) -> Mesh | None:
  """The devices that share each batch; None where there is one, and in a pipeline.

  Several processes must all have a share.
  """
  distributed.check_joined(config.distributed)
  if set(config.mesh.axes.values()) == {1} and jax.process_count() == 1:
    return None
  mesh, size = make_mesh(**config.mesh.axes), config.data.batch_size
  if mesh.shape["layer"] > 1:
    if mesh.shape["data"] > 1:
      raise ValueError("a run shares either batches or layers: set mesh.data or mesh.layer to 1")
    return None  # each stage is a program for one device
  if size % mesh.shape["data"]:
    raise ValueError(
      f"mesh.data={mesh.shape['data']} does not divide data.batch_size={size} into equal parts"
    )
  return mesh


def _check_score(config: ExperimentConfig) -> None:
  """Units that leave their gradient to the loss need a loss that brings it, and the reverse."""
  left = config.activation == "pbits" and config.pbits.estimator == "score"
  own = config.methods[config.method]
  error = own.error if config.method == "binary_stochastic" else "exact"
  if left != error.startswith("reinforce"):
    raise ValueError(
      "pbits.estimator 'score' leaves the gradient to the loss, so it goes with method "
      "'binary_stochastic' and its error 'reinforce' or 'reinforce_baseline', and they with it"
    )


def _check_label_maps(config: ExperimentConfig, num_classes: int | None = None) -> None:
  """Layers may carry label maps only where a method writes them, and all of them."""
  maps = config.networks[config.network].get("label_maps", 0)
  if not maps:
    return
  own = config.methods[config.method]
  written = getattr(own, "label_style", "") == "channels" and own.supervision == "label"
  if not written:
    raise ValueError(
      f"network {config.network!r} carries label_maps={maps}, but method {config.method!r} writes "
      "none behind the image: use label_style 'channels' or label_maps=0"
    )
  if num_classes not in (None, maps):
    raise ValueError(
      f"network {config.network!r} carries label_maps={maps}, but there are {num_classes} classes"
    )


def _check_accumulation(config: ExperimentConfig, method: Method) -> None:
  """One gradient, taken of layers and readouts at once, is one of equally many batches for both."""
  own, heads = config.optimizer.accumulate, config.readout_optimizer.accumulate
  if method.end_to_end_view is not None and own != heads:
    raise ValueError(
      f"layers of method {config.method!r} learn from the readouts, so optimizer.accumulate {own} "
      f"and readout_optimizer.accumulate {heads} must be equal"
    )


def trainer_parts(
  config: ExperimentConfig,
  num_classes: int,
  steps_per_epoch: int,
  numerics: Numerics | None = None,
) -> dict:
  """The arguments of `make_trainer` that the configuration names; `numerics` replace its own.

  A layer's optimiser counts the steps that the layer learns in, so under "greedy" its learning rate
  runs through its schedule within the layer's turn, under "alternating" within its share of the
  epochs, and under "staggered" within the longest turn of a layer; trained readouts learn all the
  time.

  Raises:
    ValueError: one of them is impossible; one sentence.
  """
  numerics = numerics or make_numerics(config.numerics, config.int8)
  network = make_network(
    config.network,
    numerics=numerics,
    activation=config.activation,
    pbits=config.pbits,
    kernel_init=config.kernel_init,
    **config.networks[config.network],
  )
  num_layers = len(network.layers)
  turn = layer_epochs(
    config.schedule, config.stagger, config.epochs, config.epochs_per_layer, num_layers
  )

  def optimizer(c: OptimizerConfig, epochs: int) -> optax.GradientTransformation:
    found = make_optimizer(c, epochs=epochs, steps_per_epoch=steps_per_epoch)
    return for_numerics(found, numerics)

  return {
    "network": network,
    "method": make_method(config.method, config.methods[config.method], num_classes, numerics),
    "readouts": tuple(make_readout(n, config.readout, num_classes) for n in config.readouts),
    "schedule": make_schedule(
      config.schedule,
      config.stagger,
      num_layers=num_layers,
      steps_per_epoch=steps_per_epoch,
      epochs_per_layer=turn,
    ),
    "samples": config.eval_samples,
    "rematerialize": config.rematerialize,
    "weight_store": WEIGHT_STORES[config.weight_store](),
    "lookahead": lookahead.make_lookahead(config.lookahead, config.epochs, steps_per_epoch),
    "optimizer": optimizer(config.optimizer, turn),
    "mesh": _mesh(config),
    "readout_optimizer": optimizer(config.readout_optimizer, config.epochs),
  }


def build(config: ExperimentConfig, dataset: Dataset | None = None) -> Experiment:
  """Loads the data (unless `dataset` is given) and assembles the run.

  Raises:
    ValueError: the data cannot be used or the combination is impossible; one sentence.
  """
  check(config)
  data = config.data
  if dataset is None:
    dataset = sources.load(
      data.name,
      data_dir=data.data_dir or None,
      validation=data.validation,
      seed=config.seed,
      **data.source_options(),
    )
  _check_label_maps(config, dataset.num_classes)
  size = len(dataset.train.label)
  steps_per_epoch = stream.steps_per_epoch(size, data.batch_size)
  mean, std = statistics(dataset, cast(Normalization, data.normalization))
  preprocess = make_preprocess(dataset.max_value, mean, std, data.augment)
  # Augmentations that do not fit the examples are refused here, not in the first traced step.
  jax.eval_shape(preprocess, jax.random.key(0), dataset.train.image[:2])
  parts = trainer_parts(config, dataset.num_classes, steps_per_epoch)
  trainer = make_trainer(image_shape=dataset.train.image.shape[1:], **parts)
  if config.mesh.layer > 1 and config.mesh.pipeline == "spmd":
    share_out(trainer.equal_layers, config.mesh.layer, config.network)
  mesh = parts["mesh"]
  if mesh is not None:
    preprocess = _split(preprocess, mesh)

  def indices(key: Array, first_step: Array, num_steps: int) -> Array:
    return stream.batch_indices(key, first_step, num_steps, size, data.batch_size, data.shuffle)

  plan = make_plan(config, steps_per_epoch)
  images, labels = streams.placed(dataset.train, mesh)
  batches = streams.training_stream(dataset.train, data.batch_size, data.shuffle, plan.num_steps)
  return Experiment(
    config=config,
    dataset=dataset,
    images=images,
    labels=labels,
    network=parts["network"],
    method=parts["method"],
    readouts=parts["readouts"],
    schedule=parts["schedule"],
    trainer=trainer,
    feed=Feed(indices, preprocess, batches),
    preprocess=preprocess,
    plan=plan,
    mesh=mesh,
  )


def _split(preprocess: Preprocess, mesh: Mesh) -> Preprocess:
  """Each device augments the examples that it trains on."""
  return lambda key, image: preprocess(key, split_batch(image, mesh))


def make_plan(config: ExperimentConfig, steps_per_epoch: int) -> Plan:
  """The loop's plan: a row of metrics, and an ear for signals, every 100 steps or a little less.

  Where epochs are short, rows stand at whole fractions of the evaluation period. The loop also ends
  a chunk at every evaluation and checkpoint; rows there may cover fewer steps than the others.
  """
  most = max(1, min(config.eval_every, 100 // steps_per_epoch))
  log_epochs = max(n for n in range(1, most + 1) if config.eval_every % n == 0)
  return Plan(
    num_steps=config.epochs * steps_per_epoch,
    steps_per_epoch=steps_per_epoch,
    log_every=min(100, log_epochs * steps_per_epoch),
    eval_every=config.eval_every * steps_per_epoch,
    checkpoint_every=config.checkpoint_every * steps_per_epoch,
  )


def prove_locality(experiment: Experiment, size: int = 8) -> np.ndarray:
  """Measures which layers move under which loss, in the run's own step; `[L, L]` bool.

  The step is the run's network, method, schedule, readouts and devices on `size` training examples
  (or as many more as the devices share out equally); only the
  optimiser is replaced by plain SGD, so that nothing but a gradient moves a parameter.

  Raises:
    RuntimeError: the matrix contradicts the method's declared locality.
  """
  parts = trainer_parts(experiment.config, experiment.dataset.num_classes, 1)
  # Under greedy schedules one step moves one layer; the proof asks what could move.
  schedule = experiment.schedule._replace(active=None)
  numerics = make_numerics(experiment.config.numerics, experiment.config.int8)
  sgd = for_numerics(optax.sgd(1.0), numerics)
  # Weights at rest would move by their rounding alone.
  parts |= {"schedule": schedule, "weight_store": None}
  parts |= {"optimizer": sgd, "readout_optimizer": sgd}
  if parts["lookahead"] is not None:
    # Lambda may be zero in the first epoch.
    parts["lookahead"] = lookahead.constant(1.0, parts["lookahead"].mode)
  trainer = make_trainer(image_shape=experiment.dataset.train.image.shape[1:], **parts)
  devices = experiment.config.mesh.data
  batch = experiment.example(-(-size // devices) * devices)
  state = jax.jit(trainer.init)(jax.random.key(experiment.config.seed), batch)
  step = jax.jit(trainer.step)

  def moved(weights: Array) -> tuple[Any, ...]:
    new, _ = step(state, batch, weights)
    return tuple(s.params for s in trainer.layer_states(new))

  matrix = locality_matrix(moved, len(experiment.network.layers))
  declared = experiment.trainer.locality
  if not agrees(matrix, declared):
    raise RuntimeError(
      f"method {experiment.method.name!r} declares locality {declared!r} in this run, but "
      f"its losses move foreign layers: {matrix.astype(int).tolist()}"
    )
  return matrix


def count_parameters(state: TrainState) -> int:
  """Trained numbers in all layers, extras and readouts; neither scales nor gradient states."""
  trees = [[s.params for s in state.layers], [s.params for s in state.readouts]]

  def trained(path: tuple) -> bool:
    last = path[-1]
    of_a_store = isinstance(last, jax.tree_util.GetAttrKey) and last.name == "scale"
    return not of_a_store and getattr(last, "key", None) != GRADIENT_STATE

  leaves = jax.tree_util.tree_leaves_with_path(trees)
  return sum(leaf.size for path, leaf in leaves if trained(path))


def passes_per_prediction(experiment: Experiment) -> Mapping[str, int]:
  """Forward passes that each readout costs per example."""
  method, example = experiment.method, experiment.example()
  views = 0
  if method.score_views is not None:
    views = len(jax.tree.leaves(jax.eval_shape(method.score_views, example.image))[0])
  if method.recurrence is not None:  # one pass up, and the time steps
    views *= 1 + method.recurrence.window[1]
  samples = max(1, experiment.config.eval_samples)
  return {r.name: samples * (1 if r.view == "plain" else views) for r in experiment.readouts}
