"""The traced step of every registered method costs its closed form, and no product more."""

import functools

import jax
import jax.numpy as jnp
import optax
import pytest

from fflax.analysis.closed_form import RULES, expected_prediction_macs, expected_training_macs
from fflax.analysis.cost import count
from fflax.analysis.plain import plain_numerics
from fflax.core.numerics_registry import NUMERICS
from fflax.core.readouts import ReadoutConfig, make_readout
from fflax.methods.registry import METHODS, make_method
from fflax.networks.registry import make_network
from fflax.training import lookahead
from fflax.training.schedules import make_schedule
from fflax.training.step import make_trainer
from fflax.types import Batch

K = 10
MLP = dict(sizes=(1000, 1000, 10))
DENSE = (784_000, 1_000_000, 10_000)


def products(name: str):
  """The library's own, but for int8, whose units depend on the machine."""
  return plain_numerics(NUMERICS[name]()) if name == "int8" else NUMERICS[name]()


@functools.cache
def traced(method, network, image, batch=3, readouts=("score_sum",), **options):
  """Counts of one step (`options`: prefixed by whom they go to) and of one prediction."""
  of = lambda who: {k[len(who) :]: v for k, v in options.items() if k.startswith(who)}  # noqa: E731
  trainer = make_trainer(
    make_network(network, numerics=products(options.get("numerics", "float32")), **of("net_")),
    make_method(method, METHODS[method].config(**of("method_")), K),
    [make_readout(name, ReadoutConfig(), K) for name in readouts],
    image_shape=image,
    optimizer=optax.adam(1e-3),
    schedule=options.get("schedule"),
    lookahead=options.get("lookahead"),
    stack=options.get("stack"),
  )
  example = Batch(
    jax.ShapeDtypeStruct((batch, *image), jnp.float32), jax.ShapeDtypeStruct((batch,), jnp.int32)
  )
  state = jax.eval_shape(trainer.init, jax.random.key(0), example)
  step = count(lambda s, b: trainer.step(s, b)[0], state, example)
  answer = count(lambda s, x: trainer.answer(s, x).readouts[readouts[0]], state, example.image)
  return step, answer


def agrees(step, want, batch=3):
  assert step.by("macs", "phase") == {
    ("backward",): batch * want.backward,
    ("forward",): batch * want.forward,
  }


def head(width: int) -> int:
  return width * K


@pytest.mark.parametrize("numerics", ["float32", "bfloat16", "int8"])
def test_the_example_of_784_1000_1000_10_at_batch_10(numerics):
  """17.94 M forward; 46.0 backprop, 71.8 Forward-Forward, 92.0 with exact look-ahead."""
  case = functools.partial(traced, network="mlp", image=(28, 28, 1), batch=10, numerics=numerics)
  local, answer = case("forward_forward", net_sizes=(1000, 1000, 10))
  agrees(local, expected_training_macs("forward_forward", DENSE), 10)
  assert local.total("macs") == 71_760_000
  assert answer.total("macs") == 10 * expected_prediction_macs(DENSE, passes=K) == 10 * 17_940_000
  control, answer = case("backprop", net_sizes=(1000, 1000))
  agrees(control, expected_training_macs("backprop", DENSE[:2], head(1000)), 10)
  assert control.total("macs") == 45_980_000
  assert answer.total("macs") == 10 * expected_prediction_macs(DENSE[:2], head(1000)) == 17_940_000
  exact, _ = case("forward_forward", net_sizes=(1000, 1000, 10), lookahead=lookahead.constant(0.5))
  agrees(exact, expected_training_macs("forward_forward", DENSE, lookahead=True), 10)
  assert exact.total("macs") == 91_960_000
  if numerics == "int8":
    assert exact.total("macs", kind="int8", dtype="int8") == 91_960_000


def test_every_registered_method_has_a_rule():
  assert set(METHODS) - set(RULES) == {"recurrent", "dtg_mlp"}  # see the docstring of RULES


NINE = dict(network="mlp", image=(4, 4, 1), net_sizes=(24,) * 9)
NINE_MACS = (16 * 24, *((24 * 24,) * 8))


@pytest.mark.parametrize("stack", [True, False])
def test_strict_methods_have_no_gradient_between_layers(stack):
  """Stacked layers run in one scan under a conditional that is always taken."""
  step, _ = traced("forward_forward", stack=stack, **NINE)
  agrees(step, expected_training_macs("forward_forward", NINE_MACS))
  step, _ = traced("hyperspherical", stack=stack, **NINE)
  agrees(step, expected_training_macs("hyperspherical", NINE_MACS, 9 * head(24)))


def test_local_losses_have_trained_or_fixed_heads():
  step, answer = traced("local_losses", **NINE)
  agrees(step, expected_training_macs("local_losses", NINE_MACS, 9 * head(24)))
  assert answer.total("macs") == 3 * expected_prediction_macs(NINE_MACS, 9 * head(24))
  step, _ = traced("dtg", **NINE)
  agrees(step, expected_training_macs("dtg", NINE_MACS, fixed=9 * head(24)))


def test_collaborating_layers_run_forward_once_before():
  step, _ = traced("collaborative", stack=False, **NINE)
  agrees(step, expected_training_macs("collaborative", NINE_MACS))
  assert expected_training_macs("collaborative", NINE_MACS).forward == 4 * sum(NINE_MACS)


def test_backprop_with_all_heads():
  step, _ = traced("backprop", method_heads="all", **NINE)
  agrees(step, expected_training_macs("backprop", NINE_MACS, 9 * head(24)))


def test_schedules_count_as_if_every_layer_learned():
  step, _ = traced(
    "forward_forward", schedule=make_schedule("greedy", num_layers=9, epochs_per_layer=5), **NINE
  )
  agrees(step, expected_training_macs("forward_forward", NINE_MACS))
  assert step.notes == ("conditionals count as their dearest branch",)


def test_trained_readouts_and_hard_negatives():
  step, answer = traced("forward_forward", readouts=("softmax_head", "score_sum"), **NINE)
  want = expected_training_macs(
    "forward_forward", NINE_MACS, neutral_passes=1, detached_heads=9 * head(24)
  )
  agrees(step, want)
  assert answer.total("macs") == 3 * expected_prediction_macs(NINE_MACS, 9 * head(24))
  step, _ = traced("forward_forward", method_negatives="goodness_hard", **NINE)
  agrees(step, expected_training_macs("forward_forward", NINE_MACS, neutral_passes=K))


def test_a_convolutional_network_with_trained_heads_and_fixed_pooling():
  """small_cnn on 12x12: maps of 12, 6 and 3, an auxiliary convolution each, pooled to 2x2."""
  net = dict(network="small_cnn", image=(12, 12, 1))
  step, answer = traced("hyperspherical", method_aux_features=8, method_aux_pool=2, **net)
  local, _ = traced("forward_forward", **net)
  network = make_network("small_cnn", numerics=NUMERICS["float32"]())
  layers, heads, pooling = [], 0, 0
  shape = (12, 12, 1)
  for layer in network.layers:
    x = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    params, stats = jax.eval_shape(layer.init, jax.random.key(0), x)
    out, _ = jax.eval_shape(functools.partial(layer.apply, train=False), params, stats, x)
    kernel = next(a for a in jax.tree.leaves(params) if a.ndim in (2, 4))
    if out.out.ndim == 4:
      _, height, width, channels = out.pre.shape
      layers.append(height * width * kernel.size)
      _, height, width, channels = out.out.shape
      heads += height * width * 9 * channels * 8 + 2 * 2 * 8 * K
      pooling += height * width * 8 * 2 + 2 * width * 8 * 2
    else:
      layers.append(kernel.size)
      heads += out.out.shape[-1] * K
    shape = out.out.shape[1:]
  agrees(step, expected_training_macs("hyperspherical", layers, heads, fixed=pooling))
  agrees(local, expected_training_macs("forward_forward", layers))
  assert answer.total("macs") == 3 * expected_prediction_macs(layers, heads + pooling)


def test_unknown_methods_are_refused():
  with pytest.raises(ValueError, match="no closed form for method 'magic'"):
    expected_training_macs("magic", (1,))
