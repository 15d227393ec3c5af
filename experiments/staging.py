"""How the layers of a run are shared out over devices: by what a step of each one costs."""

import functools

import jax

from experiments.assembly import Experiment
from experiments.card import Task, traced_trainer
from fflax.analysis.cost import count
from fflax.analysis.pipeline_schedule import balance
from fflax.training.pipeline import MakePipeline, make_pipeline
from fflax.training.spmd_pipeline import make_spmd_pipeline, share_out
from fflax.types import Batch


def layer_costs(experiment: Experiment) -> tuple[float, ...]:
  """Multiply-accumulates of each layer in one training step; the last one bears the readouts'.

  Raises:
    ValueError: the run cannot be pipelined; one sentence.
  """
  task = Task(experiment.images.shape[1:], experiment.dataset.num_classes, experiment.dataset.name)
  # Not its own products, which on a CPU multiply less than they stand for.
  trainer = traced_trainer(experiment.config, task)
  assert trainer.stages is not None
  stages = trainer.stages((1,) * len(experiment.network.layers))
  size = experiment.config.data.batch_size
  image, label = (
    jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype)
    for a in (experiment.images, experiment.labels)
  )
  image = jax.eval_shape(lambda x: experiment.preprocess(None, x), image)
  key = jax.eval_shape(lambda: jax.random.key(0))
  state = jax.eval_shape(lambda key, *a: trainer.init(key, Batch(*a)), key, image, label)
  parts = jax.eval_shape(stages.split, state)
  message = jax.eval_shape(lambda p, *a: stages.enter(p, Batch(*a)), parts[0], image, label)
  costs = []
  for step, part in zip(stages.steps, parts, strict=True):
    costs.append(count(step, part, message, while_trips=1).total("macs"))
    message = jax.eval_shape(step, part, message)[1]
  return tuple(costs)


def choose_stages(experiment: Experiment, num_stages: int) -> tuple[int, ...]:
  """The layers of each stage, contiguous, such that the dearest stage is as cheap as can be.

  Raises:
    ValueError: there are fewer layers than stages, or the run cannot be pipelined; one sentence.
  """
  return balance(layer_costs(experiment), num_stages)


def chosen_pipeline(experiment: Experiment) -> MakePipeline | None:
  """The pipeline that the configuration asks for; None: all layers stay on one device.

  Raises:
    ValueError: see `choose_stages` and `share_out`.
  """
  mesh = experiment.config.mesh
  if mesh.layer == 1:
    return None
  if mesh.pipeline == "mpmd":
    return functools.partial(make_pipeline, sizes=choose_stages(experiment, mesh.layer))
  share = share_out(experiment.trainer.equal_layers, mesh.layer, experiment.network.name)
  return functools.partial(make_spmd_pipeline, share=share, num_devices=mesh.layer)
