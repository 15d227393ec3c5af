"""The outside rival: a perceptron trained by backprop in int8 with google/qwix.

qwix quantises weights and activations per channel and, in the backward pass, gradients; its noise
is uniform stochastic rounding on the gradients. Needs `pip install -r requirements-bench.txt`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from fflax.types import Array, Batch


class Perceptron(nn.Module):
  """Dense layers with ReLU and a linear head, `[B, D]` to `[B, classes]`."""

  sizes: Sequence[int]
  num_classes: int

  @nn.compact
  def __call__(self, x: Array) -> Array:
    """Returns logits."""
    x = x.reshape(len(x), -1)
    for size in self.sizes:
      x = nn.relu(nn.Dense(size)(x))
    return nn.Dense(self.num_classes)(x)


def make_step(
  sizes: Sequence[int],
  num_classes: int,
  optimizer: optax.GradientTransformation,
  batch: Batch,
  seed: int = 0,
) -> tuple[Callable[..., tuple[Any, Array]], Any, Callable[[Any, Array], Array]]:
  """The rival's training step.

  Returns:
    `step(state, batch) -> (state, loss)`, the first state, and `logits(state, image)`.
  """
  import qwix

  rule = qwix.QtRule(
    module_path=".*",
    weight_qtype="int8",
    act_qtype="int8",
    bwd_qtype="int8",
    bwd_stochastic_rounding="uniform",
  )
  model = qwix.quantize_model(Perceptron(tuple(sizes), num_classes), qwix.QtProvider([rule]))
  init_key, noise_key = jax.random.split(jax.random.key(seed))
  variables = model.init(init_key, batch.image)
  params = variables["params"]

  def apply(params: Any, image: Array, key: Array) -> Array:
    return model.apply({"params": params}, image, rngs={"stochastic_rounding": key})

  def step(state: tuple, batch: Batch) -> tuple[tuple, Array]:
    params, opt_state, count = state
    key = jax.random.fold_in(noise_key, count)

    def objective(params: Any) -> Array:
      logits = apply(params, batch.image, key)
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch.label).mean()

    loss, grads = jax.value_and_grad(objective)(params)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    return (optax.apply_updates(params, updates), opt_state, count + 1), loss

  def logits(state: tuple, image: Array) -> Array:
    return apply(state[0], image, noise_key)

  return step, (params, optimizer.init(params), jnp.zeros((), jnp.int32)), logits
