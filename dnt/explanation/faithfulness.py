"""Whether a map names the pixels that matter: deletion and insertion (Petsiuk et al. 2018, section 3.2).

Pixels are taken in the order of falling value of the map. Deletion turns them, in the picture, into a baseline that
shows nothing: the mean colour of the data, zero once it is normalized. Insertion starts at the blurred picture and
turns pixels back into the picture's own. Both follow the probability of the class in `STEPS` equal steps; the figure is
the area under that curve over the share of pixels, by the trapezoidal rule: low for deletion, high for insertion, where
the map is right.

They are figures beside others alone: those of a random map, drawn on the grid of the map and upsampled as it is, so
that it differs in nothing else. Pixels of equal value come in the order of the random map.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

STEPS = 20  # of 5 % of the pixels; the paper's are single rows
BLUR = 10 / 224  # standard deviation of the blur over the picture's side
SEED = 0  # of the random maps


class Areas(NamedTuple):
  """Areas under the curves, each float64 [B] in [0, 1].

  Attributes:
    deletion: low is good.
    insertion: high is good.
  """

  deletion: np.ndarray
  insertion: np.ndarray


def random_maps(places: Sequence[int], size: tuple[int, int]) -> np.ndarray:
  """Random maps, float32 [B, h, w], uniform in [0, 1): a function of each picture's place.

  Args:
    places: of the pictures in their list.
    size: (h, w) of the map that they stand beside.
  """
  return np.stack([np.random.default_rng((SEED, place)).random(size, np.float32) for place in places])


def ranks(maps: np.ndarray, ties: np.ndarray) -> np.ndarray:
  """The place of each pixel in the order of falling value, int32 [B, H, W] from 0.

  Args:
    maps: [B, H, W].
    ties: [B, H, W], by whose falling value pixels of equal value come.
  """
  flat, second = (values.reshape(len(values), -1) for values in (maps, ties))
  order = np.lexsort((-second, -flat), axis=-1)
  found = np.empty_like(order, np.int32)
  np.put_along_axis(found, order, np.arange(order.shape[1], dtype=np.int32)[None], axis=1)
  return found.reshape(maps.shape)


def blur(images: jax.Array) -> jax.Array:
  """Pictures [B, H, W, C] under a Gaussian of `BLUR` of each side; beyond an edge there is nothing, and no weight."""

  def weights(side):
    place = np.arange(side)
    weight = np.exp(-((place[:, None] - place[None]) ** 2) / (2 * (BLUR * side) ** 2))
    return jnp.asarray(weight / weight.sum(1, keepdims=True), images.dtype)

  _, height, width, _ = images.shape
  return jnp.einsum('yi,xj,bijc->byxc', weights(height), weights(width), images)


def curve(
  probability: Callable[[jax.Array], jax.Array], start: jax.Array, end: jax.Array, order: np.ndarray
) -> np.ndarray:
  """The probability of the class as pixels of `start` become those of `end`, float64 [STEPS + 1, B].

  Args:
    probability: from [B, H, W, C] to [B].
    start: [B, H, W, C].
    end: the same.
    order: int32 [B, H, W], from `ranks`.
  """
  counts = np.linspace(0, order[0].size, STEPS + 1).round().astype(np.int32)
  mixed = (jnp.where(order[..., None] < count, end, start) for count in counts)
  return np.stack([np.asarray(probability(images), np.float64) for images in mixed])


def area(curve: np.ndarray) -> np.ndarray:
  """Under a curve [STEPS + 1, B] over [0, 1], by the trapezoidal rule."""
  return (curve.sum(0) - (curve[0] + curve[-1]) / 2) / (len(curve) - 1)


def measure(probability: Callable[[jax.Array], jax.Array], images: jax.Array, order: np.ndarray) -> Areas:
  """Deletion and insertion of pictures in one order of their pixels.

  Args:
    probability: of the class, from preprocessed pictures [B, H, W, C] to [B].
    images: preprocessed: zero is the mean colour.
    order: int32 [B, H, W], from `ranks`.
  """
  return Areas(
    deletion=area(curve(probability, images, jnp.zeros_like(images), order)),
    insertion=area(curve(probability, blur(images), images, order)),
  )
