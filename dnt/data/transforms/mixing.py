"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) inside the jitted step.

As in torchvision, each example is mixed with the previous one of the batch, and the first with the last. The mixing
parameters are drawn once per step. Partners come from the whole batch, before it is split into micro-batches, so the
pairs depend neither on `train.accumulate` nor on the devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from dnt.config import typed

Batch = dict[str, Any]


class Mixed(NamedTuple):
  """Labels of examples that are each a mixture of two (mixup, CutMix).

  Attributes:
    first: int32 [B], labels of the first example of each pair.
    second: int32 [B], labels of the second.
    fraction: float32 [B], weight of the first label; the second has weight 1 - fraction.
  """

  first: jax.Array
  second: jax.Array
  fraction: jax.Array


Labels = jax.Array | Mixed  # int32 [B], or two labels per example


def average_labels(of: Callable[[jax.Array], jax.Array], labels: Labels) -> jax.Array:
  """Returns `of(labels)`, float32 [B]; for mixed labels the mean of `of` over both labels, weighted by `fraction`."""
  if not isinstance(labels, Mixed):
    return of(labels)
  return labels.fraction * of(labels.first) + (1 - labels.fraction) * of(labels.second)


class Recipe(NamedTuple):
  """How images are mixed: one row per example, all rows equal, so that it splits into micro-batches with the batch.

  Attributes:
    fraction: float32 [B], weight of the example's own pixels outside the box.
    box: int32 [B, 4], (top, bottom, left, right) of the box that is filled with the partner's pixels.
  """

  fraction: jax.Array
  box: jax.Array


def draw(
  mixup: float, cutmix: float, key: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws the parameters of a mixture.

  Args:
    mixup: alpha of the Beta(alpha, alpha) that mixup draws lambda from; 0 turns mixup off.
    cutmix: the same alpha for CutMix. If both are on, each is used with probability 1/2, as in timm.
    key: random key of this draw.
    height: height of the images.
    width: width of the images.

  Returns:
    The float32 weight of the label, the float32 weight of the pixels outside the box, and the int32 [4] box (see
    `Recipe`). The box is drawn to cover 1 - lambda of an image and is then clipped to the image. The label's weight is
    the example's weight averaged over all pixels.
  """
  switch, radius, *place, angle = jax.random.bits(key, (5,), jnp.uint32)
  cut = switch >> 31 == 1 if mixup and cutmix else bool(cutmix)
  drawn = jnp.where(cut, _beta(cutmix, radius, angle), _beta(mixup, radius, angle))
  sides = jnp.array([height, width])
  half = (0.5 * jnp.sqrt(1 - drawn) * sides).astype(jnp.int32)
  center = (jnp.stack(place) % sides.astype(jnp.uint32)).astype(jnp.int32)
  low, high = jnp.maximum(center - half, 0), jnp.minimum(center + half, sides)
  box = jnp.where(cut, jnp.stack([low, high], axis=1).reshape(4), 0)
  top, bottom, left, right = box
  fraction = jnp.where(cut, 1.0, drawn)
  return fraction * (1 - (bottom - top) * (right - left) / (height * width)), fraction, box


def _beta(alpha: float, radius: jax.Array, angle: jax.Array) -> jax.Array:
  """Draws from Beta(alpha, alpha), float32; 1 if alpha is 0.

  With Student's t of 2 alpha degrees of freedom, (1 + t / sqrt(2 alpha + t^2)) / 2 has this distribution. Bailey (1994,
  "Polar generation of random variates with the t-distribution") draws t from two uniform numbers, for any alpha.
  `jax.random.beta` rejects draws in two loops, whose compilation adds 1.4 s to a cold start (two cores, jax 0.10.2).

  Args:
    alpha: both parameters of the distribution.
    radius: random bits, uint32.
    angle: independent random bits, uint32.
  """
  if not alpha:
    return jnp.float32(1)
  logarithm = jnp.log(_open_uniform(radius)) / alpha
  cosine = jnp.cos(2 * jnp.pi * _open_uniform(angle))
  scaled = cosine / jnp.sqrt(jnp.exp(logarithm) / -jnp.expm1(logarithm) + cosine**2)  # t / sqrt(2 alpha + t^2)
  return 0.5 + 0.5 * jnp.clip(scaled, -1, 1)


def _open_uniform(bits: jax.Array) -> jax.Array:
  """Maps random uint32 bits to float32 in (0, 1), both ends excluded."""
  return ((bits >> 9).astype(jnp.float32) + 0.5) / 2**23


def mix(images: jax.Array, partners: jax.Array, recipe: Recipe) -> jax.Array:
  """Mixes images with their partners by a recipe.

  Args:
    images: [B, H, W, C], any float type; the mixing is computed in float32.
    partners: images of the same shape.
    recipe: weights and boxes of the mixture.
  """
  inside = in_box(*recipe.box.T, *images.shape[1:3])
  own = jnp.where(inside, 0.0, recipe.fraction[:, None, None])[..., None]
  return (own * images + (1 - own) * partners).astype(images.dtype)


def in_box(top: jax.Array, bottom: jax.Array, left: jax.Array, right: jax.Array, height: int, width: int) -> jax.Array:
  """Marks the pixels inside a box, bool [B, height, width]; bounds are int [B], `bottom` and `right` exclusive."""

  def between(low, high, side):
    at = jnp.arange(side)[None]
    return (at >= low[:, None]) & (at < high[:, None])

  return between(top, bottom, height)[:, :, None] & between(left, right, width)[:, None, :]


def make(config: typed.Data) -> Callable[[Batch, jax.Array], Batch]:
  """Returns `(batch, key) -> batch`, which pairs the examples for the `mixup` and `cutmix` of the `data` section.

  The new batch has `partner`, the batch rolled by one example; `recipe`, which mixes the images after augmentation;
  and a `Mixed` as its `label`. If both options are 0, the batch is returned unchanged.
  """

  def pair(batch, key):
    count, height, width, _ = batch['image'].shape
    fraction, *recipe = draw(config.mixup, config.cutmix, key, height, width)
    fraction, *recipe = (jnp.broadcast_to(value, (count, *value.shape)) for value in (fraction, *recipe))
    partner = {name: jnp.roll(value, 1, axis=0) for name, value in batch.items()}
    label = Mixed(batch['label'], partner['label'], fraction)
    return batch | {'label': label, 'partner': partner, 'recipe': Recipe(*recipe)}

  return pair if config.mixup or config.cutmix else lambda batch, key: batch
