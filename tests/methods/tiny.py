"""Tiny networks, batches and comparisons for the oracle tests of the methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fflax.core.numerics import float32
from fflax.networks.initializers import Initializer
from fflax.networks.registry import make_network
from fflax.training.trainer import Trainer
from fflax.types import Batch, Network, TrainState

CLASSES, ROWS, SHAPE = 4, 12, (5, 5, 1)
DEEP, SHALLOW = (14, 14, 14), (14, 11)  # the last two layers of DEEP can be stacked under one scan


# The numbers differ by rounding only; compilation is several times faster.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def scatter(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """Irregular numbers of mean square 1 that compile much faster than random ones."""
  phase = (jax.random.key_data(key)[0] % 1009).astype(jnp.float32)
  return 2**0.5 * jnp.sin(jnp.arange(np.prod(shape)) ** 1.5 + phase).reshape(shape)


def make_initializer(dead_unit: bool) -> Initializer:
  """Biases are not zero, so that their decay shows; unit 0 may be dead on every example."""

  def kernel(key, shape, dtype=jnp.float32):
    k = scatter(key, shape)
    # Without the mean, positive inputs turn on different units for different examples.
    k -= jnp.mean(k, axis=0, keepdims=True)
    return (k * shape[0] ** -0.5).astype(dtype)

  def bias(key, shape, dtype=jnp.float32, *, fan_in):
    del fan_in
    b = 0.1 * scatter(key, shape)
    return (b.at[0].set(-30.0) if dead_unit else b).astype(dtype)

  return Initializer(kernel, bias)


def make_mlp(sizes: tuple[int, ...], activation: str = "relu", dead_unit: bool = True) -> Network:
  return make_network(
    "mlp",
    numerics=float32(),
    activation=activation,
    kernel_init=make_initializer(dead_unit),
    sizes=sizes,
  )


def make_batch(seed: int) -> Batch:
  rng = np.random.default_rng(seed)
  image = rng.uniform(0, 1, (ROWS, *SHAPE)).astype(np.float32)
  return Batch(jnp.asarray(image), jnp.asarray(rng.integers(0, CLASSES, ROWS), jnp.int32))


def made_up_state(trainer: Trainer, batch: Batch) -> TrainState:
  """A state of the right shapes, whose initialisation need not be compiled."""
  rng = np.random.default_rng(0)

  def fill(leaf: jax.ShapeDtypeStruct) -> jax.Array:
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
      return jax.random.key(0)
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
      return jnp.zeros(leaf.shape, leaf.dtype)
    if len(leaf.shape) < 2:  # biases, and the variances of batch norm
      return jnp.full(leaf.shape, 0.1, leaf.dtype)
    return jnp.asarray(rng.normal(size=leaf.shape) / leaf.shape[-2] ** 0.5, leaf.dtype)

  return jax.tree.map(fill, jax.eval_shape(trainer.init, jax.random.key(0), batch))


def numeric_gradient(loss, params, width=1e-6):
  """Central differences of `loss(params)` for every number in a tree of float64 arrays."""
  leaves, tree = jax.tree.flatten(params)
  grads = []
  for leaf in leaves:
    grad = np.zeros_like(leaf)
    for i in np.ndindex(leaf.shape):
      kept = leaf[i]
      ends = []
      for step in (width, -width):
        leaf[i] = kept + step
        ends.append(loss(params))
      leaf[i] = kept
      grad[i] = (ends[0] - ends[1]) / (2 * width)
    grads.append(grad)
  return jax.tree.unflatten(tree, grads)


def flat64(image: jax.Array) -> np.ndarray:
  return np.asarray(image, np.float64).reshape(len(image), -1)


def layers64(trainer: Trainer, state: TrainState) -> list[dict[str, np.ndarray]]:
  """Kernel and bias of every layer in float64."""
  return [
    {k: np.asarray(v, np.float64) for k, v in s.params["layer"]["dense"].items()}
    for s in trainer.layer_states(state)
  ]


def assert_close(got, want, what: str, rtol: float = 1e-5, atol: float = 1e-5) -> None:
  np.testing.assert_allclose(np.asarray(got), want, rtol=rtol, atol=atol, err_msg=what)


def assert_layers(got: list, want: list, first: list, atol: float = 1e-5) -> None:
  """Equal to rounding, after every part of every layer has moved far enough to tell."""
  for i, (g, w, f) in enumerate(zip(got, want, first, strict=True)):
    assert set(g) == set(w)
    for part in w:
      assert_close(g[part], w[part], f"{part} of layer {i}", 1e-5, atol)
      moved = np.abs(w[part] - f[part]).max()
      assert moved > 0.01, f"{part} of layer {i} hardly moved ({moved}): the test is blind"
