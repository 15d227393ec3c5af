"""From a configuration to a run's parts: what is refused, and who learns at which rate when."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.assembly import (
  build,
  check,
  count_parameters,
  make_plan,
  prove_locality,
  trainer_parts,
)
from experiments.config import ExperimentConfig, from_mapping
from fflax.data import sources
from fflax.data.dataset import Dataset, Split

GREEDY = {"schedule": "greedy", "networks": {"mlp": {"sizes": (4, 4, 4)}}}


def tiny(*shape: int) -> Dataset:
  rng = np.random.default_rng(0)
  if len(shape) == 1:
    images = rng.random((20, *shape), np.float32)
  else:
    images = rng.integers(0, 255, (20, *shape), np.uint8)
  split = Split(images, np.arange(20, dtype=np.int32) % 3)
  return Dataset("tiny", split, None, split, 3, 1.0 if len(shape) == 1 else 255)


@pytest.mark.parametrize(
  ("augment", "shape", "word"),
  [
    ({"flip": True}, (5,), "augmentation needs images"),
    ({"shift": 8}, (8, 8, 1), "shift 8"),
    ({"saturation": 0.5}, (8, 8, 1), "saturation needs 3 channels"),
  ],
)
def test_augmentations_that_do_not_fit_are_refused_before_the_run(augment, shape, word):
  """Found only when the first step is traced, they would leave a folder and a traceback."""
  values = {"networks": {"mlp": {"sizes": (4,)}}, "data": {"augment": augment, "batch_size": 10}}
  with pytest.raises(ValueError, match=word) as error:
    build(from_mapping(values), tiny(*shape))
  assert "\n" not in str(error.value)  # where `match` also reads the notes that JAX adds


@pytest.mark.parametrize(
  ("maps", "method", "options", "word"),
  [
    (1, "hyperspherical", {}, "method 'hyperspherical' writes none behind the image"),
    (3, "forward_forward", {"label_style": "overlay"}, "writes none behind the image"),
    (3, "forward_forward", {"supervision": "hybrid"}, "writes none behind the image"),
    (2, "forward_forward", {}, "label_maps=2, but there are 3 classes"),
  ],
)
def test_layers_carry_no_maps_but_those_of_all_labels(maps, method, options, word):
  """They would carry blue, or two of three classes."""
  if method == "forward_forward":
    options = {"label_style": "channels", "goodness": "mean", **options}
  values = {
    "network": "small_cnn",
    "networks": {"small_cnn": {"channels": (4,), "pool_after": (), "label_maps": maps}},
    "method": method,
    "methods": {method: options},
    "data": {"batch_size": 10},
  }
  with pytest.raises(ValueError, match=word):
    build(from_mapping(values), tiny(8, 8, 3))


def test_every_option_of_a_source_can_be_set_and_unset_ones_are_not_passed(monkeypatch):
  seen = []

  def load(name, **options):
    seen.append(options)
    return tiny(4, 4, 1)

  monkeypatch.setattr(sources, "load", load)
  given = {
    "train_split": "train[:80%]",
    "validation_split": "train[80%:]",
    "test_split": "validation",
    "image_size": 32,
    "num_classes": 12,
  }
  for options in ({}, given):
    build(
      from_mapping({"networks": {"mlp": {"sizes": (4,)}}, "data": {"batch_size": 5, **options}})
    )
  usual = {"data_dir": None, "validation": 0, "seed": 0}
  assert seen == [usual, usual | given]


def test_an_option_that_the_source_does_not_have_is_refused():
  with pytest.raises(ValueError, match="'digits' has no option 'image_size'"):
    build(from_mapping({"data": {"image_size": 16}}))


@pytest.mark.parametrize(
  ("epochs", "per_layer", "expected"), [(7, 0, 2), (6, 0, 2), (3, 0, 1), (7, 3, 3), (9, 1, 1)]
)
def test_greedy_divides_the_epochs_among_the_layers(epochs, per_layer, expected):
  """Turns of one epoch by default would leave nearly all of a long run to the last layer."""
  config = from_mapping({**GREEDY, "epochs": epochs, "epochs_per_layer": per_layer})
  check(config)
  active = trainer_parts(config, 10, 5)["schedule"].active
  first = [int(np.argmax(active(jnp.asarray(step), 3))) for step in range(epochs * 5)]
  assert [first.count(layer) for layer in (0, 1)] == [expected * 5, expected * 5]
  assert first.count(2) == (epochs - 2 * expected) * 5 > 0


@pytest.mark.parametrize(("epochs", "per_layer"), [(2, 0), (2, 1), (6, 3), (5, 3)])
def test_greedy_refuses_a_run_that_ends_before_the_last_layer(epochs, per_layer):
  config = from_mapping({**GREEDY, "epochs": epochs, "epochs_per_layer": per_layer})
  with pytest.raises(ValueError, match="^[^\n]*last of 3 layers[^\n]*$"):
    check(config)


@pytest.mark.parametrize("schedule", ["greedy", "simultaneous"])
def test_rates_end_when_the_layers_turn_ends(schedule):
  """Over the whole run's length, greedy layers would stop at a third of their schedule."""
  cosine = {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0, "schedule": "cosine"}
  config = from_mapping(
    {
      **GREEDY,
      "schedule": schedule,
      "epochs": 6,
      "epochs_per_layer": 2,
      "optimizer": cosine,
      "readout_optimizer": cosine,
    }
  )
  parts = trainer_parts(config, 10, 5)

  def last_step_with_a_rate(name: str) -> int:
    params = {"kernel": jnp.ones(())}
    state, moved = parts[name].init(params), []
    for step in range(30):
      updates, state = parts[name].update({"kernel": jnp.ones(())}, state, params)
      if abs(float(updates["kernel"])) > 1e-6:
        moved.append(step)
    return moved[-1]

  assert last_step_with_a_rate("optimizer") == (9 if schedule == "greedy" else 29)
  assert last_step_with_a_rate("readout_optimizer") == 29


def test_layers_and_readouts_that_share_a_gradient_accumulate_alike():
  """Else the readout would move k times under the gradient that the layers take once."""
  values = {"method": "dtg_mlp", "readouts": ("norm_head",), "optimizer": {"accumulate": 2}}
  with pytest.raises(ValueError, match="optimizer.accumulate 2 and readout_optimizer.accumulate 1"):
    check(from_mapping(values))
  check(from_mapping({**values, "readout_optimizer": {"accumulate": 2}}))
  strict = {"methods": {"dtg_mlp": {"end_to_end": False}}}
  check(from_mapping({**values, **strict}))


def test_locality_is_proved_under_greedy_with_warm_up():
  """The proof takes one step an epoch; a warm-up must still fit into a layer's turn."""
  values = {
    **GREEDY,
    "epochs": 9,
    "optimizer": {"schedule": "cosine", "warmup_epochs": 2},
    "data": {"batch_size": 10},
  }
  matrix = prove_locality(build(from_mapping(values), tiny(4, 4, 1)), size=4)
  np.testing.assert_array_equal(matrix, np.eye(3, dtype=bool))


def test_locality_of_a_run_that_looks_ahead():
  """Its lambda is zero in the first epoch, where nothing would seem to reach down."""
  values = {"networks": {"mlp": {"sizes": (4, 4, 4)}}, "lookahead": {"mode": "exact"}}
  experiment = build(from_mapping({**values, "data": {"batch_size": 10}}), tiny(4, 4, 1))
  assert experiment.trainer.locality == "lookahead"
  matrix = prove_locality(experiment, size=4)
  np.testing.assert_array_equal(matrix, np.tril(np.ones((3, 3), bool)))


@pytest.mark.parametrize(
  "more",
  [
    {},
    {"lookahead": {"mode": "exact"}},
    pytest.param({"method": "backprop"}, marks=pytest.mark.slow),
  ],
)
def test_weights_at_rest_are_int8_under_any_driver(more):
  """One flag: what is kept, checkpointed and moved between devices is a quarter of the size."""
  values = {"networks": {"mlp": {"sizes": (4, 4)}}, "weight_store": "int8"}
  more = {**more, "data": {"batch_size": 10}}
  experiment = build(from_mapping({**values, **more}), tiny(4, 4, 1))
  state = jax.jit(experiment.init)()
  new, metrics = jax.jit(experiment.trainer.step)(state, experiment.example(4))
  floats = build(from_mapping({**values, **more, "weight_store": "float32"}), tiny(4, 4, 1))
  assert count_parameters(state) == count_parameters(jax.eval_shape(floats.init))
  for s in (state, new):
    kernels = [layer.params["layer"]["dense"]["kernel"] for layer in s.layers]
    assert {k.values.dtype for k in kernels} == {jnp.dtype("int8")}
  assert np.isfinite(metrics["loss"]).all()


def test_plans_log_at_whole_fractions_of_the_evaluation_period():
  for steps_per_epoch in (1, 7, 40, 500):
    for eval_every in (1, 4, 5):
      config = ExperimentConfig(eval_every=eval_every, epochs=20)
      plan = make_plan(config, steps_per_epoch)
      assert plan.eval_every % plan.log_every == 0
      assert plan.log_every == steps_per_epoch or plan.log_every <= 100
