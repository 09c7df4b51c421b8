"""RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller and Hutter 2021), on the host, with Pillow.

Operations, magnitudes and draws match torchvision's `RandAugment` and `TrivialAugmentWide` on Pillow images: nearest
neighbour interpolation, black for uncovered pixels, 31 magnitudes. Images have mode L or RGB.

A policy runs after the resize and before the flip (and, for small images, the padded crop) on the device. AutoAugment's
own CIFAR code has the same order. Flipping before or after the policy gives the same distribution, because both signs
of an operation are equally likely. Only ShearY differs: it keeps the left edge fixed, which a later flip makes the
right one.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from dnt.config import typed

OPERATIONS = (
  'Identity',
  'ShearX',
  'ShearY',
  'TranslateX',
  'TranslateY',
  'Rotate',
  'Brightness',
  'Color',
  'Contrast',
  'Sharpness',
  'Posterize',
  'Solarize',
  'AutoContrast',
  'Equalize',
)
SIGNED = OPERATIONS[1:10]
BINS = 31


def _strongest(
  shear: float, translate: tuple[float, float], rotate: float, enhance: float, posterize: int
) -> dict[str, float]:
  """Returns the magnitude of the last bin for each operation; the first bin is 0 for all.

  Args:
    shear: sideways shift in pixels per pixel.
    translate: shift in pixels, (right, down).
    rotate: degrees.
    enhance: distance from 1 of the factor of Brightness, Color, Contrast and Sharpness.
    posterize: number of bits to drop.
  """
  enhancing = dict.fromkeys(('Brightness', 'Color', 'Contrast', 'Sharpness'), enhance)
  moving = {'TranslateX': translate[0], 'TranslateY': translate[1], 'Rotate': rotate}
  others = {'Posterize': posterize, 'Solarize': 255, 'Identity': 0, 'AutoContrast': 0, 'Equalize': 0}
  return {'ShearX': shear, 'ShearY': shear} | moving | enhancing | others


def operate(image: Any, operation: str, magnitude: float) -> Any:
  """Applies one operation to a Pillow image of mode L or RGB.

  Args:
    image: the image.
    operation: one of `OPERATIONS`.
    magnitude: strength, in the units of `_strongest`; may be negative for operations in `SIGNED`.
  """
  from PIL import Image, ImageEnhance, ImageOps

  def affine(*inverse):
    return image.transform(image.size, Image.Transform.AFFINE, inverse, Image.Resampling.NEAREST)

  match operation:
    case 'Identity':
      return image
    case 'ShearX':
      return affine(1, magnitude, 0, 0, 1, 0)
    case 'ShearY':
      return affine(1, 0, 0, magnitude, 1, 0)
    case 'TranslateX':
      return affine(1, 0, -int(magnitude), 0, 1, 0)
    case 'TranslateY':
      return affine(1, 0, 0, 0, 1, -int(magnitude))
    case 'Rotate':
      return image.rotate(magnitude, Image.Resampling.NEAREST)
    case 'Brightness' | 'Color' | 'Contrast' | 'Sharpness':
      return getattr(ImageEnhance, operation)(image).enhance(1 + magnitude)
    case 'Posterize':
      return ImageOps.posterize(image, 8 - round(magnitude))
    case 'Solarize':
      return ImageOps.solarize(
        image, math.ceil(255 - magnitude)
      )  # rounding changes nothing, as pixels are whole numbers
    case 'AutoContrast':
      return ImageOps.autocontrast(image)
    case 'Equalize':
      return ImageOps.equalize(image)
  raise ValueError(operation)


def _operate_at_random(image: Any, generator: np.random.Generator, strongest: dict[str, float], level: int) -> Any:
  """Applies a random operation at a level from 0 to `BINS` - 1, with a random sign if it is in `SIGNED`."""
  operation = OPERATIONS[generator.integers(len(OPERATIONS))]
  negative = bool(generator.integers(2)) and operation in SIGNED
  magnitude = strongest[operation] * level / (BINS - 1)
  return operate(image, operation, -magnitude if negative else magnitude)


def rand_augment(image: Any, generator: np.random.Generator | None, ops: int, magnitude: int) -> Any:
  """Applies several operations in sequence, each drawn from all fourteen, all at the same magnitude.

  Args:
    image: image of mode L or RGB.
    generator: source of the random draws.
    ops: number of operations (N in the paper).
    magnitude: 0 to 30 as in torchvision. The levels of the paper and of timm reach the same strengths with M = 10, so
      that their M = 9 is 27 here.
  """
  assert generator is not None  # training gives every image one
  width, height = image.size
  fraction = 150 / 331  # fraction of the side: AutoAugment shifts a 331-pixel image by 150
  strongest = _strongest(
    shear=0.3, translate=(fraction * width, fraction * height), rotate=30, enhance=0.9, posterize=4
  )
  for _ in range(ops):
    image = _operate_at_random(image, generator, strongest, magnitude)
  return image


def trivial_augment(image: Any, generator: np.random.Generator | None) -> Any:
  """Applies one operation drawn from all fourteen, at a magnitude drawn from a wide range.

  Args:
    image: image of mode L or RGB.
    generator: source of the random draws.
  """
  assert generator is not None  # training gives every image one
  level = int(generator.integers(BINS))
  strongest = _strongest(shear=0.99, translate=(32, 32), rotate=135, enhance=0.99, posterize=6)
  return _operate_at_random(image, generator, strongest, level)


def make(config: typed.Data) -> Callable[[Any, np.random.Generator | None], Any] | None:
  """Returns the policy of a `data` section, a picklable `(image, generator) -> image`, or None if it has none."""
  if config.policy == 'rand_augment':
    return functools.partial(rand_augment, ops=config.rand_augment_ops, magnitude=config.rand_augment_magnitude)
  return trivial_augment if config.policy == 'trivial_augment' else None
