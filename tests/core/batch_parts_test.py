"""Parts of a batch: how many, in which order, and what moves between devices."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from fflax.core.batch_parts import map_parts, number_of_parts, sum_parts


@pytest.mark.parametrize(
  ("batch", "wanted", "parts"),
  [
    (128, 8.0, 16),
    (128, 10.0, 16),
    (128, 1.6, 64),  # parts of two: eight would be too many
    (128, 4.0, 16),  # multiples of eight from here on
    (100, 6.0, 20),
    (97, 8.0, 97),
    (97, 40.0, 1),
    (12, 0.1, 12),
    (1, 8.0, 1),
    (0, 8.0, 1),
  ],
)
def test_the_divisor_nearest_to_what_is_wanted(batch, wanted, parts):
  assert number_of_parts(batch, wanted) == parts


@pytest.mark.parametrize("parts", [1, 2, 6])
def test_images_stay_in_their_order(parts):
  """Several arguments of several shapes, each image with its own partner."""
  x, y = np.arange(24.0, dtype=np.float32).reshape(6, 4), np.arange(6.0, dtype=np.float32) ** 2
  together = jax.jit(lambda x, y: map_parts(lambda x, y: x * y[:, None], parts, x, y))(x, y)
  np.testing.assert_array_equal(together, x * y[:, None])
  total = jax.jit(lambda x, y: sum_parts(lambda x, y: x.T @ y, parts, x, y))(x, y)
  np.testing.assert_array_equal(total, x.T @ y)


def test_a_part_holds_every_nth_image():
  first = jax.jit(lambda x: map_parts(lambda part: 0 * part + part[:1], 3, x))
  np.testing.assert_array_equal(first(np.arange(12.0)), np.tile([0.0, 1.0, 2.0], 4))


SPLIT = """
import re
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from fflax.core.float_conv import FloatConv
mesh = jax.make_mesh((8,), ("data",))
split, whole = (NamedSharding(mesh, PartitionSpec(*p)) for p in (("data",), ()))
conv = FloatConv((1, 1), ((1, 1), (1, 1)))
x, w = jnp.ones((128, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
step = jax.jit(conv.forward, in_shardings=(split, whole), out_shardings=split)
text = step.lower(x, w).compile().as_text()
assert " convolution(" not in text and " while(" in text
print(len(re.findall("all-gather|all-to-all|collective-permute", text)))
"""


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="only CPUs work part by part")
def test_no_image_moves_between_devices():
  """Eight devices share a batch whose parts hold eight images: Winograd's tiles of 64 channels."""
  flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
  done = subprocess.run(
    [sys.executable, "-c", SPLIT],
    env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["0"]
