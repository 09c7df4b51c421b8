"""Mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019) inside the jitted step.

Each example is mixed with the one before it in the batch, the first with the last, as by torchvision. How is drawn once
a step. Partners are found in the whole batch, before it is cut into micro-batches: what is mixed with what depends
neither on `train.accumulate` nor on the devices.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

Batch = dict[str, Any]


class Mixed(NamedTuple):
  """Labels of examples that are mixtures of two (mixup, CutMix).

  Attributes:
    first: int32 [B].
    second: int32 [B].
    share: float32 [B], of the first; the rest is the second's.
  """

  first: jax.Array
  second: jax.Array
  share: jax.Array


Labels = jax.Array | Mixed  # int32 [B], or two a row


def by_share(of: Callable[[jax.Array], jax.Array], labels: Labels) -> jax.Array:
  """`of(labels)`, float32 [B]; of mixed ones its mean over both, by their shares."""
  if not isinstance(labels, Mixed):
    return of(labels)
  return labels.share * of(labels.first) + (1 - labels.share) * of(labels.second)


class Recipe(NamedTuple):
  """How pictures are mixed, a row an example (all alike), so that it is cut into micro-batches with the batch.

  Attributes:
    share: float32 [B], of the example's own pixels outside the box.
    box: int32 [B, 4], (top, bottom, left, right) of what is the partner's alone.
  """

  share: jax.Array
  box: jax.Array


def draw(
  mixup: float, cutmix: float, key: jax.Array, height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Draws a mixture.

  Args:
    mixup: alpha of Beta(alpha, alpha), of which the share is drawn; 0: no mixup.
    cutmix: the same of CutMix. With both on, each is taken half of the time, as by timm.
    key: of this draw.
    height: of the pictures.
    width: of the pictures.

  Returns:
    float32 share of the label, float32 share of the pixels outside the box, int32 [4] the box (see `Recipe`). The box
    is drawn to cover 1 - lambda of a picture, and the part of it that lies beyond the edges is lost; the label's share
    is that of the pixels.
  """
  switch, quantile, *place = jax.random.bits(key, (4,), jnp.uint32)
  cut = switch >> 31 == 1 if mixup and cutmix else bool(cutmix)
  drawn = jnp.where(cut, _beta(cutmix, quantile), _beta(mixup, quantile))
  sides = jnp.array([height, width])
  half = (0.5 * jnp.sqrt(1 - drawn) * sides).astype(jnp.int32)
  center = (jnp.stack(place) % sides.astype(jnp.uint32)).astype(jnp.int32)
  low, high = jnp.maximum(center - half, 0), jnp.minimum(center + half, sides)
  box = jnp.where(cut, jnp.stack([low, high], axis=1).reshape(4), 0)
  top, bottom, left, right = box
  share = jnp.where(cut, 1.0, drawn)
  return share * (1 - (bottom - top) * (right - left) / (height * width)), share, box


def _beta(alpha: float, bits: jax.Array) -> jax.Array:
  """One of 4096 equally likely quantiles of Beta(alpha, alpha), by random uint32 bits; 1 when alpha is 0.

  `jax.random.beta` draws it by rejection: two loops that take 1.5 s to compile, in each program with a train step.
  """
  if not alpha:
    return jnp.float32(1)
  from scipy import special

  quantiles = special.betaincinv(alpha, alpha, (np.arange(4096) + 0.5) / 4096)
  return jnp.asarray(quantiles, jnp.float32)[bits >> 20]


def mix(images: jax.Array, partners: jax.Array, recipe: Recipe) -> jax.Array:
  """Mixes pictures by a recipe.

  Args:
    images: [B, H, W, C], any float type; mixed in float32.
    partners: of the same shape.
    recipe: how.
  """
  inside = in_box(*recipe.box.T, *images.shape[1:3])
  own = jnp.where(inside, 0.0, recipe.share[:, None, None])[..., None]
  return (own * images + (1 - own) * partners).astype(images.dtype)


def in_box(top: jax.Array, bottom: jax.Array, left: jax.Array, right: jax.Array, height: int, width: int) -> jax.Array:
  """Which pixels lie in a box, bool [B, height, width]; bounds int [B], `bottom` and `right` excluded."""

  def between(low, high, side):
    at = jnp.arange(side)[None]
    return (at >= low[:, None]) & (at < high[:, None])

  return between(top, bottom, height)[:, :, None] & between(left, right, width)[:, None, :]


def make(config: ml_collections.ConfigDict) -> Callable[[Batch, jax.Array], Batch]:
  """`(batch, key) -> batch` with what its examples are mixed with, as `mixup` and `cutmix` of `data` ask for.

  The new batch has `partner`, the batch moved on by one, `recipe`, by which the pictures are mixed once they are
  augmented, and a `Mixed` as its `label`. Without mixing it is the old one.
  """

  def pair(batch, key):
    count, height, width, _ = batch['image'].shape
    share, *recipe = draw(config.mixup, config.cutmix, key, height, width)
    share, *recipe = (jnp.broadcast_to(value, (count, *value.shape)) for value in (share, *recipe))
    partner = {name: jnp.roll(value, 1, axis=0) for name, value in batch.items()}
    label = Mixed(batch['label'], partner['label'], share)
    return batch | {'label': label, 'partner': partner, 'recipe': Recipe(*recipe)}

  return pair if config.mixup or config.cutmix else lambda batch, key: batch
