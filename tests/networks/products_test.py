"""Products in modules: every one has its own noise and its own state, and floats have neither."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from fflax.core.numerics import GRADIENT_STATE, Numerics, float32
from fflax.networks.layers import ConvLayer, DenseLayer, LocalLayer, from_linen

KEY = jax.random.key(0)


def noisy(product):
  """The product plus one number that only the key decides; exactly the product without a key."""

  def f(*args, key, **kwargs):
    noise = 0.0 if key is None else jax.random.uniform(key)
    return product(*args, **kwargs) + noise

  return f


NOISY = Numerics("noisy", noisy(lax.dot_general), noisy(lax.conv_general_dilated), takes_key=True)


@jax.custom_vjp
def _count(x, state):
  del state
  return x


_count.defvjp(lambda x, state: (x, state), lambda state, g: (g, state + jnp.max(jnp.abs(g))))


def counting(product):
  return lambda *args, state, **kwargs: _count(product(*args, **kwargs), state)


COUNTING = Numerics(
  "counting",
  counting(lax.dot_general),
  counting(lax.conv_general_dilated),
  gradient_state=lambda shape: jnp.zeros(shape[-1]),
)

MODULES = {
  "dense": lambda numerics: DenseLayer(3, nn.relu, numerics=numerics),
  "conv": lambda numerics: ConvLayer(3, nn.relu, numerics=numerics),
  "local": lambda numerics: LocalLayer(3, 2, numerics=numerics),
}


@pytest.mark.parametrize("name", MODULES)
def test_noise_comes_with_the_key_and_only_then(name):
  """Rounding noise in evaluation would make an answer depend on who asks."""
  x = jax.random.normal(KEY, (2, 4, 4, 3))
  layer, plain = (from_linen(MODULES[name](n), "a") for n in (NOISY, float32()))
  params, stats = layer.init(KEY, x)
  exact = plain.apply(params, stats, x, train=False)[0].pre
  np.testing.assert_allclose(layer.apply(params, stats, x, train=False)[0].pre, exact, atol=1e-6)
  noise = [
    layer.apply(params, stats, x, train=True, key=jax.random.key(seed))[0].pre - exact
    for seed in (0, 0, 1)
  ]
  assert np.array_equal(noise[0], noise[1])
  assert abs(float(noise[0].mean() - noise[2].mean())) > 1e-3


def test_products_of_one_module_draw_different_noise():
  """Two roundings with one noise would have correlated errors."""

  class Two(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
      return [DenseLayer(3, numerics=NOISY)(x).pre for _ in range(2)]

  variables = Two().init(KEY, jnp.ones((1, 2)))
  a, b = Two().apply(variables, jnp.ones((1, 2)), rngs={"rounding": KEY})
  plain = Two().apply(variables, jnp.ones((1, 2)))
  assert abs(float((a - plain[0]).mean() - (b - plain[1]).mean())) > 1e-3


@pytest.mark.parametrize("name", ["dense", "conv"])
def test_the_gradient_of_a_state_is_its_next_value(name):
  x = jax.random.normal(KEY, (2, 4, 4, 3))
  layer = from_linen(MODULES[name](COUNTING), "a")
  params, stats = layer.init(KEY, x)
  flat = jax.tree_util.tree_leaves_with_path(params)
  states = [leaf for path, leaf in flat if path[-1].key == GRADIENT_STATE]
  assert [leaf.shape for leaf in states] == [(3,)]
  grads = jax.grad(lambda p: 5.0 * layer.apply(p, stats, x, train=True)[0].pre.sum())(params)
  found = [
    g for path, g in jax.tree_util.tree_leaves_with_path(grads) if path[-1].key == GRADIENT_STATE
  ]
  np.testing.assert_array_equal(found[0], np.full(3, 5.0))


def test_float_products_add_no_parameters():
  params, _ = from_linen(MODULES["dense"](float32()), "a").init(KEY, jnp.ones((1, 2)))
  assert jax.tree.map(jnp.shape, params) == {"dense": {"kernel": (2, 3), "bias": (3,)}}


def test_a_local_layer_refuses_a_state():
  with pytest.raises(
    ValueError, match="locally connected layers cannot run in numerics 'counting'"
  ):
    from_linen(MODULES["local"](COUNTING), "a").init(KEY, jnp.ones((1, 4, 4, 1)))


def test_a_sampled_answer_is_rounded_to_nearest():
  """Random units may ask for a key in evaluation; stochastic rounding must not come with it."""
  x = jax.random.normal(KEY, (2, 4, 4, 3))
  layer = from_linen(MODULES["dense"](NOISY), "a")
  params, stats = layer.init(KEY, x)
  with_key, without = (layer.apply(params, stats, x, train=False, key=k)[0] for k in (KEY, None))
  np.testing.assert_array_equal(with_key.out, without.out)
