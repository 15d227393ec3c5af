"""Layers and a method small enough to compute by hand, independent of the networks and methods.

A layer is `tanh(gain x w)`, gain 1 in training and 1/2 in evaluation, so that the two differ; it
counts its training passes. The method pulls a layer's output towards a trained shift.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from fflax.core import readouts
from fflax.training.step import make_trainer
from fflax.training.trainer import Trainer
from fflax.types import Batch, Layer, LayerOut, Method, Network

SIZE, CLASSES, ROWS, RATE = 5, 3, 8, 0.5


def dense(name: str, width: int = SIZE) -> Layer:
  def init(key, x):
    w = jax.random.normal(key, (x.shape[-1], width)) / x.shape[-1] ** 0.5
    return {"w": w}, {"passes": jnp.zeros((), jnp.int32)}

  def apply(params, stats, x, *, train, key=None):
    del key
    pre = x @ params["w"] * (1.0 if train else 0.5)
    act = jnp.tanh(pre)
    return LayerOut(pre, act, act), {"passes": stats["passes"] + 1} if train else stats

  return Layer(name, init, apply, ("dense", width))


def network(num_layers: int = 3, make=dense) -> Network:
  return Network("tiny", tuple(make(f"layer_{i}") for i in range(num_layers)))


def local_loss(params, stats, out, label, context, key):
  del label, context, key
  loss = jnp.mean(jnp.square(out.out[0] - params["shift"][None]))
  return loss, ({"seen": stats["seen"] + out.out.shape[1]}, {"first": out.out[0, 0, 0]})


METHOD = Method(
  name="tiny",
  paper="none",
  locality="strict",
  single_pass=True,
  views=lambda key, batch, class_scores: batch.image[None],
  plain_view=lambda image: image,
  score_views=lambda image: image[None],
  init_layer=lambda key, out, place: (
    {"shift": jax.random.normal(key, out.out.shape[-1:])},
    {"seen": jnp.zeros((), jnp.int32)},
  ),
  hand_on=lambda out, *, train, key=None: out.out,
  local_loss=local_loss,
  class_scores=lambda params, stats, out: out.out[0, :, :CLASSES],
  goodness=lambda params, stats, out: jnp.sum(jnp.square(out.out), -1),
)


def batch(seed: int = 0) -> Batch:
  rng = np.random.default_rng(seed)
  image = jnp.asarray(rng.normal(size=(ROWS, SIZE)), jnp.float32)
  return Batch(image, jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32))


def trainer(method: Method = METHOD, layers: Network | None = None, **options) -> Trainer:
  options = {"optimizer": optax.sgd(RATE), "image_shape": (SIZE,), **options}
  found = options.pop("readouts", [readouts.score_sum()])
  return make_trainer(layers or network(), method, found, **options)


def jit(function):
  """Compiles four times faster; the numbers differ by rounding only."""
  return jax.jit(function, compiler_options={"xla_backend_optimization_level": 0})
