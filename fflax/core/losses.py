"""Local losses. All are elementwise over leading axes unless said otherwise; callers take means.

Names: `g_pos`, `g_neg` goodness of the positive and negative view, `theta` threshold, `scores`
`[K]` class scores of one example.
"""

from collections.abc import Sequence

import chex
import jax
import jax.numpy as jnp
import optax

from fflax.types import Array


def logistic_loss(
  g_pos: Array, g_neg: Array, theta: float, temperature: float = 1.0, maximize: bool = True
) -> Array:
  """`(softplus(-z_pos) + softplus(z_neg)) / 2`, `z = +-(g - theta) / temperature`.

  The probability that an example is positive is `sigmoid(z)` (Hinton, 2022, eq. 1); the loss is the
  binary cross-entropy over the concatenated positive and negative rows. `maximize=False` gives the
  min-goodness variant.

  Example:
    Without any difference between the views it is log 2; with one, it falls.
    >>> [round(float(logistic_loss(g, -g, theta=0.0)), 3) for g in (0.0, 1.0, 4.0)]
    [0.693, 0.313, 0.018]
  """
  sign = 1.0 if maximize else -1.0
  z_pos = sign * (g_pos - theta) / temperature
  z_neg = sign * (g_neg - theta) / temperature
  return 0.5 * (jax.nn.softplus(-z_pos) + jax.nn.softplus(z_neg))


def symba_loss(g_pos: Array, g_neg: Array, alpha: float = 4.0) -> Array:
  """`softplus(-alpha (g_pos - g_neg))`: no threshold, pairs share the image (arXiv 2303.08418)."""
  return jax.nn.softplus(-alpha * (g_pos - g_neg))


def swish_loss(g_pos: Array, g_neg: Array, alpha: float = 6.0) -> Array:
  """`silu(-alpha (g_pos - g_neg))`; its minimum is -0.2785, so negative losses are correct."""
  return jax.nn.silu(-alpha * (g_pos - g_neg))


def peer_update(mean_activity: Array, h_pos: Array, momentum: float = 0.9) -> Array:
  """The running mean activity `[D]` of every unit, from positive activities `[B, D]`."""
  chex.assert_rank([mean_activity, h_pos], [1, 2])
  return momentum * mean_activity + (1.0 - momentum) * jnp.mean(h_pos, axis=0)


def peer_signal_loss(mean_activity: Array, pre_pos: Array, strength: float) -> Array:
  """A loss of value zero whose descent direction adds `strength * (mean(mu) - mu_j)` to every unit.

  The original (Matlab) form of peer normalisation: the signal is added to `(1 - p) h` of the
  positive pass and is not gated by `h > 0`, so that it reaches dead units.

  Args:
    mean_activity: `[D]`, already updated with this batch.
    pre_pos: `[B, D]` pre-activations of the positive view.
    strength: 0.03 in the Matlab code.

  Returns:
    A scalar; only its gradient with respect to `pre_pos` means something.
  """
  chex.assert_rank([mean_activity, pre_pos], [1, 2])
  signal = jax.lax.stop_gradient(strength * (jnp.mean(mean_activity) - mean_activity))
  push = jnp.mean(pre_pos @ signal)
  return jax.lax.stop_gradient(push) - push


def peer_variance_loss(mean_activity: Array, strength: float) -> Array:
  """`strength * mean_j (mean(mu) - mu_j)**2`, the loss form of popular code.

  At equal `strength` it is weaker than `peer_signal_loss` by `D / (2 (1 - momentum))`, 5000 at
  D = 1000: the gradient passes only through this batch's share of the running mean.
  """
  return strength * jnp.mean(jnp.square(jnp.mean(mean_activity) - mean_activity))


def margin_cross_entropy(scores: Array, label: Array, scale: float, margin: float = 0.0) -> Array:
  """Softmax cross-entropy of `scale * (scores - margin [c = label])`, for one example `[K]`.

  Equals `log(1 + sum_{c != y} exp(scale (S_c - S_y + margin)))`: the smooth margin loss.
  """
  chex.assert_rank([scores, label], [1, 0])
  onehot = jax.nn.one_hot(label, scores.shape[-1], dtype=scores.dtype)
  return optax.softmax_cross_entropy_with_integer_labels(scale * (scores - margin * onehot), label)


def hard_margin_loss(scores: Array, label: Array, margin: float) -> Array:
  """`relu(margin - S_y + max_{c != y} S_c)` for one example `[K]`: the limit of a large scale."""
  chex.assert_rank([scores, label], [1, 0])
  own = scores[label]
  other = jnp.max(jnp.where(jnp.arange(scores.shape[-1]) == label, -jnp.inf, scores))
  return jax.nn.relu(margin - own + other)


def cross_entropy(logits: Array, label: Array, smoothing: float = 0.0) -> Array:
  """Softmax cross-entropy of `[..., K]` logits with optional label smoothing, float32 `[...]`."""
  logits = logits.astype(jnp.float32)
  target = optax.smooth_labels(jax.nn.one_hot(label, logits.shape[-1]), smoothing)
  return optax.softmax_cross_entropy(logits, target)


def clamped_competitive_loss(goodness: Array, label: Array) -> Array:
  """`-log((e^clip(G_y) + 1e-9) / (sum_j e^clip(G_j) + 1e-9))` of one example `[J]`, clip at +-50.

  The second form in the released code of channel-wise FF; the first is `cross_entropy` of G.
  """
  chex.assert_rank([goodness, label], [1, 0])
  powers = jnp.exp(jnp.clip(goodness.astype(jnp.float32), -50.0, 50.0))
  return jnp.log(jnp.sum(powers) + 1e-9) - jnp.log(powers[label] + 1e-9)


def among(scores: Array, classes: Sequence[int]) -> Array:
  """`[..., K]` scores with -1e9 in the place of classes that are not in `classes`; () is all.

  Left-out classes never win, and get exactly no gradient: the class mask of growing class sets.
  """
  if not len(classes):
    return scores
  here = jnp.zeros(scores.shape[-1], bool).at[jnp.asarray(classes)].set(True)
  return jnp.where(jnp.broadcast_to(here, scores.shape), scores, -1e9)


def check_classes(classes: Sequence[int], num_classes: int | None = None) -> None:
  """Raises ValueError unless `classes` is empty or two or more different classes (below K)."""
  known = all(isinstance(c, int) and 0 <= c < (num_classes or c + 1) for c in classes)
  if classes and not (known and len(classes) == len(set(classes)) > 1):
    below = "" if num_classes is None else f" below {num_classes}"
    raise ValueError(
      f"loss_classes must be none or at least two different classes{below}, not {tuple(classes)}"
    )
