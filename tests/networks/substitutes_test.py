"""Substitutes of batch norm: gains and offsets against numpy, alone and inside the CFSE network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core.numerics import float32
from fflax.core.pbit_config import PbitConfig
from fflax.core.pbits import pbit
from fflax.networks import make_network
from fflax.networks.cfse import ChannelwiseLayer
from fflax.networks.substitutes import SubstituteNorm
from tests.networks import numpy_blocks as hand

SETTINGS = [
  {"gain": gain, "scale": scale, "bias": bias}
  for gain in (False, True)
  for scale in (False, True)
  for bias in (False, True)
]


def prepared(settings, x):
  """The norm, with all its numbers away from where they start."""
  norm = SubstituteNorm(**settings, epsilon=0.01)
  variables = norm.init(jax.random.key(0), x, x * x, True)
  assert all(set(np.unique(leaf)) <= {0, 1} for leaf in jax.tree.leaves(variables))
  return norm, jax.tree.map(lambda a: a + 0.1 + 0.2 * jnp.arange(1.0, 4.0), variables)


@pytest.mark.parametrize("settings", SETTINGS)
def test_gain_and_offset_are_numpy(settings):
  x = hand.image(4, 3, 2, 3)
  norm, variables = prepared(settings, x)
  x64 = np.asarray(x, np.float64)
  move = 0.1 + 0.2 * np.arange(1.0, 4.0)
  factor = (1 + move if settings["scale"] else 1) / (
    np.sqrt(1 + move + 0.01) if settings["gain"] else 1
  )
  want = factor * x64 + (move if settings["bias"] else 0)
  for train in (False, True):
    (y, none, *_), changed = norm.apply(variables, x, None, train, mutable=["batch_stats"])
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-6)  # in training, too: no batch in it
    assert none is None
    if settings["gain"]:
      new = 0.9 * (1 + move) + 0.1 * (x64**2).mean((0, 1, 2)) if train else 1 + move
      np.testing.assert_allclose(changed["batch_stats"]["mean_square"], new, rtol=1e-5)
    else:
      assert not changed.get("batch_stats")


@pytest.mark.parametrize("settings", SETTINGS)
def test_squares_have_the_exact_effect_of_every_flip(settings):
  """The slope of the square in each count is that of the true square between whole counts."""
  config = PbitConfig(2, "ste_identity")
  v, key = jnp.zeros((64, 3)), jax.random.key(5)
  norm, variables = prepared(settings, v)
  count, own = pbit(key, v, config)
  y, square, *_ = norm.apply(variables, count, own)
  np.testing.assert_allclose(square, np.asarray(y) ** 2, rtol=1e-6)

  def loss(v):
    return jnp.sum(norm.apply(variables, *pbit(key, v, config))[1])

  ends = [np.asarray(norm.apply(variables, jnp.full((1, 3), k))[0], np.float64) for k in range(3)]
  rises = np.stack([ends[1] ** 2 - ends[0] ** 2, ends[2] ** 2 - ends[1] ** 2])[:, 0]
  k = np.asarray(count, int)
  c = np.arange(3)[None]
  # Of two units, k are on: each of them stands beside k - 1, each other beside k.
  want = k * rises[np.maximum(k - 1, 0), c] + (2 - k) * rises[np.minimum(k, 1), c]
  np.testing.assert_allclose(jax.jit(jax.grad(loss))(v), want, rtol=1e-4, atol=1e-5)


def test_the_running_average_is_of_the_square_that_is_given():
  """Of the mean field, for example, whose square is more than its mean's square."""
  x = hand.image(4, 3, 2, 3)
  norm, variables = prepared({}, x)
  averages = []
  for square in (x * x, x * x + 1):
    _, changed = norm.apply(variables, x, square, True, mutable=["batch_stats"])
    averages.append(np.asarray(changed["batch_stats"]["mean_square"]))
  np.testing.assert_allclose(averages[1] - averages[0], 0.1, rtol=1e-4)


@pytest.mark.parametrize(
  ("norm", "params", "stats"),
  [
    ("gain", {"scale"}, {"mean_square"}),
    ("bias", {"bias"}, set()),
    ("gain_bias", {"scale", "bias"}, {"mean_square"}),
  ],
)
def test_names_in_the_network(norm, params, stats):
  """What each name learns and keeps; where the next layer normalises, nothing is learned."""
  options = {"channels": (4, 8), "groups": (1, 2), "pool_after": (2,), "norm": norm}
  x, key = hand.image(2, 4, 4, 2), jax.random.key(0)
  if "bias" in norm:  # where the loss does not see it, an offset would not be learned
    with pytest.raises(ValueError, match="use 'post_norm'"):
      make_network("cfse", numerics=float32(), loss_input="pre_norm", **options)
  for loss_input in ("post_norm", "pre_norm")[: 1 if "bias" in norm else 2]:
    h, found = x, []
    for layer in make_network("cfse", numerics=float32(), loss_input=loss_input, **options).layers:
      found.append(jax.eval_shape(layer.init, key, h))
      h = jax.eval_shape(
        lambda p, s, h, f=layer.apply: f(p, s, h, train=True)[0].out, *found[-1], h
      )
    if loss_input == "post_norm":
      for p, s in found:
        assert (set(p["norm"]), set(s.get("norm", {}))) == (params, stats)
    else:
      assert [set(p) for p, _ in found] == [{"conv"}, {"conv"}]
      assert [set(s.get("input_norm", {})) for _, s in found] == [set(), stats]


def test_no_example_meets_another_in_training():
  """The one thing that batch norm cannot promise."""
  x = hand.image(3, 4, 4, 2)
  for norm, alone in (("batch", False), ("gain", True), ("bias", True), ("gain_bias", True)):
    module = ChannelwiseLayer(4, norm=norm)
    variables = module.init(jax.random.key(0), x)

    def emit(x, module=module, variables=variables):
      return module.apply(variables, x, train=True, mutable=["batch_stats"])[0].out[0]

    same = np.array_equal(emit(x), emit(x.at[1:].multiply(2.0)))
    assert same == alone, norm
