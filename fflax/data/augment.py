"""From stored pixels to what a network sees: scale, augment, standardise, on the device.

Every function here takes one image `[H, W, C]` float32 in [0, 1] and is vmapped with one key an
example; `make_preprocess` puts them together.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from fflax.types import Array, Key

Fill = Literal["zero", "edge"]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as everywhere


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
  """Which augmentations are drawn in training; all are off by default.

  Attributes:
    shift: largest translation in pixels along each axis, all `(2 shift + 1)**2` equally likely.
    shift_fill: what enters at the border: "zero" or "edge" (the border pixel, repeated).
    crop: random crop of the image's own size after padding by this many zero pixels; the same as a
      `shift` with zero fill, under the name that the CIFAR recipes use. Not together with `shift`.
    flip: mirror left to right with probability 1/2.
    brightness: factor from U(1 - b, 1 + b) on all pixels, not below 0.
    contrast: the same on the distance from the image's mean grey value.
    saturation: the same on the distance from each pixel's grey value; 3 channels only.
    cutout: side in pixels of a square hole.

  Raises:
    ValueError: for a negative value, an unknown fill, or `shift` together with `crop`.
  """

  shift: int = 0
  shift_fill: Fill = "zero"
  crop: int = 0
  flip: bool = False
  brightness: float = 0.0
  contrast: float = 0.0
  saturation: float = 0.0
  cutout: int = 0

  def __post_init__(self):
    for name in ("shift", "crop", "brightness", "contrast", "saturation", "cutout"):
      if not getattr(self, name) >= 0:
        raise ValueError(f"augmentation {name} {getattr(self, name)} must be at least 0")
    if self.shift_fill not in ("zero", "edge"):
      raise ValueError(f"shift_fill {self.shift_fill!r} is neither 'zero' nor 'edge'")
    if self.shift and self.crop:
      raise ValueError(f"shift {self.shift} and crop {self.crop} are the same thing: give one")

  @property
  def enabled(self) -> bool:
    """Whether anything is drawn."""
    jitter = self.brightness or self.contrast or self.saturation
    return bool(self.shift or self.crop or self.flip or jitter or self.cutout)


def random_shift(key: Key, image: Array, max_shift: int, fill: Fill = "zero") -> Array:
  """Translates by up to `max_shift` pixels along each axis."""
  padding = ((max_shift, max_shift), (max_shift, max_shift), (0, 0))
  padded = jnp.pad(image, padding, mode="edge" if fill == "edge" else "constant")
  row, column = jax.random.randint(key, (2,), 0, 2 * max_shift + 1)
  return jax.lax.dynamic_slice(padded, (row, column, jnp.zeros_like(row)), image.shape)


def random_flip(key: Key, image: Array) -> Array:
  """Mirrors left to right with probability 1/2."""
  return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def _grey(image: Array) -> Array:
  """`[H, W, C] -> [H, W, 1]`: luma of three channels, the mean of any other number."""
  if image.shape[-1] != 3:
    return image.mean(-1, keepdims=True)
  return jnp.sum(image * jnp.asarray(_LUMA)[None, None, :], -1, keepdims=True)


def color_jitter(
  key: Key, image: Array, brightness: float, contrast: float, saturation: float
) -> Array:
  """Random brightness, contrast and saturation, in this order, clipped to [0, 1] after each.

  Deviations: torchvision's ColorJitter, the usual reference, draws the order as well.
  """
  factors = {}
  for number, (name, strength) in enumerate(
    (("brightness", brightness), ("contrast", contrast), ("saturation", saturation))
  ):
    if strength:
      low = max(0.0, 1 - strength)
      factors[name] = jax.random.uniform(
        jax.random.fold_in(key, number), minval=low, maxval=1 + strength
      )
  for name, factor in factors.items():
    if name == "brightness":
      base = jnp.zeros_like(image)
    elif name == "contrast":
      base = jnp.broadcast_to(_grey(image).mean(), image.shape)
    else:
      base = jnp.broadcast_to(_grey(image), image.shape)
    image = jnp.clip(base + factor * (image - base), 0, 1)
  return image


def cutout(key: Key, image: Array, side: int) -> Array:
  """Sets a square of `side` pixels to 0; its centre is uniform, so it may be cut by the border.

  T. DeVries, G. W. Taylor, Improved Regularization of Convolutional Neural Networks with Cutout,
  arXiv:1708.04552, section 3.2.
  """
  height, width, _ = image.shape
  center = jax.random.randint(key, (2,), 0, jnp.asarray([height, width]))
  top, left = center - side // 2
  row, column = jnp.arange(height), jnp.arange(width)
  hole = ((row >= top) & (row < top + side))[:, None] & ((column >= left) & (column < left + side))[
    None, :
  ]
  return jnp.where(hole[:, :, None], 0.0, image)


def make_preprocess(
  max_value: float,
  mean: np.ndarray | float = 0.0,
  std: np.ndarray | float = 1.0,
  augment: AugmentConfig | None = None,
) -> Callable[[Key | None, Array], Array]:
  """Makes the jitted function from stored to standardised examples.

  In order: division by `max_value`, shift or crop, flip, colour jitter, `(x - mean) / std`, cutout.
  So what enters at the border is black, and a hole holds the mean, as in the papers' code.

  Args:
    max_value: `Dataset.max_value`.
    mean: scalar or `[C]`, in units of `max_value`; see `fflax.data.normalize.statistics`.
    std: the same.
    augment: None: nothing is drawn.

  Returns:
    `preprocess(key, image)`: `[B, H, W, C]` uint8 or `[B, D]` float32 to float32 of that shape.
    With `key` None (evaluation) nothing is drawn. Each example has its own key and each
    augmentation its own number, so switching one on leaves the others' draws as they were.

  Raises:
    ValueError: for `max_value` or `std` not above 0; and, when called with a key, for
      augmentations that do not fit the examples: any on `[B, D]`, saturation without 3 channels, a
      shift or a hole as large as the image.
  """
  mean, std = np.asarray(mean, np.float32), np.asarray(std, np.float32)
  config = AugmentConfig() if augment is None else augment
  if not max_value > 0:
    raise ValueError(f"max_value {max_value} must be above 0")
  if not (std > 0).all() or not np.isfinite(mean).all():
    raise ValueError(f"mean {mean} must be finite and std {std} above 0")

  def draw(key: Key, image: Array) -> Array:
    max_shift = config.shift or config.crop
    if max_shift:
      fill = config.shift_fill if config.shift else "zero"
      image = random_shift(jax.random.fold_in(key, 0), image, max_shift, fill)
    if config.flip:
      image = random_flip(jax.random.fold_in(key, 1), image)
    return color_jitter(
      jax.random.fold_in(key, 2), image, config.brightness, config.contrast, config.saturation
    )

  @jax.jit
  def preprocess(key: Key | None, image: Array) -> Array:
    x = image.astype(jnp.float32) / max_value
    channels = (1,) * (x.ndim - 1) + (-1,)
    if key is None or not config.enabled:
      return (x - mean.reshape(channels)) / std.reshape(channels)
    _check_fit(config, image.shape)
    keys = jax.random.split(key, len(image))
    x = (jax.vmap(draw)(keys, x) - mean.reshape(channels)) / std.reshape(channels)
    if config.cutout:
      hole_keys = jax.vmap(lambda k: jax.random.fold_in(k, 3))(keys)
      x = jax.vmap(lambda k, im: cutout(k, im, config.cutout))(hole_keys, x)
    return x

  return preprocess


def _check_fit(config: AugmentConfig, shape: tuple[int, ...]) -> None:
  if len(shape) != 4:
    raise ValueError(f"augmentation needs images [B, H, W, C], not features of shape {list(shape)}")
  side = min(shape[1:3])
  for name in ("shift", "crop", "cutout"):
    if getattr(config, name) >= side:
      raise ValueError(f"{name} {getattr(config, name)} must be below the image's side, {side}")
  if config.saturation and shape[-1] != 3:
    raise ValueError(f"saturation needs 3 channels, not {shape[-1]}")
