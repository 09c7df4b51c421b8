"""Augments and normalizes images inside the jitted step: random crops and flips, normalization, erasing, mixing.

Every draw is a function of (key, epoch, position in the epoch), separately for each example. The result for an image is
therefore the same for any batch size, devices and number of processes. (Only `mixing` draws once per batch.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import random

from dnt.config import typed
from dnt.data.transforms import mixing

# Random erasing (Zhong et al. 2020), torchvision's defaults: fraction of the area, and ratio of height to width.
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
TRIES = 10
ERASING = 0xFFFFFFFF  # folded into the key; larger than any position


def _draws(key: jax.Array, epoch: jax.Array, position: jax.Array, blocks: int = 1) -> jax.Array:
  """Returns random bits, uint32 [2, blocks, B]: Threefry at the counters (epoch x blocks + block, position).

  Two calls of `fold_in` and one of `bits` would compile three loops. Measured on two cores with jax 0.10.2, they add
  0.2 s to the cold start of the default config with crops and flips (benchmarks/startup.py), and 0.5 s with erasing
  too. Runs that resume would also continue with other crops.
  """
  major = epoch.astype(jnp.uint32)[None] * blocks + jnp.arange(blocks, dtype=jnp.uint32)[:, None]
  minor = jnp.broadcast_to(position.astype(jnp.uint32), major.shape)
  counters = jnp.concatenate([major.reshape(-1), minor.reshape(-1)])
  return random.threefry_2x32(jax.random.key_data(key), counters).reshape(2, *major.shape)


def _uniform(bits: jax.Array, low: float, high: float) -> jax.Array:
  """Maps random uint32 bits to float32 in [low, high)."""
  return low + (high - low) * (bits >> 8).astype(jnp.float32) / 2**24


def crop_and_flip(images: jax.Array, top: jax.Array, left: jax.Array, flip: jax.Array, padding: int) -> jax.Array:
  """Crops zero-padded images to their original size and flips some of them.

  Args:
    images: [B, H, W, C], any dtype.
    top: int [B], first row of the crop in the padded image, 0 to 2 x padding.
    left: int [B], first column of the crop, in the same range.
    flip: bool [B], whether to flip left to right (after the crop).
    padding: number of zero pixels on each side.
  """
  height, width = images.shape[1:3]
  padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

  def crop(image, top, left):
    return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))

  cropped = jax.vmap(crop)(padded, top, left)
  return jnp.where(flip[:, None, None, None], cropped[:, :, ::-1], cropped)


def augment(config: typed.Data, images: jax.Array, key: jax.Array, epoch: jax.Array, position: jax.Array) -> jax.Array:
  """Applies the part of the augmentation that runs on the device.

  Args:
    config: the `data` section of the config; reads `augment`, `crop_padding` and `flip`.
    images: [B, H, W, C], any dtype.
    key: Threefry key of the run's augmentation.
    epoch: int32 [B].
    position: int32 [B], position in the order of the epoch.
  """
  if config.augment == 'none':
    return images
  (place,), (side,) = _draws(key, epoch, position)
  flip = (side >> 31 == 1) & config.flip
  if config.augment == 'resized_crop_flip':  # the host has made the crop
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
  # 16 bits for each offset: with at most some tens of offsets, their probabilities are equal to within a thousandth.
  top, left = (bits % (2 * config.crop_padding + 1) for bits in (place >> 16, place & 0xFFFF))
  return crop_and_flip(images, top.astype(jnp.int32), left.astype(jnp.int32), flip, config.crop_padding)


def erase(images: jax.Array, key: jax.Array, epoch: jax.Array, position: jax.Array, probability: float) -> jax.Array:
  """Sets a random box of some images to zero, which is the mean of normalized images (Zhong et al. 2020).

  As in torchvision's RandomErasing, the fraction of the area is uniform in `ERASED_AREA` and the ratio is log-uniform
  in `ERASED_RATIO`. The first of `TRIES` boxes that is smaller than the image in height and width is erased, if any.

  Args:
    images: [B, H, W, C], any float type.
    key: Threefry key of the run's augmentation.
    epoch: int32 [B].
    position: int32 [B], position in the order of the epoch.
    probability: probability that an image is erased.
  """
  height, width = images.shape[1:3]
  first, second = _draws(jax.random.fold_in(key, ERASING), epoch, position, TRIES + 2)
  area = height * width * _uniform(first[:TRIES], *ERASED_AREA)
  ratio = jnp.exp(_uniform(second[:TRIES], *map(math.log, ERASED_RATIO)))
  h, w = (jnp.round(jnp.sqrt(each)).astype(jnp.int32) for each in (area * ratio, area / ratio))
  fits = (h < height) & (w < width)
  h, w = (jnp.take_along_axis(side, jnp.argmax(fits, axis=0)[None], axis=0)[0] for side in (h, w))
  chosen = jnp.any(fits, axis=0) & (_uniform(first[TRIES + 1], 0.0, 1.0) < probability)
  top = (first[TRIES] % (height - h + 1).astype(jnp.uint32)).astype(jnp.int32)
  left = (second[TRIES] % (width - w + 1).astype(jnp.uint32)).astype(jnp.int32)
  erased = mixing.in_box(top, top + h, left, left + w, height, width) & chosen[:, None, None]
  return jnp.where(erased[..., None], jnp.zeros((), images.dtype), images)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
  """Returns (image / 255 - mean) / std, computed in float32.

  Args:
    images: uint8 [B, H, W, C].
    mean: mean per channel, in [0, 1].
    std: standard deviation per channel, in [0, 1].
    dtype: dtype of the result.
  """
  center, scale = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (mean, std))
  return ((images.astype(jnp.float32) / 255 - center) / scale).astype(dtype)


def make_preprocess(
  config: typed.Data, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype
) -> Callable[[Mapping[str, Any], jax.Array | None], jax.Array]:
  """Returns `(batch, key) -> images`, which a step applies to the images of its batch.

  The batch holds `image`, uint8 [B, H, W, C]. If the key is not None, it also holds `epoch` and `position`, int32 [B],
  and the entries that `mixing` adds. If the key is None (evaluation), there is no random draw.
  """

  def preprocess(batch, key):
    if key is None:
      return normalize(batch['image'], mean, std, dtype)
    drawn = key, batch['epoch'], batch['position']
    images = normalize(augment(config, batch['image'], *drawn), mean, std, dtype)
    if config.erasing:
      images = erase(images, *drawn, config.erasing)
    if 'partner' in batch:
      images = mixing.mix(images, preprocess(batch['partner'], key), batch['recipe'])
    return images

  return preprocess


def make_passing(dtype: jnp.dtype) -> Callable[[Mapping[str, jax.Array], jax.Array | None], jax.Array]:
  """Replaces `make_preprocess` when `image` holds features, which were computed from preprocessed images."""
  return lambda batch, key: batch['image'].astype(dtype)
