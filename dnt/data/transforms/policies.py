"""RandAugment (Cubuk et al. 2020) and TrivialAugment (Müller and Hutter 2021), on the host, with Pillow.

Operations, magnitudes and draws are those of torchvision's `RandAugment` and `TrivialAugmentWide` on Pillow pictures:
nearest neighbour, black where nothing is, 31 magnitudes. Images are of mode L or RGB.

They come after the resize, and before the flip (and, for small pictures, the padded crop) on the device: the order of
AutoAugment's own CIFAR code. Mirrored before or after is the same but for ShearY, since signed operations draw either
sign alike; ShearY holds the left edge still, and of a picture that is then mirrored the right one.
"""

import functools
from collections.abc import Callable
from typing import Any

import ml_collections
import numpy as np

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
  """By operation, the magnitude of the last bin; that of the first is 0 for all.

  Args:
    shear: pixels to the side a pixel.
    translate: pixels right and down.
    rotate: degrees.
    enhance: distance from 1 of the factor of Brightness, Color, Contrast and Sharpness.
    posterize: bits that are dropped.
  """
  enhancing = dict.fromkeys(('Brightness', 'Color', 'Contrast', 'Sharpness'), enhance)
  moving = {'TranslateX': translate[0], 'TranslateY': translate[1], 'Rotate': rotate}
  others = {'Posterize': posterize, 'Solarize': 255, 'Identity': 0, 'AutoContrast': 0, 'Equalize': 0}
  return {'ShearX': shear, 'ShearY': shear} | moving | enhancing | others


def operate(image: Any, operation: str, magnitude: float) -> Any:
  """One operation on a Pillow picture, mode L or RGB.

  Args:
    image: the picture.
    operation: of `OPERATIONS`.
    magnitude: how much of it, as `_strongest` measures it; of either sign for those in `SIGNED`.
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
      return ImageOps.solarize(image, 255 - magnitude)
    case 'AutoContrast':
      return ImageOps.autocontrast(image)
    case 'Equalize':
      return ImageOps.equalize(image)
  raise ValueError(operation)


def _operate_at_random(image: Any, generator: np.random.Generator, strongest: dict[str, float], level: int) -> Any:
  """An operation drawn from all, at a level from 0 to `BINS` - 1 and with a drawn sign where it has one."""
  operation = OPERATIONS[generator.integers(len(OPERATIONS))]
  negative = bool(generator.integers(2)) and operation in SIGNED
  magnitude = strongest[operation] * level / (BINS - 1)
  return operate(image, operation, -magnitude if negative else magnitude)


def rand_augment(image: Any, generator: np.random.Generator, ops: int, magnitude: int) -> Any:
  """Some operations one after another, each drawn from all fourteen, all at one magnitude.

  Args:
    image: of mode L or RGB.
    generator: of the draws.
    ops: how many (N of the paper).
    magnitude: 0 to 30 (M of the paper).
  """
  width, height = image.size
  share = 150 / 331  # of the side: AutoAugment's 150 pixels of a picture of 331
  strongest = _strongest(shear=0.3, translate=(share * width, share * height), rotate=30, enhance=0.9, posterize=4)
  for _ in range(ops):
    image = _operate_at_random(image, generator, strongest, magnitude)
  return image


def trivial_augment(image: Any, generator: np.random.Generator) -> Any:
  """One operation drawn from all fourteen, at a drawn magnitude from a wide range.

  Args:
    image: of mode L or RGB.
    generator: of the draws.
  """
  level = int(generator.integers(BINS))
  strongest = _strongest(shear=0.99, translate=(32, 32), rotate=135, enhance=0.99, posterize=6)
  return _operate_at_random(image, generator, strongest, level)


def make(config: ml_collections.ConfigDict) -> Callable[[Any, np.random.Generator], Any] | None:
  """`(image, generator) -> image`, the policy of a config's `data`; None where it has none. Workers are sent it."""
  if config.policy == 'rand_augment':
    return functools.partial(rand_augment, ops=config.rand_augment_ops, magnitude=config.rand_augment_magnitude)
  return trivial_augment if config.policy == 'trivial_augment' else None
