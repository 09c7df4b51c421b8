"""What is done to pictures inside the jitted step: random crops and flips, normalization, erasing, mixing.

Every draw is a function of (key, epoch, position in the epoch), example by example: the same picture comes out whatever
the batch size, the devices and the number of processes. (`mixing` alone draws once a batch.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from jax.extend import random

from dnt.data.transforms import mixing

# Random erasing (Zhong et al. 2020), by torchvision's defaults: share of the area, and ratio of height to width.
ERASED_AREA, ERASED_RATIO = (0.02, 0.33), (0.3, 3.3)
TRIES = 10
ERASING = 0xFFFFFFFF  # folded into the key, beyond every position


def _draws(key: jax.Array, epoch: jax.Array, position: jax.Array, blocks: int = 1) -> jax.Array:
  """Random bits, uint32 [2, blocks, B]: blocks of Threefry at the counters (epoch x blocks + block, position).

  `fold_in` twice and `bits` would be three calls, each a loop to compile: half a second at the start of a run.
  """
  major = epoch.astype(jnp.uint32)[None] * blocks + jnp.arange(blocks, dtype=jnp.uint32)[:, None]
  minor = jnp.broadcast_to(position.astype(jnp.uint32), major.shape)
  counters = jnp.concatenate([major.reshape(-1), minor.reshape(-1)])
  return random.threefry_2x32(jax.random.key_data(key), counters).reshape(2, *major.shape)


def _uniform(bits: jax.Array, low: float, high: float) -> jax.Array:
  """float32 in [low, high) from random uint32."""
  return low + (high - low) * (bits >> 8).astype(jnp.float32) / 2**24


def crop_and_flip(images: jax.Array, top: jax.Array, left: jax.Array, flip: jax.Array, padding: int) -> jax.Array:
  """Crops zero-padded pictures to their own size and mirrors some.

  Args:
    images: [B, H, W, C], any dtype.
    top: int [B], first row of the crop in the padded picture, 0 to 2 x padding.
    left: int [B], its first column.
    flip: bool [B], mirror left to right (after the crop).
    padding: pixels of zeros on each side.
  """
  height, width = images.shape[1:3]
  padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

  def crop(image, top, left):
    return jax.lax.dynamic_slice(image, (top, left, 0), (height, width, image.shape[-1]))

  cropped = jax.vmap(crop)(padded, top, left)
  return jnp.where(flip[:, None, None, None], cropped[:, :, ::-1], cropped)


def augment(
  config: ml_collections.ConfigDict, images: jax.Array, key: jax.Array, epoch: jax.Array, position: jax.Array
) -> jax.Array:
  """The part of the augmentation that runs on the device.

  Args:
    config: the `data` section of the config: `augment`, `crop_padding`, `flip`.
    images: [B, H, W, C], any dtype.
    key: Threefry key of the run's augmentation.
    epoch: int32 [B].
    position: int32 [B], in the order of the epoch.
  """
  if config.augment == 'none':
    return images
  (place,), (side,) = _draws(key, epoch, position)
  flip = (side >> 31 == 1) & config.flip
  if config.augment == 'resized_crop_flip':  # the crop was drawn on the host
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
  # 16 bits for each offset: 2^16 draws over at most some tens of places are even to a thousandth.
  top, left = (bits % (2 * config.crop_padding + 1) for bits in (place >> 16, place & 0xFFFF))
  return crop_and_flip(images, top.astype(jnp.int32), left.astype(jnp.int32), flip, config.crop_padding)


def erase(images: jax.Array, key: jax.Array, epoch: jax.Array, position: jax.Array, chance: float) -> jax.Array:
  """Sets a random box of some pictures to zero, the mean once they are normalized (Zhong et al. 2020).

  As torchvision's RandomErasing: the area is uniform in `ERASED_AREA` of the picture's, the ratio log-uniform in
  `ERASED_RATIO`; of `TRIES` boxes the first that is smaller than the picture both ways is taken, else none.

  Args:
    images: [B, H, W, C], any float type.
    key: Threefry key of the run's augmentation.
    epoch: int32 [B].
    position: int32 [B], in the order of the epoch.
    chance: share of the pictures.
  """
  height, width = images.shape[1:3]
  first, second = _draws(jax.random.fold_in(key, ERASING), epoch, position, TRIES + 2)
  area = height * width * _uniform(first[:TRIES], *ERASED_AREA)
  ratio = jnp.exp(_uniform(second[:TRIES], *map(math.log, ERASED_RATIO)))
  h, w = (jnp.round(jnp.sqrt(each)).astype(jnp.int32) for each in (area * ratio, area / ratio))
  fits = (h < height) & (w < width)
  h, w = (jnp.take_along_axis(side, jnp.argmax(fits, axis=0)[None], axis=0)[0] for side in (h, w))
  chosen = jnp.any(fits, axis=0) & (_uniform(first[TRIES + 1], 0.0, 1.0) < chance)
  top = (first[TRIES] % (height - h + 1).astype(jnp.uint32)).astype(jnp.int32)
  left = (second[TRIES] % (width - w + 1).astype(jnp.uint32)).astype(jnp.int32)
  erased = mixing.in_box(top, top + h, left, left + w, height, width) & chosen[:, None, None]
  return jnp.where(erased[..., None], jnp.zeros((), images.dtype), images)


def normalize(images: jax.Array, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype) -> jax.Array:
  """(image / 255 - mean) / std, computed in float32.

  Args:
    images: uint8 [B, H, W, C].
    mean: per channel, in [0, 1].
    std: per channel, in [0, 1].
    dtype: of the result.
  """
  mean, std = (jnp.asarray(value, jnp.float32).reshape(1, 1, 1, -1) for value in (mean, std))
  return ((images.astype(jnp.float32) / 255 - mean) / std).astype(dtype)


def make_preprocess(
  config: ml_collections.ConfigDict, mean: Sequence[float], std: Sequence[float], dtype: jnp.dtype
) -> Callable[[Mapping[str, Any], jax.Array | None], jax.Array]:
  """What a step does to a batch's pictures: `(batch, key) -> images`.

  The batch holds `image` uint8 [B, H, W, C]; when the key is not None also `epoch` and `position`, int32 [B], and what
  `mixing` adds. Without a key (evaluation) nothing is drawn.
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
  """In place of `make_preprocess` where `image` holds features, which have been through it."""
  return lambda batch, key: batch['image'].astype(dtype)
