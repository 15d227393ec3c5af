"""Meshes: their axes, and what is refused. What runs on them: `tests/experiments/mesh_test.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.training.sharding import AXES, data_parallel, make_mesh, replicate, split_layers
from tests.training import tiny_layers


def test_a_mesh_has_every_axis_and_refuses_what_cannot_be():
  mesh = make_mesh()
  assert AXES == mesh.axis_names == ("sweep", "data", "layer")
  assert dict(mesh.shape) == {"sweep": 1, "data": 1, "layer": 1}
  there = jax.device_count()
  with pytest.raises(
    ValueError, match=rf"data 2 x layer {2 * there}\) asks for {4 * there} devices, "
  ):
    make_mesh(data=2, layer=2 * there)
  with pytest.raises(ValueError, match=f"but there are {there}$"):
    make_mesh(sweep=there + 1)
  with pytest.raises(ValueError, match=r"^mesh\.sweep must be at least 1, not 0$"):
    make_mesh(sweep=0)


def test_one_device_in_a_mesh_finds_what_it_finds_without():
  """The wiring alone changes no bit."""
  mesh, batch = make_mesh(), tiny_layers.batch()
  plain, own = tiny_layers.trainer(), tiny_layers.trainer(mesh=mesh)
  state = tiny_layers.jit(plain.init)(jax.random.key(0), batch)
  ends = [tiny_layers.jit(t.step)(replicate(state, mesh), batch) for t in (plain, own)]
  jax.tree.map(np.testing.assert_array_equal, *(e[0].layers for e in ends))
  assert replicate(state, None) is state
  assert jnp.array_equal(ends[0][1]["loss"], ends[1][1]["loss"])


def test_layers_keep_what_tells_them_apart():
  """Equal layers are still equal, so that one `lax.scan` still drives them."""
  network = tiny_layers.network()
  split = split_layers(network, make_mesh())
  assert [layer.spec for layer in split.layers] == [layer.spec for layer in network.layers]
  assert data_parallel(tiny_layers.trainer(), make_mesh()).locality == "strict"
