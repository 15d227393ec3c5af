"""One exact pass over a split: every example counts once, whatever the batch size."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax

from fflax.types import Array, Trainer, TrainState

Evaluate = Callable[[TrainState, Array, Array], dict[str, Array]]


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
  if split_size < 1 or batch_size < 1 or num_classes < 1:
    raise ValueError(
      f"split_size, batch_size and num_classes must be positive, not {split_size}, {batch_size}, "
      f"{num_classes}"
    )
  batch_size = -(-min(batch_size, split_size) // multiple_of) * multiple_of
  num_batches = -(-split_size // batch_size)

  def predict(scores: Array, name: str) -> Array:
    if scores.shape != (batch_size, num_classes):
      raise ValueError(
        f"{name} scores have shape {list(scores.shape)}, expected [{batch_size}, {num_classes}]"
      )
    best = jnp.argmax(scores, axis=-1).astype(jnp.int32)
    return jnp.where(jnp.any(jnp.isnan(scores), axis=-1), -1, best)

  @jax.jit
  def evaluate(state: TrainState, images: Array, labels: Array) -> dict[str, Array]:
    if len(images) != split_size or labels.shape != (split_size,):
      raise ValueError(
        f"the split has {len(images)} images and labels {list(labels.shape)}, not {split_size}"
      )

    def one_batch(i: Array) -> tuple[dict[str, Array], dict[str, Array]]:
      rows = jnp.minimum(i * batch_size + jnp.arange(batch_size), split_size - 1)
      # Sampled answers draw anew in every batch; others do not look at the key.
      own = dataclasses.replace(state, key=jax.random.fold_in(state.key, i))
      answers = trainer.answer(own, preprocess(images[rows]))
      layers = zip(trainer.layer_names, answers.layers, strict=True)
      return (
        {name: predict(scores, name) for name, scores in answers.readouts.items()},
        {name: predict(scores, name) for name, scores in layers if scores is not None},
      )

    def count(prediction: Array) -> dict[str, Array]:
      # [num_batches, batch_size] -> [N]: the padding, all of it at the end, is cut off.
      prediction = prediction.reshape(-1)[:split_size]
      correct = jnp.sum(prediction == labels, dtype=jnp.int32)
      found = {"correct": correct, "accuracy": correct.astype(jnp.float32) / split_size}
      return {**found, "prediction": prediction} if predictions else found

    readouts, layers = lax.map(one_batch, jnp.arange(num_batches))
    results = {"n": jnp.asarray(split_size, jnp.int32)}
    for name, prediction in readouts.items():
      results |= {f"{what}/{name}": x for what, x in count(prediction).items()}
    for name, prediction in layers.items():
      results |= {f"{name}/{what}": x for what, x in count(prediction).items()}
    return results

  return evaluate
