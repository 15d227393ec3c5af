"""A toy run for the tests of the loop: softmax regressions as layers, independent of the driver.

    python -m tests.training.toy DIRECTORY [--pause SECONDS]

trains it to the end of its plan, with a pause after every row, so that a test can kill it there.
"""

import argparse
import functools
import pathlib
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fflax.random import Role, role_key, step_key
from fflax.training.chunk import Feed
from fflax.training.evaluate import Evaluate, make_evaluate
from fflax.training.loop import Plan, train
from fflax.training.schedules import simultaneous
from fflax.training.trainer import Trainer
from fflax.types import Answers, Batch, LayerState, ReadoutState, Schedule, TrainState

NUM_EXAMPLES, NUM_CLASSES, BATCH_SIZE = 53, 3, 8
PLAN = Plan(num_steps=60, steps_per_epoch=NUM_EXAMPLES / BATCH_SIZE, log_every=7, eval_every=10,
            checkpoint_every=12)  # fmt: skip
LAYER_NAMES = ("low", "high")


@functools.cache
def make_data() -> tuple[jax.Array, jax.Array]:
  """uint8 images `[N, 2, 2, 1]` whose brightest corner tells the class, with noise."""
  rng = np.random.default_rng(0)
  label = rng.integers(0, NUM_CLASSES, NUM_EXAMPLES)
  image = rng.integers(0, 160, (NUM_EXAMPLES, 4))
  image[np.arange(NUM_EXAMPLES), label] += 90
  return jnp.asarray(image.reshape(-1, 2, 2, 1), jnp.uint8), jnp.asarray(label, jnp.int32)


def preprocess(image: jax.Array) -> jax.Array:
  return image.astype(jnp.float32) / 255 - 0.4


@functools.cache
def make_feed() -> Feed:
  """Batches with repetition, each its own function of (key, step); noise as augmentation."""

  def indices(key, first_step, num_steps):
    steps = first_step + jnp.arange(num_steps)
    keys = jax.vmap(lambda t: jax.random.fold_in(key, t))(steps)
    bits = jax.vmap(lambda k: jax.random.bits(k, (BATCH_SIZE,)))(keys)
    return (bits % NUM_EXAMPLES).astype(jnp.int32)

  def augment(key, image):
    return preprocess(image) + 0.1 * jax.random.uniform(key, image.shape, minval=-1.0)

  return Feed(indices, augment)


@functools.cache
def make_trainer(schedule: Schedule | None = None) -> Trainer:
  """Two layers that are softmax regressions on the pixels, and a readout with a trained scale."""
  optimizer = optax.adam(0.03)

  def scores(params, image):
    return image.reshape(len(image), -1) @ params["kernel"] + params["bias"][None, :]

  def init(key, batch):
    size = batch.image[0].size
    layers = []
    for i in range(len(LAYER_NAMES)):
      kernel = 0.1 * jax.random.normal(jax.random.fold_in(key, i), (size, NUM_CLASSES))
      params = {"layer": {"kernel": kernel, "bias": jnp.zeros(NUM_CLASSES)}, "method": {}}
      faults = {"nan_loss_at": jnp.asarray(-1), "inf_params_at": jnp.asarray(-1)}
      layers.append(LayerState(params, optimizer.init(params), {"layer": {}, "method": faults}))
    scale = {"scale": jnp.ones(()), "unused": jnp.zeros((0, 3))}
    readouts = (ReadoutState(scale, optimizer.init(scale)),)
    return TrainState(jnp.zeros((), jnp.int32), key, tuple(layers), readouts)

  def step(state, batch, loss_weights=None):
    del loss_weights
    views = role_key(step_key(state.key, state.step), Role.VIEWS)
    image = batch.image + 0.02 * jax.random.uniform(views, batch.image.shape)
    layers, losses = [], []
    for i, s in enumerate(state.layers):

      def objective(params):
        logits = scores(params["layer"], image)
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch.label).mean()

      loss, grads = jax.value_and_grad(objective)(s.params)
      updates, opt_state = optimizer.update(grads, s.opt_state, s.params)
      new = LayerState(optax.apply_updates(s.params, updates), opt_state, s.stats)
      if schedule is not None and schedule.active is not None:
        active = schedule.active(state.step, len(LAYER_NAMES))[i]
        new = jax.tree.map(lambda a, b, active=active: jnp.where(active, a, b), new, s)
        loss = jnp.where(active, loss, jnp.nan)
      faults = s.stats["method"]
      loss = jnp.where(state.step == faults["nan_loss_at"], jnp.nan, loss)
      bad = jnp.where(state.step == faults["inf_params_at"], jnp.inf, 0.0)
      new = LayerState(jax.tree.map(lambda x, b=bad: x + b, new.params), new.opt_state, new.stats)
      layers.append(new)
      losses.append(loss)

    def readout_objective(params):
      total = sum(scores(s.params["layer"], image) for s in state.layers)
      logits = params["scale"] * total
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch.label).mean()

    (own,) = state.readouts
    loss, grads = jax.value_and_grad(readout_objective)(own.params)
    updates, opt_state = optimizer.update(grads, own.opt_state, own.params)
    readouts = (ReadoutState(optax.apply_updates(own.params, updates), opt_state),)
    metrics = {"loss": jnp.stack(losses), "readout_loss/sum": loss}
    return TrainState(state.step + 1, state.key, tuple(layers), readouts), metrics

  def answer(state, image):
    by_layer = [scores(s.params["layer"], image) for s in state.layers]
    total = state.readouts[0].params["scale"] * sum(by_layer)
    return Answers({"sum": total}, (None, by_layer[1]))

  return Trainer(
    init=init,
    step=step,
    answer=answer,
    goodness=None,
    features=lambda state, image: (),
    layer_outs=lambda state, image, key: (),
    layer_states=lambda state: state.layers,
    layer_names=LAYER_NAMES,
    schedule=schedule or simultaneous(),
  )


def make_state(trainer: Trainer, seed: int = 0, **faults: int) -> TrainState:
  """A fresh state; `nan_loss_at`: the step in which the loss of layer "high" is NaN,
  `inf_params_at`: the step after which its parameters are infinite though its loss was finite.
  """
  images, labels = make_data()
  state = trainer.init(jax.random.key(seed), Batch(preprocess(images[:2]), labels[:2]))
  for name, step in faults.items():
    state.layers[1].stats["method"][name] = jnp.asarray(step)
  return state


@functools.cache
def _make_evaluate(trainer: Trainer) -> Evaluate:
  return make_evaluate(trainer, preprocess, NUM_EXAMPLES, 10, NUM_CLASSES)


def run(directory: pathlib.Path | None, faults: dict | None = None, **options) -> TrainState:
  """Trains the toy in `directory`; options as of `fflax.training.loop.train`."""
  trainer = make_trainer(options.pop("schedule", None))
  images, labels = make_data()
  over_split = _make_evaluate(trainer)

  def evaluate(state):
    return {f"test/{name}": x for name, x in over_split(state, images, labels).items()}

  settings = {"evaluate": evaluate, "directory": directory, "fingerprint": "toy", **options}
  plan = settings.pop("plan", PLAN)
  state = make_state(trainer, **(faults or {}))
  return train(trainer, make_feed(), state, images, labels, plan, **settings)


def main() -> None:
  parser = argparse.ArgumentParser()
  parser.add_argument("directory", type=pathlib.Path)
  parser.add_argument("--pause", type=float, default=0.0)
  args = parser.parse_args()

  def on_row(row):
    print(row["step"], flush=True)
    time.sleep(args.pause)

  run(args.directory, on_row=on_row)


if __name__ == "__main__":
  main()
