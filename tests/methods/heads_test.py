"""Heads multiply as the network does: what is called an int8 run has no float32 product left.

But for heads of squares: float32 in DTG-FF, and so all along the ladder that starts there.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fflax.analysis.cost import count
from fflax.analysis.plain import plain_numerics
from fflax.core import readouts
from fflax.core.numerics import GRADIENT_STATE
from fflax.core.numerics_registry import NUMERICS
from fflax.methods.registry import METHODS, make_method
from fflax.networks.registry import make_network
from fflax.training.optimizers import for_numerics
from fflax.training.step import make_trainer
from fflax.types import Batch
from tests.training.tiny_layers import jit


def make(method, numerics, **options):
  config = METHODS[method].config(**options)
  return make_trainer(
    make_network("small_cnn", numerics=numerics, channels=(3, 4), pool_after=(1,)),
    make_method(method, config, 3, numerics),
    [readouts.score_sum()],
    image_shape=(6, 6, 1),
    optimizer=for_numerics(optax.adam(1e-3), numerics),
  )


def batch() -> Batch:
  rng = np.random.default_rng(0)
  image = jnp.asarray(rng.normal(size=(8, 6, 6, 1)), jnp.float32)
  return Batch(image, jnp.arange(8, dtype=jnp.int32) % 3)


@pytest.mark.parametrize(
  ("method", "options", "share"),
  [
    ("backprop", {"heads": "all"}, 0.0),
    # Average pooling and cosines with the prototypes; a float head would be a third of all.
    ("hyperspherical", {"aux_features": 4, "aux_pool": 1}, 0.03),
    # The similarities of a batch: much beside three channels.
    ("local_losses", {"loss": "predsim"}, 0.2),
  ],
)
def test_products_of_an_int8_run_are_int8(method, options, share):
  trainer = make(method, plain_numerics(NUMERICS["int8"]()), **options)
  state = jax.eval_shape(trainer.init, jax.random.key(0), batch())
  counts = count(lambda s, b: trainer.step(s, b)[0], state, batch())
  exact = counts.total("macs", dtype="int8")
  assert exact > 0
  assert counts.total("macs") - exact <= share * exact


def states_of(params) -> list:
  flat = jax.tree_util.tree_leaves_with_path(params)
  return [leaf for path, leaf in flat if getattr(path[-1], "key", None) == GRADIENT_STATE]


@pytest.mark.parametrize(
  ("method", "options", "products", "numerics"),
  [
    ("backprop", {}, 3, "int8_ui8"),  # two layers, one head
    ("hyperspherical", {}, 4, "int8_dai8"),
    *(
      pytest.param(method, {}, products, numerics, marks=pytest.mark.slow)
      for method, products, numerics in (
        ("backprop", 3, "int8_dai8"),
        ("backprop", 3, "int8_gdai8_approximation"),
        ("hyperspherical", 4, "int8_ui8"),
        ("hyperspherical", 4, "int8_gdai8_approximation"),
      )
    ),
    ("local_losses", {"head": "fixed"}, 4, "int8_ui8"),
    ("local_losses", {"features": "goodness"}, 2, "int8_ui8"),  # float32 heads of squares
  ],
)
def test_rivals_carry_a_state_for_every_product(method, options, products, numerics):
  """A state that is not written back would be searched for once and then stand still."""
  trainer = make(method, NUMERICS[numerics](), **options)
  state = jit(trainer.init)(jax.random.key(0), batch())
  new, metrics = jit(trainer.step)(state, batch())
  assert np.isfinite(metrics["loss"]).all()
  before, after = (states_of([s.params for s in t.layers]) for t in (state, new))
  assert len(before) == products
  for a, b in zip(before, after, strict=True):
    assert not np.array_equal(a, b)
    assert np.isfinite(b).all()
  kernels = [
    not np.array_equal(a, b)
    for a, b in zip(
      *(jax.tree.leaves([s.params for s in t.layers]) for t in (state, new)), strict=True
    )
  ]
  assert all(kernels)


def test_sums_too_long_for_int32_are_refused_before_any_work():
  """They would wrap, silently."""
  numerics = NUMERICS["int8"]()
  with pytest.raises(ValueError, match="over 140000 elements could overflow int32"):
    make_trainer(
      make_network("mlp", numerics=numerics, sizes=(4,)),
      make_method("backprop", METHODS["backprop"].config(), 3, numerics),
      [readouts.score_sum()],
      image_shape=(140_000,),
      optimizer=optax.sgd(0.1),
    )
