"""Decodes, crops and resizes images on the host, as Pillow images of mode L or RGB.

A transform is `f(image, generator, ...) -> image`; it takes every random draw from the NumPy generator it receives.
Pillow's filters resize the images, as in torchvision: they average when they shrink. An image stays a Pillow image from
its file to its final size, because copies into arrays and back made reading photographs a fifth slower.
"""

import contextlib
import io
import math
import os
import sys
import threading
from collections.abc import Generator
from typing import Any, NamedTuple

import numpy as np

from dnt import errors, files
from dnt.config import typed

# How Pillow stores 16-bit channels whose upper 8 bits it reads, and what makes it read the lower ones instead. Of gray
# with alpha it then reads the bytes as four channels, of which the second is the lower one of gray.
_SWAPPED = ';16B' if sys.byteorder == 'little' else ';16L'
_LOWER = {'LA;16B': 'RGBA'} | {
  f'{mode}{order}': f'{mode}{other}'
  for mode in ('RGB', 'RGBA', 'RGBX')
  for order, other in ((';16B', ';16L'), (';16L', ';16B'), (';16N', _SWAPPED))
}
# Numbers of the TIFF tags that say how many bits the values have, what they mean, and whether channels lie apart.
_BITS, _PHOTOMETRIC, _CHANNELS, _PLANAR = 258, 262, 277, 284
_ORIENTATION = 0x0112  # number of the EXIF tag
# What brings each of its values to 1, by Pillow's names.
_TURNS = {
  2: 'FLIP_LEFT_RIGHT',
  3: 'ROTATE_180',
  4: 'FLIP_TOP_BOTTOM',
  5: 'TRANSPOSE',
  6: 'ROTATE_270',
  7: 'TRANSVERSE',
  8: 'ROTATE_90',
}
THIN = 20  # length / width of an image from which on only its center is computed
RATIOS = (3 / 4, 4 / 3)  # range of width / height of a random crop
TRIES = 10
LARGEST = 2**30  # pixels of an image; a damaged header may name so many that no memory holds them
_lifting, _lifted = threading.Lock(), 0  # how many threads lift Pillow's limit on pixels
_limit: int | None = None  # what it was before them


class Decoding(NamedTuple):
  """Holds what a run chooses about decoding its images.

  Attributes:
    bits: bits that the values of 16-bit channels use, 8 to 16.
    rotate: whether to turn or flip an image as its EXIF orientation says.
  """

  bits: int = 16
  rotate: bool = False


USUAL = Decoding()


def decoding(config: typed.Data) -> Decoding:
  """Returns what the `data` section of a config chooses."""
  return Decoding(config.image_bits or USUAL.bits, config.exif_rotation)


def decode(source: Any, name: str, channels: int = 3, how: Decoding = USUAL) -> Any:
  """Decodes an image to mode RGB, or to mode L if `channels` is 1.

  It keeps the upper 8 of the bits that a 16-bit channel uses. Pillow converts CMYK and palettes. Transparent pixels
  show the colour stored under them. By default, a 16-bit channel uses 16 bits, and the EXIF orientation is ignored
  (Pillow applies that of a TIFF), as in the loaders of torchvision and timm.

  Args:
    source: a path, or the bytes of the file.
    name: name of the image in error messages.
    channels: 3 (a gray image gets three equal channels), or 1 for gray.
    how: the choices of the run.

  Raises:
    errors.InputError: the file is empty, truncated, damaged or no image, or it holds floats, negative values, planes of
      16 bits, or more bits per channel than `how` says.
  """
  from PIL import Image

  name = files.readable(name)
  try:
    with opened(source) as image:
      _check_planes(image, name)
      # Pillow gives 16-bit colours as 8 bits, the upper ones; to get all takes twice as long.
      values = _values(source, image) if how.bits < 16 or image.mode[0] == 'I' else None
      image.load()
      if values is not None:
        upper, info = _upper_bits(values, how.bits, name), image.info
        image = Image.fromarray(255 - upper if _is_negative(image) else upper)
        image.info = info  # in which `turn` finds the orientation
      elif image.mode == 'F':
        raise errors.InputError(f'the image {name} holds floating-point numbers (mode F); convert it to 8 bits')
      image.info.pop('transparency', None)  # Pillow would warn that the conversion drops it
      wanted = 'L' if channels == 1 else 'RGB'
      if image.mode == 'LAB':  # which Pillow converts to RGB alone
        image = image.convert('RGB')
      image = image if image.mode == wanted else image.convert(wanted)
      return turn(image) if how.rotate else image
  except errors.InputError:
    raise
  except Exception as error:  # Pillow's readers raise a dozen types for damaged files
    reason = str(error) or type(error).__name__
    if isinstance(error, Image.UnidentifiedImageError):
      size = len(source) if isinstance(source, bytes) else os.path.getsize(source)
      reason = 'it has no format that Pillow knows' if size else 'it is empty, 0 bytes'
    raise errors.InputError(f'cannot read the image {name} ({reason}); replace or remove it') from error


def largest_value(path: str) -> int | None:
  """Returns the largest value of an image whose channels have 16 bits, or None if they have 8.

  Raises:
    Exception: the image cannot be read; any type.
  """
  with opened(path) as image:
    _check_planes(image, path)
    if image.mode[0] != 'I' and _raw_mode(image) not in _LOWER:
      return None
    values = _values(path, image)
    return None if values is None else int(values.max())


@contextlib.contextmanager
def opened(source: Any) -> Generator[Any]:
  """Opens an image of up to `LARGEST` pixels as `Image.open` does, a path or the bytes of the file."""
  from PIL import Image

  with _of_large_size(), Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
    if math.prod(image.size) > LARGEST:
      raise ValueError(f'it has {image.width:,} x {image.height:,} pixels, more than {LARGEST:,}')
    yield image


@contextlib.contextmanager
def _of_large_size() -> Generator[None]:
  """Lifts Pillow's limit on pixels, which scans exceed and which guards programs that read the files of strangers.

  It is one for the whole process, and comes back when no thread needs it lifted any more.
  """
  from PIL import Image

  global _lifted, _limit
  with _lifting:
    if not _lifted:
      _limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, LARGEST
    _lifted += 1
  try:
    yield
  finally:
    with _lifting:
      _lifted -= 1
      if not _lifted:
        Image.MAX_IMAGE_PIXELS = _limit


def turn(image: Any) -> Any:
  """Returns a loaded image, or a part of it, turned or flipped as its EXIF orientation says.

  It reads nothing else of the EXIF data, and writes none: damaged tags, which cameras and editors leave, do not matter.
  """
  from PIL import Image

  try:
    turned = _TURNS.get(image.getexif().get(_ORIENTATION))
  except Exception:  # Pillow's readers of EXIF raise many types too
    return image
  return image.transpose(Image.Transpose[turned]) if turned else image


def _raw_mode(image: Any) -> str:
  """Returns how the pixels of an opened image are stored, in Pillow's terms; '' if they are not."""
  args = (image.tile[0].args if image.tile else None) or ''  # a QOI has a tile without them
  return args if isinstance(args, str) else args[0]


def _is_negative(image: Any) -> bool:
  """Returns whether 0 is white in an opened image of 16-bit gray, a TIFF; Pillow inverts those of 8 bits alone."""
  return getattr(image, 'tag_v2', {}).get(_PHOTOMETRIC) == 0


def _check_planes(image: Any, name: str) -> None:
  """Refuses colours of more than 8 bits that lie in planes, which a TIFF may hold and Pillow reads as noise."""
  tags = getattr(image, 'tag_v2', {})
  if tags.get(_PLANAR) == 2 and tags.get(_CHANNELS, 1) > 1 and max(tags.get(_BITS, (1,))) > 8:
    raise errors.InputError(
      f'the image {name} stores its colours in separate planes of {max(tags[_BITS])} bits; save it interleaved'
    )


def _values(source: Any, image: Any) -> np.ndarray | None:
  """Loads an opened image; returns its values, [H, W] or [H, W, 3], if its channels have 16 bits, else None."""
  raw = _raw_mode(image)
  image.load()
  if image.mode[0] == 'I':
    return np.asarray(image)
  if raw not in _LOWER:
    return None
  with opened(source) as again:
    again.tile = [
      tile._replace(args=_LOWER[raw] if isinstance(tile.args, str) else (_LOWER[raw], *tile.args[1:]))
      for tile in again.tile
    ]
    lower = np.asarray(again)[..., 1:2] if raw == 'LA;16B' else np.asarray(again)[..., :3]
  return np.asarray(image)[..., :3].astype(np.uint16) << 8 | lower


def _upper_bits(values: np.ndarray, bits: int, name: str) -> np.ndarray:
  """Returns the upper 8 bits of values of `bits` bits, as uint8."""
  if values.size and not 0 <= values.min() <= values.max() < 2**bits:
    if values.min() < 0:
      raise errors.InputError(f'the image {name} holds negative values, down to {values.min()}; convert it to 8 bits')
    if values.max() >= 2**16:
      raise errors.InputError(f'the image {name} holds more than 16 bits a channel; convert it to 8 bits')
    raise errors.InputError(
      f'the image {name} holds the value {values.max()}, which is more than the {bits} bits of config.data.image_bits; '
      'set it to the bits that all images fit in'
    )
  return (values >> (bits - 8)).astype(np.uint8)


def from_array(image: np.ndarray) -> Any:
  """Converts uint8 [h, w, C], C = 1 or 3, to an image of mode L or RGB."""
  from PIL import Image

  return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)


def to_array(image: Any) -> np.ndarray:
  """Converts an image of mode L or RGB to uint8 [h, w, C], C = 1 or 3."""
  array = np.asarray(image)
  return array[..., None] if array.ndim == 2 else array


def in_channels(array: np.ndarray, count: int) -> np.ndarray:
  """Converts uint8 [N, h, w, C] as `decode` does: gray images to RGB if `count` is 3, RGB ones to gray if it is 1."""
  if count == 3:
    return np.repeat(array, 3, axis=-1)
  return np.stack([to_array(from_array(image).convert('L')) for image in array])


def resize(
  image: Any,
  size: tuple[int, int],
  interpolation: str = 'bilinear',
  box: tuple[float, float, float, float] | None = None,
) -> Any:
  """Resizes an image to (height, width) without keeping its aspect ratio.

  Args:
    image: image of mode L or RGB.
    size: (height, width).
    interpolation: 'bilinear' or 'bicubic'.
    box: the (left, top, right, bottom) of the part to resize; None: the whole.
  """
  from PIL import Image

  if image.size == size[::-1] and box is None:
    return image
  return image.resize(size[::-1], Image.Resampling[interpolation.upper()], box)


def crop(image: Any, box: tuple[int, int, int, int]) -> Any:
  """Returns the part of an image in a box (left, top, right, bottom)."""
  with _of_large_size():
    return image.crop(box)


def _crop(image: Any, top: int, left: int, height: int, width: int) -> Any:
  return crop(image, (left, top, left + width, top + height))


def squash(
  image: Any, generator: np.random.Generator | None, size: tuple[int, int], interpolation: str = 'bilinear'
) -> Any:
  """Resizes the whole image to (height, width); makes no random draw."""
  del generator
  return resize(image, size, interpolation)


def crop_box(height: int, width: int, generator: np.random.Generator, min_area: float) -> tuple[int, int, int, int]:
  """Returns the (top, left, height, width) of a random crop, as torchvision's RandomResizedCrop.get_params does.

  The fraction of the image's area is uniform in [min_area, 1], and the aspect ratio is log-uniform in `RATIOS`. After
  `TRIES` boxes that do not fit, it returns the largest centered box with a ratio in `RATIOS`.
  """
  for _ in range(TRIES):
    area = height * width * generator.uniform(min_area, 1)
    ratio = math.exp(generator.uniform(*np.log(RATIOS)))
    w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
    if 0 < w <= width and 0 < h <= height:
      return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
  h, w = height, width
  if width / height < RATIOS[0]:
    h = round(w / RATIOS[0])
  elif width / height > RATIOS[1]:
    w = round(h * RATIOS[1])
  return (height - h) // 2, (width - w) // 2, h, w


def random_resized_crop(
  image: Any,
  generator: np.random.Generator,
  size: tuple[int, int],
  min_area: float,
  interpolation: str = 'bilinear',
) -> Any:
  """Resizes a random crop of the image to (height, width) (Szegedy et al. 2014; see `crop_box`)."""
  return resize(_crop(image, *crop_box(image.height, image.width, generator, min_area)), size, interpolation)


def resize_center_crop(
  image: Any,
  generator: np.random.Generator | None,
  size: tuple[int, int],
  fraction: float,
  interpolation: str = 'bilinear',
) -> Any:
  """Returns the center of the image at (height, width); makes no random draw.

  It first resizes the image, keeping its aspect ratio, to the smallest size whose height and width are both at least
  `size / fraction`. For a square size this equals torchvision's Resize(size / fraction) and CenterCrop(size). Of a thin
  image, which would be `THIN` times as large as a square one, it computes the center alone, from the same pixels.
  """
  del generator
  width, height = image.size
  least_h, least_w = (math.floor(side / fraction) for side in size)
  if least_h * width >= least_w * height:
    h, w = least_h, least_h * width // height
  else:
    h, w = least_w * height // width, least_w
  top, left = round((h - size[0]) / 2), round((w - size[1]) / 2)
  if h * w < THIN * least_h * least_w:
    return _crop(resize(image, (h, w), interpolation), top, left, *size)
  (x, right, *columns), (y, bottom, *rows) = _span(left, size[1], w, width), _span(top, size[0], h, height)
  box = columns[0], rows[0], columns[1], rows[1]
  return resize(crop(image, (x, y, right, bottom)), size, interpolation, box)


def _span(start: int, length: int, resized: int, side: int) -> tuple[int, int, float, float]:
  """Returns where a part of a resized side lies in the image.

  Args:
    start: first pixel of the part.
    length: its pixels.
    resized: pixels of the resized side.
    side: pixels of the side in the image.

  Returns:
    The first and last (exclusive) pixel that filters see there, and the ends of the part, counted from the first.
    Pillow holds the ends as float32, which has no digits left for a place in a long image.
  """
  first, last = start * side / resized, (start + length) * side / resized
  reach = 2 * max(1, math.ceil(side / resized)) + 1  # of a bicubic filter
  low, high = max(0, math.floor(first) - reach), min(side, math.ceil(last) + reach)
  return low, high, first - low, last - low
