"""Batch norm by parts of the batch: each part as the joint norm has it alone; one evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.networks.conv_blocks import ConvNormLayer
from fflax.networks.layers import ConvLayer, from_linen
from fflax.networks.mobilenet import InvertedResidual
from fflax.networks.resnet import BasicBlock
from tests.networks import numpy_blocks as hand

MODULES = {
  "conv": ConvLayer(4, jnp.tanh, batch_norm=True),
  "stem": ConvNormLayer(4, jnp.tanh),
  "basic": BasicBlock(4, jnp.tanh, 2),
  "inverted": InvertedResidual(4, jnp.tanh, expansion=2),
}


@pytest.mark.parametrize("name", MODULES)
def test_each_part_is_normalised_alone(name):
  """Outputs and gradients of the parts; the running averages are their mean."""
  x = hand.image(6, 5, 4, 3) * jnp.linspace(0.3, 3, 6).reshape(-1, 1, 1, 1)
  weight = hand.image(6)
  joint, parted = (from_linen(MODULES[name].clone(norm_groups=n), "layer") for n in (1, 2))
  params, stats = hand.moved(*hand.jit(joint.init)(jax.random.key(0), x))

  def run(layer, x, weight, train=True):
    def loss(params):
      out, new = layer.apply(params, stats, x, train=train)
      return jnp.sum(weight.reshape(-1, 1, 1, 1) * out.out**2), (out.out, new)

    (_, (out, new)), grads = jax.value_and_grad(loss, has_aux=True)(params)
    return out, new, grads

  @hand.jit
  def all_of_it(x):
    parts = [run(joint, x[rows], weight[rows]) for rows in (slice(0, 3), slice(3, 6))]
    outs, new, grads = zip(*parts, strict=True)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *new)
    want = jnp.concatenate(outs), mean, jax.tree.map(jnp.add, *grads)
    in_evaluation = [run(layer, x, weight, train=False)[:2] for layer in (joint, parted)]
    return want, run(parted, x, weight), run(joint, x, weight), in_evaluation

  want, got, whole, (plain, same) = all_of_it(x)
  for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
  assert np.abs(got[0] - whole[0]).max() > 0.1
  for a, b in zip(jax.tree.leaves(same), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_a_batch_that_cannot_be_parted_is_refused_in_training():
  layer = from_linen(ConvLayer(4, batch_norm=True, norm_groups=2), "layer")
  x = jax.ShapeDtypeStruct((3, 4, 4, 1), jnp.float32)
  params, stats = jax.eval_shape(layer.init, jax.random.key(0), x)
  jax.eval_shape(lambda p, s, x: layer.apply(p, s, x, train=False), params, stats, x)
  with pytest.raises(ValueError, match="batch of 3, which norm_groups=2 cannot part equally"):
    jax.eval_shape(lambda p, s, x: layer.apply(p, s, x, train=True), params, stats, x)
