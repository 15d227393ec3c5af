"""Labels in inputs, negatives and their frequencies (bounds are 4 standard deviations)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.core import labels

CLASSES = 10
DRAWS = 40_000


def assert_frequencies(drawn, probability):
  """Counts of `drawn` against `probability` `[K]`, 4 sigma per class; impossible stays absent."""
  n = drawn.size
  counts = np.bincount(np.asarray(drawn), minlength=len(probability))
  sigma = np.sqrt(n * probability * (1 - probability))
  assert counts.size == len(probability)
  assert np.all(np.abs(counts - n * probability) <= 4 * sigma), (counts, n * probability)


def test_overlay_touches_only_the_label_pixels():
  """A pixel of the image that is lost or leaked would only cost a little accuracy."""
  image = np.arange(1, 37, dtype=np.float32).reshape(6, 6, 1)
  out = np.asarray(labels.overlay(jnp.asarray(image), labels.one_hot(jnp.int32(2), 8, 5.0)))
  want = image.copy()
  want.reshape(-1)[:8] = [0, 0, 5, 0, 0, 0, 0, 0]
  np.testing.assert_array_equal(out, want)


def test_prepend_keeps_every_pixel():
  image = np.arange(1, 13, dtype=np.float32).reshape(3, 4, 1)
  out = np.asarray(labels.prepend(jnp.asarray(image), labels.one_hot(jnp.int32(0), 3)))
  np.testing.assert_array_equal(out, [1, 0, 0, *range(1, 13)])


def test_label_maps_stand_at_every_place_behind_the_image():
  """A map at one place only, or before the channels, would be another network input."""
  image = np.arange(1, 25, dtype=np.float32).reshape(3, 4, 2)
  out = np.asarray(labels.append_maps(jnp.asarray(image), labels.one_hot(jnp.int32(1), 3, 0.5)))
  assert out.shape == (3, 4, 5)
  np.testing.assert_array_equal(out[..., :2], image)
  for row in range(3):
    for column in range(4):
      np.testing.assert_array_equal(out[row, column, 2:], [0, 0.5, 0])
  unknown = labels.append_maps(jnp.asarray(image), labels.neutral(CLASSES))
  np.testing.assert_allclose(unknown[..., 2:], 0.1, rtol=1e-6)
  with pytest.raises(ValueError, match=r"need an image \[H, W, C\], not \(24,\)"):
    labels.append_maps(jnp.zeros(24), labels.neutral(3))


def test_class_patterns_are_signs_and_independent():
  signs = np.asarray(labels.class_patterns(jax.random.key(0), CLASSES, (16, 16, 3)))
  assert signs.shape == (CLASSES, 16, 16, 3) and set(np.unique(signs)) == {-1, 1}
  flat = signs.reshape(CLASSES, -1)
  overlap = flat @ flat.T / flat.shape[1]
  assert np.abs(overlap - np.eye(CLASSES)).max() < 4 * flat.shape[1] ** -0.5
  again = labels.class_patterns(jax.random.key(0), CLASSES, (16, 16, 3))
  np.testing.assert_array_equal(signs, again)


def test_added_pattern_is_the_class_s_own():
  image = np.linspace(-1, 1, 12, dtype=np.float32).reshape(2, 3, 2)
  signs = np.asarray(labels.class_patterns(jax.random.key(1), 4, image.shape))
  for label in range(4):
    out = labels.add_pattern(jnp.asarray(image), labels.one_hot(jnp.int32(label), 4, 0.25), signs)
    np.testing.assert_allclose(out, image + 0.25 * signs[label], rtol=1e-6)
  out = labels.add_pattern(jnp.asarray(image), labels.neutral(4, 0.25), signs)
  np.testing.assert_allclose(out, image + 0.25 * signs.mean(0), rtol=1e-6, atol=1e-7)


def test_neutral_code_is_flat_and_as_heavy_as_a_label():
  code = np.asarray(labels.neutral(CLASSES, 2.5))
  np.testing.assert_allclose(code, 0.25, rtol=1e-6)
  assert code.sum() == pytest.approx(np.asarray(labels.one_hot(jnp.int32(3), CLASSES, 2.5)).sum())


def test_uniform_is_never_true_and_flat_over_the_others():
  """A true label taught as negative, or a favoured wrong one, biases every layer."""
  true = jnp.arange(DRAWS, dtype=jnp.int32) % CLASSES
  wrong = labels.uniform_wrong(jax.random.key(0), true, CLASSES, None)
  assert wrong.shape == true.shape
  offset = np.asarray((wrong - true) % CLASSES)
  assert_frequencies(offset, np.array([0] + [1 / 9] * 9))
  assert np.asarray(wrong).min() >= 0 and np.asarray(wrong).max() < CLASSES
  for y in range(CLASSES):
    probability = np.full(CLASSES, 1 / 9)
    probability[y] = 0
    assert_frequencies(np.asarray(wrong)[np.asarray(true) == y], probability)


def test_permuted_keeps_the_multiset_and_a_tenth_of_the_true_labels():
  true = jnp.asarray(np.random.default_rng(0).integers(0, CLASSES, DRAWS), jnp.int32)
  wrong = np.asarray(labels.permuted(jax.random.key(1), true, CLASSES, None))
  np.testing.assert_array_equal(np.sort(wrong), np.sort(true))
  share = np.bincount(np.asarray(true)) / DRAWS
  expected = np.sum(share**2)
  sigma = np.sqrt(expected * (1 - expected) / DRAWS)
  assert abs(np.mean(wrong == np.asarray(true)) - expected) < 4 * sigma


def test_softmax_hard_frequencies():
  """Softmax of the logits without the true class, also where the net is sure and right."""
  logits = np.array([9.0, 1.0, -1.0, 0.5, 0.0])
  exact = np.exp(logits) * np.array([0, 1, 1, 1, 1])
  rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32)[None, :], (DRAWS, 5))
  true = jnp.zeros(DRAWS, jnp.int32)
  assert_frequencies(labels.softmax_wrong(jax.random.key(2), true, 5, rows), exact / exact.sum())
  sure = jnp.where(jnp.arange(5)[None, :] == 3, 1e5, rows)
  drawn = labels.softmax_wrong(jax.random.key(2), jnp.full(DRAWS, 3), 5, sure)
  assert not np.any(np.asarray(drawn) == 3)


def test_goodness_hard_frequencies():
  """In proportion to the square root of total goodness, true class excluded."""
  total = np.array([4.0, 1.0, 9.0, 0.0, 16.0])
  exact = np.sqrt(total) * np.array([1, 1, 1, 1, 0])
  rows = jnp.broadcast_to(jnp.asarray(total, jnp.float32)[None, :], (DRAWS, 5))
  drawn = labels.goodness_wrong(jax.random.key(3), jnp.full(DRAWS, 4), 5, rows)
  assert_frequencies(drawn, exact / exact.sum())


def test_each_row_has_its_own_scores_and_its_own_draw():
  logits = 30.0 * jax.nn.one_hot(jnp.arange(20) % 3 + 1, 5)
  drawn = labels.softmax_wrong(jax.random.key(4), jnp.zeros(20, jnp.int32), 5, logits)
  np.testing.assert_array_equal(drawn, np.arange(20) % 3 + 1)


@pytest.mark.parametrize("kind", ["softmax_hard", "goodness_hard"])
def test_hard_negatives_without_scores_are_refused(kind):
  with pytest.raises(ValueError, match=kind):
    labels.WRONG_LABELS[kind](jax.random.key(0), jnp.zeros(2, jnp.int32), 3, None)


@pytest.mark.parametrize(("blurs", "agreement"), [(3, 0.826), (6, 0.872), (10, 0.901)])
def test_hybrid_mask_statistics(blurs, agreement):
  """Mean 1/2, neighbour agreement 1 - arccos(rho)/pi in the interior: the scale of the regions."""
  count, margin = 600, blurs
  size = 2 * margin + 16
  keys = jax.random.split(jax.random.key(blurs), count)
  masks = jax.jit(jax.vmap(lambda k: labels.hybrid_mask(k, size, size, blurs)))(keys)
  assert masks.dtype == bool
  inside = np.asarray(masks)[:, margin:-margin, margin:-margin]
  for axis in (1, 2):
    one, other = np.delete(inside, 0, axis), np.delete(inside, -1, axis)
    per_mask = np.mean(one == other, axis=(1, 2))
    assert abs(per_mask.mean() - agreement) < 4 * per_mask.std() / count**0.5 + 5e-4  # 3 digits
  mean = inside.mean(axis=(1, 2))
  assert abs(mean.mean() - 0.5) < 4 * mean.std() / count**0.5


def test_hybrid_negatives_mix_two_images_of_the_batch():
  """Every pixel from one of two different images, never the image alone, both about half."""
  count = 64
  image = jnp.broadcast_to(jnp.arange(count, dtype=jnp.float32)[:, None, None, None],
                           (count, 28, 28, 2))  # fmt: skip
  mixed = np.asarray(jax.jit(labels.hybrid_negatives)(jax.random.key(0), image))
  partners = []
  for i, row in enumerate(mixed):
    values = np.unique(row)
    assert len(values) == 2 and i in values
    partners.append(int(values[values != i][0]))
    np.testing.assert_array_equal(row[..., 0], row[..., 1])  # channels share the mask
  assert sorted(partners) == list(range(count))
  own = np.array([np.mean(row == i) for i, row in enumerate(mixed)])
  assert abs(own.mean() - 0.5) < 4 * own.std() / count**0.5
  assert len({(row == i).tobytes() for i, row in enumerate(mixed)}) == count  # fresh masks


def test_hybrids_of_equal_images_are_the_image():
  image = jnp.broadcast_to(jax.random.uniform(jax.random.key(1), (1, 8, 8, 1)), (5, 8, 8, 1))
  mixed = jax.jit(labels.hybrid_negatives)(jax.random.key(0), image)
  np.testing.assert_array_equal(mixed, image)


def test_hybrids_of_vectors_are_refused():
  with pytest.raises(ValueError, match=r"\(4, 64\)"):
    labels.hybrid_negatives(jax.random.key(0), jnp.zeros((4, 64)))
