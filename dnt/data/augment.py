"""What is done to pictures inside the jitted step: random crops and flips, normalization.

Every draw is a function of (key, epoch, position in the epoch), example by example: the same picture comes out whatever
the batch size, the devices and the number of processes.
"""

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import ml_collections
from jax.extend import random


def _draws(key: jax.Array, epoch: jax.Array, position: jax.Array) -> tuple[jax.Array, jax.Array]:
  """Two words of random bits an example, uint32 [B] each: one block of Threefry at the counter (epoch, position).

  `fold_in` twice and `bits` would be three blocks, each a loop to compile: half a second at the start of a run.
  """
  counters = jnp.concatenate([epoch, position]).astype(jnp.uint32)
  first, second = jnp.split(random.threefry_2x32(jax.random.key_data(key), counters), 2)
  return first, second


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
  place, side = _draws(key, epoch, position)
  flip = (side >> 31 == 1) & config.flip
  if config.augment == 'resized_crop_flip':  # the crop was drawn on the host
    return jnp.where(flip[:, None, None, None], images[:, :, ::-1], images)
  # 16 bits for each offset: 2^16 draws over at most some tens of places are even to a thousandth.
  top, left = (bits % (2 * config.crop_padding + 1) for bits in (place >> 16, place & 0xFFFF))
  return crop_and_flip(images, top.astype(jnp.int32), left.astype(jnp.int32), flip, config.crop_padding)


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
) -> Callable[[Mapping[str, jax.Array], jax.Array | None], jax.Array]:
  """What a step does to a batch's pictures: `(batch, key) -> images`.

  The batch holds `image` uint8 [B, H, W, C]; when the key is not None also `epoch` and `position`, int32 [B]. Without a
  key (evaluation) nothing is drawn.
  """

  def preprocess(batch, key):
    images = batch['image']
    if key is not None:
      images = augment(config, images, key, batch['epoch'], batch['position'])
    return normalize(images, mean, std, dtype)

  return preprocess


def make_passing(dtype: jnp.dtype) -> Callable[[Mapping[str, jax.Array], jax.Array | None], jax.Array]:
  """In place of `make_preprocess` where `image` holds features, which have been through it."""
  return lambda batch, key: batch['image'].astype(dtype)
