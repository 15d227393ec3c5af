"""Label maps that layers carry: behind what the method hands on, at every layer and as shown."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.core.locality import locality_matrix
from fflax.core.numerics import float32
from fflax.core.readouts import ReadoutConfig, make_readout
from fflax.methods.forward_forward import ForwardForwardConfig, forward_forward
from fflax.networks.registry import make_network
from fflax.training import lookahead
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.training.tiny_layers import jit

K = 3


def trainer(look=None, **options):
  network = make_network(
    "small_cnn", numerics=float32(), channels=(4, 5, 5), pool_after=(1,), **options
  )
  config = ForwardForwardConfig(label_style="channels", goodness="mean")
  return make_trainer(
    network,
    forward_forward(config, K),
    [make_readout("score_sum", ReadoutConfig(), K)],
    image_shape=(4, 4, 1),
    optimizer=optax.sgd(0.1),
    lookahead=look,
  )


def batch():
  image = jax.random.uniform(jax.random.key(1), (4, 4, 4, 1))
  return Batch(image, jnp.asarray([0, 1, 2, 0]))


def test_every_layer_receives_the_maps_as_they_were_shown():
  one, data = trainer(label_maps=K), batch()
  state = jit(one.init)(jax.random.key(0), data)
  shapes = [s.params["layer"]["conv"]["kernel"].shape[2] for s in one.layer_states(state)]
  assert shapes == [1 + K, 4 + K, 5 + K]
  shown = forward_forward(
    ForwardForwardConfig(label_style="channels", goodness="mean"), K
  ).plain_view(data.image)
  for features in jit(one.features)(state, data.image):
    maps = np.asarray(features[..., -K:])
    np.testing.assert_allclose(maps, np.broadcast_to(shown[:, :1, :1, -K:], maps.shape), rtol=1e-6)
    # What the method hands on has the length that it gives it, as if there were no maps.
    square = np.mean(np.square(features[..., :-K]), axis=(1, 2, 3))
    np.testing.assert_allclose(square, 1, rtol=1e-3)


@pytest.mark.parametrize("mode", ["strict", "exact"])
def test_carried_maps_join_no_layers(mode):
  """A layer that only carries its input past itself must not pass a gradient with it."""
  look = None if mode == "strict" else lookahead.constant(1.0, mode)
  one, data = trainer(look, label_maps=K), batch()
  state = jit(one.init)(jax.random.key(0), data)
  step = jit(one.step)

  def moved(weights):
    return tuple(s.params for s in one.layer_states(step(state, data, weights)[0]))

  matrix = locality_matrix(moved, 3)
  want = np.eye(3, dtype=bool) if mode == "strict" else np.tril(np.ones((3, 3), bool))
  np.testing.assert_array_equal(matrix, want)


def test_an_input_without_maps_is_refused():
  with pytest.raises(ValueError, match="cannot end with label_maps=4 maps"):
    trainer(label_maps=4)
