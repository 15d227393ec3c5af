"""Labels inside inputs, wrong labels, and negatives without labels.

Functions on images take one example and are vmapped by callers; the samplers take a batch, since
"permuted" is a property of a batch.
"""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from fflax.types import Array, Key


def overlay(image: Array, code: Array) -> Array:
  """Writes the label code `[K]` over the first K entries of the flattened image; shape is kept.

  Augment first and overlay after: the code's pixels must never be shifted, cropped or flipped.
  """
  flat = image.reshape(-1)
  return flat.at[: code.shape[0]].set(code.astype(flat.dtype)).reshape(image.shape)


def prepend(image: Array, code: Array) -> Array:
  """The label code `[K]` before the flattened image `[D]`: `[K + D]`, no pixel is lost."""
  return jnp.concatenate([code.astype(image.dtype), image.reshape(-1)])


def append_maps(image: Array, code: Array) -> Array:
  """The label code `[K]` as K constant maps behind the channels `[H, W, C]`: `[H, W, C + K]`.

  Every place of the image sees the label, so that convolutions and residual blocks need not carry
  it across the image.

  Raises:
    ValueError: if `image` is not `[H, W, C]`.
  """
  if image.ndim != 3:
    raise ValueError(f"label maps need an image [H, W, C], not {image.shape}")
  maps = jnp.broadcast_to(code.astype(image.dtype), (*image.shape[:2], code.shape[0]))
  return jnp.concatenate([image, maps], axis=-1)


def with_carried(x: Array, carried: Array | None) -> Array:
  """`[..., C]` with the maps `[..., K]` that a layer carries (`LayerOut.carried`) behind it."""
  return x if carried is None else jnp.concatenate([x, carried], axis=-1)


def class_patterns(key: Key, num_classes: int, shape: tuple[int, ...]) -> Array:
  """One random image of the entries -1 and 1 for each class, `[K, ...]`."""
  return jax.random.rademacher(key, (num_classes, *shape), jnp.float32)


def add_pattern(image: Array, code: Array, patterns: Array) -> Array:
  """Adds the label code's `[K]` combination of `patterns` `[K, ...]` to the image; shape is kept.

  A neutral code adds the mean of all patterns (times its value): as far from every class.
  """
  return image + jnp.tensordot(code.astype(image.dtype), patterns, axes=1)


def one_hot(label: Array, num_classes: int, value: float | Array = 1.0) -> Array:
  """`value` at `label`, zero elsewhere, `[K]`."""
  return jax.nn.one_hot(label, num_classes) * value


def neutral(num_classes: int, value: float | Array = 1.0) -> Array:
  """`value / K` everywhere: the label code that says nothing, `[K]`."""
  return jnp.full((num_classes,), 1.0 / num_classes) * value


def uniform_wrong(key: Key, label: Array, num_classes: int, class_scores: Array | None) -> Array:
  """Wrong labels `[B]`, uniform over the K - 1 others."""
  del class_scores
  offset = jax.random.randint(key, label.shape, 1, num_classes)
  return (label + offset) % num_classes


def permuted(key: Key, label: Array, num_classes: int, class_scores: Array | None) -> Array:
  """The batch's labels permuted, `[B]`.

  Keeps the true label in a fraction `sum_c p_c**2` of the rows (a tenth on MNIST), which teaches it
  as negative: here only to reproduce the code that does so.
  """
  del num_classes, class_scores
  return jax.random.permutation(key, label)


def softmax_wrong(key: Key, label: Array, num_classes: int, class_scores: Array | None) -> Array:
  """Wrong labels `[B]` in proportion to the softmax of logits `[B, K]`, the true class excluded."""
  if class_scores is None:
    raise ValueError("softmax_hard negatives need the class logits of a trained readout")
  true = jax.nn.one_hot(label, num_classes, dtype=bool)
  return jax.random.categorical(key, jnp.where(true, -jnp.inf, class_scores))


def goodness_wrong(key: Key, label: Array, num_classes: int, class_scores: Array | None) -> Array:
  """Wrong labels `[B]` in proportion to the square root of the total goodness `[B, K]`."""
  if class_scores is None:
    raise ValueError("goodness_hard negatives need the goodness of every candidate label")
  true = jax.nn.one_hot(label, num_classes, dtype=bool)
  log_weight = 0.5 * jnp.log(jnp.maximum(class_scores, 1e-30))
  return jax.random.categorical(key, jnp.where(true, -jnp.inf, log_weight))


WRONG_LABELS: Mapping[str, Callable[[Key, Array, int, Array | None], Array]] = {
  "uniform": uniform_wrong,
  "permuted": permuted,
  "permuted_once": permuted,
  "softmax_hard": softmax_wrong,
  "goodness_hard": goodness_wrong,
}


def hybrid_mask(key: Key, height: int, width: int, blurs: int = 6) -> Array:
  """A random binary mask `[H, W]` with large connected regions.

  Random bits are blurred `blurs` times with [1/4, 1/2, 1/4] along rows and columns (edge padding)
  and cut at one half (Hinton, 2022, section 3.2; the number of blurs is not in the paper).
  """

  def blur(m: Array, axis: int) -> Array:
    pad = [(1, 1) if a == axis else (0, 0) for a in range(2)]
    p = jnp.pad(m, pad, mode="edge")
    n = m.shape[axis]
    at = [jax.lax.slice_in_dim(p, i, i + n, axis=axis) for i in range(3)]
    return 0.25 * at[0] + 0.5 * at[1] + 0.25 * at[2]

  bits = jax.random.bernoulli(key, 0.5, (height, width)).astype(jnp.float32)
  return jax.lax.fori_loop(0, blurs, lambda _, m: blur(blur(m, 0), 1), bits) > 0.5


def hybrid_negatives(key: Key, image: Array, blurs: int = 6) -> Array:
  """Hybrids of pairs of images of the batch `[B, H, W, C]`: right locally, wrong globally.

  Row i is `m * image[i] + (1 - m) * image[j]`, with `j` the next row of a random cyclic order (so
  that j differs from i when B > 1) and a fresh mask m for every row.
  """
  if image.ndim != 4:
    raise ValueError(f"hybrid negatives need images [B, H, W, C], not {image.shape}")
  size, height, width, _ = image.shape
  order_key, mask_key = jax.random.split(key)
  order = jax.random.permutation(order_key, size)
  partner = jnp.zeros((size,), jnp.int32).at[order].set(jnp.roll(order, -1))
  masks = jax.vmap(lambda k: hybrid_mask(k, height, width, blurs))(jax.random.split(mask_key, size))
  return jnp.where(masks[..., None], image, image[partner])
