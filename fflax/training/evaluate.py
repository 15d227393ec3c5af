"""One exact pass over a split: every example counts once, whatever the batch size."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fflax.training.streaming import Batches, beside
from fflax.training.trainer import Trainer
from fflax.types import Array, TrainState

Evaluate = Callable[[TrainState, Array, Array], dict[str, Array]]
Predictions = tuple[dict[str, Array], dict[str, Array]]  # of readouts and of layers, by name
_DEPTH = 2  # batches of a stream that are dispatched and not known to be done


def make_evaluate(
  trainer: Trainer,
  preprocess: Callable[[Array], Array],
  split_size: int,
  batch_size: int,
  num_classes: int,
  *,
  predictions: bool = False,
  multiple_of: int = 1,
) -> Evaluate:
  """Makes the jitted evaluation of a split; it may be vmapped over states.

  The last batch is filled up with copies of the last example, which are not counted, so the answer
  depends neither on the padding nor on the examples' order. A prediction is the class with the
  greatest score (the first of equals); an example with a NaN among its scores counts as wrong.
  Sampled answers (`samples` of the trainer) depend on both, as on any other random number.

  Args:
    trainer: gives the answers.
    preprocess: stored images `[B, ...]` (uint8) to the network's input, without augmentation.
    split_size: N, the number of examples.
    batch_size: examples at a time; bounds the memory, does not change the result.
    num_classes: K.
    predictions: also return the predicted classes.
    multiple_of: the devices that share each batch, which is filled up to as many examples.

  Returns:
    `evaluate(state, images [N, ...], labels [N]) -> dict` of scalars: "n" and, for every readout,
    "correct/<readout>" (int32) and "accuracy/<readout>" (float32, a fraction); for every layer with
    class scores "<layer>/correct" and "<layer>/accuracy". With `predictions`, also
    "prediction/<readout>" and "<layer>/prediction", `[N]` int32, -1 where a score was NaN.

  Raises:
    ValueError: a size is not positive; on tracing: scores or arrays have unexpected shapes.
  """
  batch_size = _checked_batch_size(split_size, batch_size, num_classes, multiple_of)
  num_batches = -(-split_size // batch_size)
  predict = _predictor(trainer, preprocess, batch_size, num_classes)

  @jax.jit
  def evaluate(state: TrainState, images: Array, labels: Array) -> dict[str, Array]:
    if len(images) != split_size or labels.shape != (split_size,):
      raise ValueError(
        f"the split has {len(images)} images and labels {list(labels.shape)}, not {split_size}"
      )

    def one_batch(i: Array) -> Predictions:
      rows = jnp.minimum(i * batch_size + jnp.arange(batch_size), split_size - 1)
      return predict(state, i, images[rows])

    readouts, layers = lax.map(one_batch, jnp.arange(num_batches))
    return _summary(readouts, layers, labels, predictions)

  return evaluate


def make_streamed_evaluate(
  trainer: Trainer,
  preprocess: Callable[[Array], Array],
  read: Callable[[Callable[[int], np.ndarray], int], Batches],
  labels: np.ndarray,
  batch_size: int,
  num_classes: int,
  *,
  multiple_of: int = 1,
) -> Callable[[TrainState], dict[str, Array]]:
  """The same pass over a split that is read batch by batch: the same batches, the same answer.

  Args:
    trainer: gives the answers.
    preprocess: see `make_evaluate`.
    read: `(rows, num_batches) -> images [B, ...] and labels`, the examples `rows(i)` of each batch.
    labels: `[N]` int32.
    batch_size: examples at a time.
    num_classes: K.
    multiple_of: see `make_evaluate`.

  Returns:
    `evaluate(state)`, not jitted.

  Raises:
    ValueError: see `make_evaluate`.
  """
  size = len(labels)
  batch_size = _checked_batch_size(size, batch_size, num_classes, multiple_of)
  predict = jax.jit(_predictor(trainer, preprocess, batch_size, num_classes))
  summary = jax.jit(_summary, static_argnames="predictions")

  def rows(i: int) -> np.ndarray:
    return np.minimum(i * batch_size + np.arange(batch_size), size - 1)

  def evaluate(state: TrainState) -> dict[str, Array]:
    found: list[Any] = []
    put = beside(state)
    with contextlib.closing(read(rows, -(-size // batch_size))) as batches:
      for i, (images, _) in enumerate(batches):
        found.append(predict(state, i, put(images)))
        if i >= _DEPTH:  # the host must not pile up batches that the device has not come to
          jax.block_until_ready(found[i - _DEPTH])
    readouts, layers = jax.tree.map(lambda *parts: jnp.stack(parts), *found)
    return summary(readouts, layers, labels, predictions=False)

  return evaluate


def _checked_batch_size(
  split_size: int, batch_size: int, num_classes: int, multiple_of: int
) -> int:
  """Rounded up to what the devices share out; not larger than it must be."""
  if split_size < 1 or batch_size < 1 or num_classes < 1:
    raise ValueError(
      f"split_size, batch_size and num_classes must be positive, not {split_size}, {batch_size}, "
      f"{num_classes}"
    )
  return -(-min(batch_size, split_size) // multiple_of) * multiple_of


def _predictor(
  trainer: Trainer, preprocess: Callable[[Array], Array], batch_size: int, num_classes: int
) -> Callable[[TrainState, Array | int, Array], Predictions]:
  """`(state, number of the batch, stored images [B, ...]) -> predicted classes [B]`."""

  def best(scores: Array, name: str) -> Array:
    if scores.shape != (batch_size, num_classes):
      raise ValueError(
        f"{name} scores have shape {list(scores.shape)}, expected [{batch_size}, {num_classes}]"
      )
    found = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(jnp.isnan(scores), axis=-1), -1, found)

  def predict(state: TrainState, i: Array | int, images: Array) -> Predictions:
    # Sampled answers draw anew in every batch; others do not look at the key.
    own = dataclasses.replace(state, key=jax.random.fold_in(state.key, i))
    answers = trainer.answer(own, preprocess(images))
    layers = zip(trainer.layer_names, answers.layers, strict=True)
    return (
      {name: best(scores, name) for name, scores in answers.readouts.items()},
      {name: best(scores, name) for name, scores in layers if scores is not None},
    )

  return predict


def _summary(
  readouts: dict[str, Array], layers: dict[str, Array], labels: Array, predictions: bool
) -> dict[str, Array]:
  """The results of `make_evaluate`, of predictions `[number of batches, B]`."""
  size = len(labels)

  def count(prediction: Array) -> dict[str, Array]:
    # [num_batches, batch_size] -> [N]: the padding, all of it at the end, is cut off.
    prediction = prediction.reshape(-1)[:size]
    correct = jnp.sum(prediction == labels, dtype=jnp.int32)
    found = {"correct": correct, "accuracy": correct.astype(jnp.float32) / size}
    return {**found, "prediction": prediction} if predictions else found

  results = {"n": jnp.asarray(size, jnp.int32)}
  for name, prediction in readouts.items():
    results |= {f"{what}/{name}": x for what, x in count(prediction).items()}
  for name, prediction in layers.items():
    results |= {f"{name}/{what}": x for what, x in count(prediction).items()}
  return results
