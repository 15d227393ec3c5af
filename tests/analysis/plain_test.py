"""Plain numerics compute the same, and count the same on every machine."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.analysis.cost import count
from fflax.analysis.plain import plain_numerics
from fflax.core.int8 import int8
from fflax.core.int8_config import INT8_PRESETS, Int8Config
from fflax.core.numerics import Numerics, bfloat16, float32

NUMBERS = ("NHWC", "HWIO", "NHWC")
ALL = {
  "float32": float32(),
  "bfloat16 in float32": bfloat16(False),
  "bfloat16": bfloat16(True),
  "int8": int8(INT8_PRESETS["int8_nearest"]),
  "int8 in float32": int8(Int8Config("nearest", grad_rounding="nearest", backend="emulate")),
}
LAYERS = {  # kernel, groups; on images of 9 x 9 x 6 with stride 2
  "dense in channels": ((3, 3, 6, 4), 1),
  "groups": ((3, 3, 3, 4), 2),
  "depthwise": ((3, 3, 1, 6), 6),
}


def loss_of(numerics: Numerics, groups: int):
  key = {"key": jax.random.key(0)} if numerics.takes_key else {}  # training, not evaluation

  def loss(w, x, v):
    z = numerics.conv_general_dilated(
      x, w, (2, 2), "SAME", dimension_numbers=NUMBERS, feature_group_count=groups, **key
    )
    flat = z.reshape(len(z), -1)
    return jnp.sum(jnp.tanh(numerics.dot_general(flat, v, (((1,), (0,)), ((), ())), **key)))

  return loss


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("layer", LAYERS)
def test_counts_do_not_depend_on_how_a_machine_multiplies(name, layer):
  """Depthwise layers too, which a CPU runs as shifted multiplications, with their gradients."""
  kernel, groups = LAYERS[layer]
  plain = plain_numerics(ALL[name])
  size = 25 * kernel[-1]
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (kernel, (2, 9, 9, 6), (size, 7))]
  counts = count(jax.grad(loss_of(plain, groups), argnums=(0, 1, 2)), *args)
  forward = 2 * (25 * np.prod(kernel) + size * 7)
  kind = name.split()[0]
  assert counts.by("macs", "phase", "dtype") == {
    ("backward", kind): 2 * forward,
    ("forward", kind): forward,
  }
  assert counts.by("macs", "kind").keys() == {("int8" if kind == "int8" else "real",)}
  # Without the image's gradient, as in a strict step, it is not counted.
  local = count(jax.grad(loss_of(plain, groups), argnums=(0, 2)), *args)
  assert local.total("macs") == 3 * forward - 2 * 25 * np.prod(kernel)


@pytest.mark.parametrize("name", ["float32", "int8"])
@pytest.mark.parametrize("layer", LAYERS)
def test_they_compute_the_same(name, layer):
  kernel, groups = LAYERS[layer]
  rng = np.random.default_rng(0)
  shapes = (kernel, (2, 9, 9, 6), (25 * kernel[-1], 7))
  args = [jnp.asarray(rng.normal(size=s) / 9, jnp.float32) for s in shapes]
  own, plain = (
    jax.jit(jax.value_and_grad(loss_of(n, groups), argnums=(0, 1, 2)))(*args)
    for n in (ALL[name], plain_numerics(ALL[name]))
  )
  for a, b in zip(jax.tree.leaves(own), jax.tree.leaves(plain), strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    assert np.abs(np.asarray(a)).max() > 1e-3


def test_settings_stay_and_compare():
  for numerics in ALL.values():
    plain = plain_numerics(numerics)
    assert plain == plain_numerics(numerics)
    assert hash(plain) == hash(plain_numerics(numerics))
    assert plain.name == numerics.name
  rival = int8(INT8_PRESETS["int8_ui8"], name="int8_ui8")
  plain = plain_numerics(rival)
  assert plain.gradient_state is rival.gradient_state and plain.takes_key
  # Counted as on integer units, whichever units are fast on this machine.
  config = dataclasses.replace(rival.dot_general.config, backend="int8")
  assert plain.dot_general.config == config
  foreign = Numerics("foreign", jax.lax.dot_general, jax.lax.conv_general_dilated)
  assert plain_numerics(foreign) is foreign
