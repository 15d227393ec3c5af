"""Convolution, batch norm and whole networks of blocks, for the tests of the block networks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from fflax.core.numerics import Numerics
from fflax.networks.layers import from_linen
from fflax.networks.registry import describe, make_network
from fflax.types import Array, Network, PyTree

# Compilation is most of these tests' time; the numbers differ by rounding only.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def image(*shape: int) -> Array:
  return jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)


def conv(x: np.ndarray, w: np.ndarray, stride: int = 1) -> np.ndarray:
  """SAME convolution of `[B, H, W, C]` with `[k, k, C, F]`, or with `[k, k, 1, C]` depthwise."""
  if w.ndim == 2:
    w = w[None, None]
  field, pads = w.shape[0], [(0, 0)]
  for size in x.shape[1:3]:
    total = max((-(-size // stride) - 1) * stride + field - size, 0)
    pads.append((total // 2, total - total // 2))
  x = np.pad(x, (*pads, (0, 0)))
  rows = (x.shape[1] - field) // stride + 1
  columns = (x.shape[2] - field) // stride + 1
  out = 0
  for i in range(field):
    for j in range(field):
      part = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride][
        :, :rows, :columns
      ]
      depthwise = w.shape[2] == 1 and x.shape[-1] > 1
      out = out + (part * w[i, j, 0] if depthwise else part @ w[i, j])
  return out


def conv_norm(
  params: PyTree, stats: PyTree, x: np.ndarray, train: bool, stride: int = 1, operand=np.asarray
) -> np.ndarray:
  """`ConvNorm` in float64."""
  h = conv(operand(x), operand(params["conv"]["kernel"]), stride)
  if "norm" not in params:
    return h + params["conv"]["bias"]
  mean, var = (h.mean((0, 1, 2)), h.var((0, 1, 2))) if train else stats["norm"].values()
  h = (h - mean) / np.sqrt(var + 1e-5)
  return h * params["norm"]["scale"] + params["norm"]["bias"]


def float64(tree: PyTree) -> PyTree:
  return jax.tree.map(lambda a: np.asarray(a, np.float64), tree)


def moved(params: PyTree, stats: PyTree) -> tuple[PyTree, PyTree]:
  """The same trees with every vector off its start, so that scales, shifts and averages show."""
  rng = np.random.default_rng(1)

  def move(a: Array) -> Array:
    noise = jnp.asarray(rng.uniform(0.2, 0.6, a.shape), jnp.float32)
    return a + noise if a.ndim == 1 else a

  return jax.tree.map(move, params), jax.tree.map(move, stats)


def check_block(module, by_hand, x: Array, atol: float = 1e-5) -> None:
  """The module's outputs and gradient against `by_hand(params, stats, x, train) -> pre, out`.

  The gradient is compared along a random direction with a difference quotient of `by_hand`.
  """
  layer = from_linen(module, "layer")
  params, stats = moved(*jit(layer.init)(jax.random.key(0), x))
  weight = image(len(x))
  rng, step = np.random.default_rng(2), 1e-4
  for train in (False, True):

    def loss(params, train=train):
      out, new = layer.apply(params, stats, x, train=train)
      return (out.out.mean((1, 2, 3)) * weight).sum(), (out, new)

    (_, (out, new)), grads = jit(jax.value_and_grad(loss, has_aux=True))(params)
    p64, s64, x64 = float64(params), float64(stats), float64(x)
    pre, result = by_hand(p64, s64, x64, train)
    np.testing.assert_allclose(out.pre, pre, atol=atol, rtol=1e-4)
    np.testing.assert_allclose(out.out, result, atol=atol, rtol=1e-4)
    same = jax.tree.map(lambda a, b: bool((a == b).all()), new, stats)
    assert all(jax.tree.leaves(same)) if not train else not any(jax.tree.leaves(same))

    direction = jax.tree.map(lambda a: rng.standard_normal(a.shape), p64)
    ends = []
    for sign in (1, -1):
      p = jax.tree.map(lambda a, d, sign=sign: a + sign * step * d, p64, direction)
      ends.append((by_hand(p, s64, x64, train)[1].mean((1, 2, 3)) * float64(weight)).sum())
    slope = sum(jax.tree.leaves(jax.tree.map(lambda g, d: float((g * d).sum()), grads, direction)))
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * step), rtol=1e-3, atol=1e-5)


def table(name: str, shape: tuple[int, ...], numerics: Numerics, **options) -> list[tuple]:
  return [tuple(row) for row in describe(make_network(name, numerics=numerics, **options), shape)]


def init(network: Network, x: Array) -> list[tuple[PyTree, PyTree]]:
  """Parameters and statistics of every layer, compiled as one program."""

  def run(x):
    states = []
    for layer in network.layers:
      states.append(layer.init(jax.random.key(0), x))
      x = layer.apply(*states[-1], x, train=False)[0].out
    return states

  return jit(run)(x)


def check_network(network: Network, x: Array) -> None:
  """A whole tiny network: gradients everywhere, statistics that move in training alone, and
  answers in evaluation that depend on nothing but the example and the parameters."""
  states = init(network, x)
  rows = describe(network, x.shape[1:])
  weight = image(*rows[-1].output_shape)[None]

  def forward(params, x, train, key):
    outs, stats = [], []
    for layer, p, (_, s) in zip(network.layers, params, states, strict=True):
      out, new = layer.apply(p, s, x, train=train, key=key)
      x = out.out
      outs.append(x)
      stats.append(new)
    return outs, stats

  def loss(params, key):
    outs, stats = forward(params, x, True, key)
    return (outs[-1] * weight).sum(), (outs, stats)

  params = [p for p, _ in states]
  (_, (outs, stats)), grads = jit(jax.value_and_grad(loss, has_aux=True))(params, jax.random.key(1))
  for out, row in zip(outs, rows, strict=True):
    assert out.shape == (len(x), *row.output_shape) and out.dtype == jnp.float32
    assert bool(jnp.isfinite(out).all())
  for path, g in jax.tree_util.tree_leaves_with_path(grads):
    name = jax.tree_util.keystr(path)
    assert g.dtype == jnp.float32 and bool(jnp.isfinite(g).all()), name
    assert float(jnp.abs(g).max()) > 0, f"{name} gets no gradient"
  for old, new in zip(jax.tree.leaves([s for _, s in states]), jax.tree.leaves(stats), strict=True):
    assert not np.array_equal(old, new)

  evaluate = jit(lambda x, key: forward(params, x, False, key))
  one, same = evaluate(x, jax.random.key(2))
  other, _ = evaluate(x[::-1], jax.random.key(3))
  for a, b in zip(one, other, strict=True):
    np.testing.assert_array_equal(a, b[::-1])
  for old, new in zip(jax.tree.leaves([s for _, s in states]), jax.tree.leaves(same), strict=True):
    np.testing.assert_array_equal(old, new)
