"""The evaluation pass against a plain loop over single examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.training.evaluate import make_evaluate
from fflax.types import Answers
from tests.training import toy


@pytest.fixture(scope="module")
def trainer():
  return toy.make_trainer()


@pytest.fixture(scope="module")
def state(trainer):
  return toy.make_state(trainer)


def predictions_by_hand(state) -> dict[str, list[int]]:
  """One example after the other, in float64 numpy."""
  images, _ = toy.make_data()
  kernels = [np.float64(s.params["layer"]["kernel"]) for s in state.layers]
  found = {"sum": [], "high": []}
  for image in np.asarray(images):
    x = (image.astype(np.float64) / 255 - 0.4).reshape(-1)
    found["sum"].append(int(np.argmax(x @ kernels[0] + x @ kernels[1])))
    found["high"].append(int(np.argmax(x @ kernels[1])))
  return found


def evaluate(trainer, state, images, labels, batch_size, **options):
  evaluate = make_evaluate(
    trainer, toy.preprocess, len(images), batch_size, toy.NUM_CLASSES, **options
  )
  return evaluate(state, images, labels)


@pytest.mark.parametrize("batch_size", [1, 7, 52, 53, 1000])
def test_equals_a_plain_loop(trainer, state, batch_size):
  """A last batch counted twice, or left out, shifts every published number a little."""
  images, labels = toy.make_data()
  expected = predictions_by_hand(state)
  found = evaluate(trainer, state, images, labels, batch_size, predictions=True)
  np.testing.assert_array_equal(found["prediction/sum"], expected["sum"])
  np.testing.assert_array_equal(found["high/prediction"], expected["high"])
  for readout, name in (("sum", "{}/sum"), ("high", "high/{}")):
    correct = int(np.sum(np.array(expected[readout]) == np.asarray(labels)))
    assert 0 < correct < len(labels)
    assert int(found[name.format("correct")]) == correct
    assert float(found[name.format("accuracy")]) == pytest.approx(correct / 53, rel=1e-6)
  assert int(found["n"]) == 53
  # Layer "low" has no class scores, so it is left out.
  assert set(found) == {
    "n", "correct/sum", "accuracy/sum", "prediction/sum",
    "high/correct", "high/accuracy", "high/prediction",
  }  # fmt: skip


def test_order_does_not_matter(trainer, state):
  images, labels = toy.make_data()
  order = np.random.default_rng(1).permutation(len(labels))
  found = evaluate(trainer, state, images, labels, 10)
  shuffled = evaluate(trainer, state, images[order], labels[order], 10)
  assert {n: float(x) for n, x in found.items()} == {n: float(x) for n, x in shuffled.items()}


def test_nan_scores_are_wrong(trainer, state):
  """argmax takes NaN for the maximum: a broken network would score the share of class 0."""
  broken = trainer._replace(
    answer=lambda s, image: Answers({"r": jnp.full((len(image), 3), jnp.nan)}, (None, None))
  )
  images, labels = toy.make_data()
  found = evaluate(broken, state, images, labels, 10, predictions=True)
  assert int(found["correct/r"]) == 0
  assert set(np.asarray(found["prediction/r"])) == {-1}


def test_over_seeds(trainer, state):
  images, labels = toy.make_data()
  states = [state, toy.make_state(trainer, seed=1)]
  stacked = jax.tree.map(lambda *x: jnp.stack(x), *states)
  one = make_evaluate(trainer, toy.preprocess, len(images), 10, toy.NUM_CLASSES)
  both = jax.vmap(one, in_axes=(0, None, None))(stacked, images, labels)
  alone = [int(one(s, images, labels)["correct/sum"]) for s in states]
  assert both["correct/sum"].tolist() == alone
  assert alone[0] != alone[1]


@pytest.mark.parametrize("sizes", [(0, 1, 1), (1, 0, 1), (1, 1, 0)])
def test_refuses_sizes(trainer, sizes):
  with pytest.raises(ValueError, match="must be positive, not"):
    make_evaluate(trainer, toy.preprocess, *sizes)


def test_refuses_other_splits_and_scores(trainer, state):
  """An evaluation made for one split must not silently score the beginning of another."""
  images, labels = toy.make_data()
  made = make_evaluate(trainer, toy.preprocess, len(images), 10, toy.NUM_CLASSES)
  with pytest.raises(ValueError, match="52 images"):
    made(state, images[1:], labels[1:])
  wrong = make_evaluate(trainer, toy.preprocess, len(images), 10, toy.NUM_CLASSES + 1)
  with pytest.raises(ValueError, match=r"sum scores have shape \[10, 3\], expected \[10, 4\]"):
    wrong(state, images, labels)
