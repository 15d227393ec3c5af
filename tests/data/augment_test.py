"""Augmentation against plain numpy: the draw may be anything, what it does to pixels may not."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fflax.data import augment
from fflax.data.augment import AugmentConfig, make_preprocess

KEY = jax.random.key(3)
RNG = np.random.RandomState(0)
IMAGES = RNG.randint(1, 256, (64, 7, 6, 3)).astype(np.uint8)  # no pixel is 0, so fill is visible


@functools.cache
def scaled():
  """IMAGES in [0, 1], to the bit as XLA divides (numpy differs in the last place)."""
  got = np.asarray(make_preprocess(255.0)(None, IMAGES))
  np.testing.assert_allclose(got, IMAGES / 255, rtol=1e-6)
  return got


def shifted(image, dy, dx, fill):
  padded = np.pad(image, ((2, 2), (2, 2), (0, 0)), mode="constant" if fill == "zero" else "edge")
  return padded[2 + dy : 2 + dy + image.shape[0], 2 + dx : 2 + dx + image.shape[1]]


@pytest.mark.parametrize(
  ("config", "fill"),
  [
    (AugmentConfig(shift=2), "zero"),
    (AugmentConfig(shift=2, shift_fill="edge"), "edge"),
    (AugmentConfig(crop=2), "zero"),
  ],
)
def test_shift_moves_pixels_exactly_and_reaches_every_offset(config, fill):
  """An off-by-one range would never shift to one side; interpolation would blur."""
  preprocess = make_preprocess(255.0, augment=config)
  seen = set()
  for step in range(8):
    got = np.asarray(preprocess(jax.random.fold_in(KEY, step), IMAGES))
    for image, out in zip(scaled(), got, strict=True):
      hits = [
        (dy, dx)
        for dy, dx in itertools.product(range(-2, 3), repeat=2)
        if np.array_equal(out, shifted(image, dy, dx, fill))
      ]
      assert len(hits) == 1
      seen.add(hits[0])
  assert len(seen) == 25


def test_flip_is_a_mirror_half_of_the_time():
  """Flipping the wrong axis, or the batch as one, is invisible in a loss curve."""
  preprocess = make_preprocess(255.0, augment=AugmentConfig(flip=True))
  got = np.concatenate([np.asarray(preprocess(jax.random.key(s), IMAGES)) for s in range(16)])
  original = np.concatenate([scaled()] * 16)
  same = (got == original).all((1, 2, 3))
  mirrored = (got == original[:, :, ::-1]).all((1, 2, 3))
  assert (same ^ mirrored).all()
  assert abs(mirrored.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(got))


def test_flipping_twice_is_the_identity():
  once = augment.random_flip(KEY, jnp.asarray(scaled()[0]))
  np.testing.assert_array_equal(augment.random_flip(KEY, once), scaled()[0])


def grey(image):
  return (image * np.asarray([0.299, 0.587, 0.114], np.float32)).sum(-1, keepdims=True)


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation"])
def test_colour_jitter_blends_with_its_base_by_a_factor_in_range(name):
  """Each output must lie on the line through the image and its base, at a factor within range."""
  image = 0.25 + 0.5 * scaled()  # far from the clip, so that the factor can be read off
  strength = 0.2
  strengths = {"brightness": 0.0, "contrast": 0.0, "saturation": 0.0, name: strength}
  keys = jax.random.split(KEY, len(image))
  got = np.asarray(
    jax.vmap(lambda k, im: augment.color_jitter(k, im, **strengths))(keys, jnp.asarray(image))
  )
  base = {
    "brightness": np.zeros_like(image),
    "contrast": np.broadcast_to(grey(image).mean((1, 2, 3), keepdims=True), image.shape),
    "saturation": np.broadcast_to(grey(image), image.shape),
  }[name]
  apart, moved = (image - base).reshape(64, -1), (got - base).reshape(64, -1)
  factor = (apart * moved).sum(1) / (apart**2).sum(1)
  np.testing.assert_allclose(moved, factor[:, None] * apart, atol=2e-6)
  assert factor.min() >= 0.8 - 1e-5 and factor.max() <= 1.2 + 1e-5
  # 64 uniform draws reach into both outer quarters of the range, or they are not uniform.
  assert factor.min() < 0.9 and factor.max() > 1.1


def test_colour_jitter_stays_in_range_and_never_inverts():
  """A factor below 0 would invert the image; values outside [0, 1] are no pixels."""
  config = AugmentConfig(brightness=3.0, contrast=3.0, saturation=3.0)
  got = np.asarray(make_preprocess(255.0, augment=config)(KEY, IMAGES))
  assert got.min() >= 0 and got.max() <= 1 and np.isfinite(got).all()
  dark = augment.color_jitter(KEY, jnp.full((2, 2, 3), 0.5), 1.0, 0.0, 0.0)
  assert (np.asarray(dark) >= 0).all()


@pytest.mark.parametrize("side", [1, 2, 3, 4])
def test_cutout_is_one_square_cut_by_the_border(side):
  """A hole one pixel short (as in the usual code for odd sides) weakens the regulariser."""
  ones = np.full((512, 7, 6, 1), 255, np.uint8)
  got = np.asarray(make_preprocess(255.0, augment=AugmentConfig(cutout=side))(KEY, ones))[..., 0]
  holes = {
    np.ndarray.tobytes(
      np.outer(
        (np.arange(7) >= y - side // 2) & (np.arange(7) < y - side // 2 + side),
        (np.arange(6) >= x - side // 2) & (np.arange(6) < x - side // 2 + side),
      )
    ): (y, x)
    for y in range(7)
    for x in range(6)
  }
  assert set(np.unique(got)) == {0.0, 1.0}
  centers = {holes[(image == 0).tobytes()] for image in got}
  assert len(centers) == 42  # every centre is reached
  whole = [c for c in centers if 2 <= c[0] <= 4 and 2 <= c[1] <= 3]
  for image in got:
    if holes[(image == 0).tobytes()] in whole:
      assert (image == 0).sum() == side * side


def test_a_hole_holds_the_mean_after_standardising():
  preprocess = make_preprocess(255.0, mean=0.3, std=0.2, augment=AugmentConfig(cutout=3))
  got, plain = preprocess(KEY, IMAGES), preprocess(None, IMAGES)
  changed = np.asarray(got != plain).all(-1)
  assert changed.any() and (np.asarray(got)[changed] == 0).all()


def test_evaluation_draws_nothing_and_standardises():
  mean, std = np.asarray([0.1, 0.2, 0.3], np.float32), np.asarray([0.5, 0.6, 0.7], np.float32)
  config = AugmentConfig(shift=2, flip=True, brightness=0.5, cutout=2)
  preprocess = make_preprocess(255.0, mean, std, config)
  got = preprocess(None, IMAGES)
  assert got.dtype == jnp.float32
  np.testing.assert_allclose(got, (scaled() - mean) / std, rtol=2e-6, atol=2e-6)
  np.testing.assert_array_equal(got, preprocess(None, IMAGES))
  plain = make_preprocess(255.0, mean, std)
  np.testing.assert_array_equal(plain(KEY, IMAGES), got)


def test_examples_draw_independently_and_a_key_repeats():
  """One key for the whole batch would shift all images alike."""
  preprocess = make_preprocess(255.0, augment=AugmentConfig(shift=2))
  twins = np.broadcast_to(IMAGES[:1], IMAGES.shape)
  got = np.asarray(preprocess(KEY, twins))
  assert len({image.tobytes() for image in got}) > 10
  np.testing.assert_array_equal(got, preprocess(KEY, twins))
  assert not np.array_equal(got, preprocess(jax.random.key(4), twins))


def test_switching_one_augmentation_on_leaves_the_others_draws():
  """Otherwise an ablation of flipping would compare other crops as well."""
  shift = make_preprocess(255.0, augment=AugmentConfig(shift=2))(KEY, IMAGES)
  both = make_preprocess(255.0, augment=AugmentConfig(shift=2, flip=True))(KEY, IMAGES)
  same = (np.asarray(both) == shift).all((1, 2, 3))
  mirrored = (np.asarray(both) == np.asarray(shift)[:, :, ::-1]).all((1, 2, 3))
  assert (same | mirrored).all() and mirrored.any()


def test_digits_scale_by_their_own_maximum():
  got = make_preprocess(16.0)(None, np.full((1, 8, 8, 1), 16, np.uint8))
  np.testing.assert_array_equal(got, np.ones((1, 8, 8, 1), np.float32))


def test_features_pass_and_cannot_be_augmented():
  x = RNG.randn(4, 5).astype(np.float32)
  np.testing.assert_array_equal(make_preprocess(1.0)(KEY, x), x)
  with pytest.raises(ValueError, match=r"augmentation needs images .* shape \[4, 5\]"):
    make_preprocess(1.0, augment=AugmentConfig(flip=True))(KEY, x)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"shift": -1}, "shift -1 must be at least 0"),
    ({"brightness": float("nan")}, "brightness nan must be at least 0"),
    ({"shift": 1, "shift_fill": "wrap"}, "shift_fill 'wrap'"),
    ({"shift": 1, "crop": 2}, "shift 1 and crop 2 are the same"),
  ],
)
def test_an_impossible_configuration_is_refused(options, message):
  with pytest.raises(ValueError, match=message):
    AugmentConfig(**options)


@pytest.mark.parametrize(
  ("config", "channels", "message"),
  [
    (AugmentConfig(crop=6), 3, "crop 6 must be below the image's side, 6"),
    (AugmentConfig(cutout=7), 3, "cutout 7 must be below"),
    (AugmentConfig(saturation=0.1), 1, "saturation needs 3 channels, not 1"),
  ],
)
def test_what_does_not_fit_the_images_is_refused(config, channels, message):
  with pytest.raises(ValueError, match=message):
    make_preprocess(255.0, augment=config)(KEY, IMAGES[..., :channels])


@pytest.mark.parametrize(
  ("arguments", "message"),
  [
    ((0.0,), "max_value 0.0 must be above 0"),
    ((255.0, 0.0, 0.0), "std 0.0 above 0"),
    ((255.0, float("nan"), 1.0), "mean nan must be finite"),
  ],
)
def test_impossible_scaling_is_refused(arguments, message):
  with pytest.raises(ValueError, match=message):
    make_preprocess(*arguments)


def test_grey_images_jitter_too():
  """Contrast of one channel is about that channel's own mean."""
  image = 0.25 + 0.5 * scaled()[0, :, :, :1]
  got = np.asarray(augment.color_jitter(KEY, jnp.asarray(image), 0.0, 0.2, 0.0))
  np.testing.assert_allclose(got.mean(), image.mean(), rtol=1e-5)
  assert not np.allclose(got, image)
