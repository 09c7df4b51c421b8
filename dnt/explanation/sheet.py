"""Draws explanations: overlays and contact sheets of them.

An overlay draws a map over its gray image, in colors from blue to red; higher values are more opaque. Only for drawing,
we divide a map by its own peak, so that colors compare positions within one map and not two maps. A map that is zero
everywhere adds nothing to its image.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnt.reporting import plots

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

GRAY = (0.299, 0.587, 0.114)  # weights of red, green and blue (ITU-R BT.601)
STRONGEST = 0.7  # opacity of the color at the peak of the map
COLUMNS = 3  # number of columns of a contact sheet
NAME = 22  # maximum characters of a name in a title over one image


class Tile(NamedTuple):
  """An image with its map and a title.

  Attributes:
    title: one or more lines above the image.
    image: the image, uint8 [H, W, C].
    map: float32 [H, W], nonnegative.
  """

  title: str
  image: np.ndarray
  map: np.ndarray


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """Draws the map over the gray image, uint8 [H, W, 3].

  Args:
    image: the image, uint8 [H, W, 3] or [H, W, 1].
    heat: the map, [H, W], nonnegative; its values as fractions of its peak select the colors.
  """
  import matplotlib

  heat = heat / heat.max() if heat.max() > 0 else heat
  gray = image @ GRAY if image.shape[-1] == 3 else image[..., 0]
  colors = matplotlib.colormaps['turbo'](heat)[..., :3] * 255
  strength = STRONGEST * heat[..., None]
  return np.rint(strength * colors + (1 - strength) * gray[..., None]).astype(np.uint8)


def short(name: str, length: int = NAME) -> str:
  """Truncates a name to `length` characters; by default it fits into a title over one image."""
  return name if len(name) <= length else f'{name[: length - 1]}…'


@plots.styled
def pair(title: str, image: Tile, over: str) -> 'Figure':
  """Draws an image on the left and its overlay on the right.

  Args:
    title: title above both.
    image: the tile; its title is above the image on the left.
    over: title above the overlay.
  """
  height, width = image.image.shape[:2]
  figure = plots.new_figure(10, 5 * height / width + 0.9)
  figure.suptitle(title, x=0.01, ha='left', parse_math=False)
  left, right = figure.subplots(1, 2)
  _show(left, image.title, _colored(image.image))
  _show(right, over, overlay(image.image, image.map))
  return figure


@plots.styled
def grid(title: str, tiles: Sequence[Sequence[Tile]], beside: bool = False) -> 'Figure':
  """Draws overlays in rows, such as the images that activate a channel most.

  Args:
    title: title above all rows.
    tiles: tiles by row; the first row needs at least one.
    beside: whether to show each image on the left of its overlay.
  """
  columns = max(map(len, tiles))
  height, width = tiles[0][0].image.shape[:2]
  across, side = (2 * width, 5.0) if beside else (width, 2.6)
  figure = plots.new_figure(max(side * columns, 8), (side * height / across + 0.75) * len(tiles) + 0.6)
  figure.suptitle(title, x=0.01, ha='left', parse_math=False)
  places = figure.subplots(len(tiles), columns, squeeze=False)
  for axes in places.flat:
    axes.axis('off')
  for row, line in zip(places, tiles, strict=True):
    for axes, tile in zip(row, line, strict=False):
      shown = overlay(tile.image, tile.map)
      _show(axes, tile.title, np.concatenate([_colored(tile.image), shown], 1) if beside else shown)
  return figure


def _colored(image: np.ndarray) -> np.ndarray:
  """Broadcasts an image with one or three channels to uint8 [H, W, 3]."""
  return np.broadcast_to(image, (*image.shape[:2], 3))


def _show(axes: 'Axes', title: str, image: np.ndarray) -> None:
  axes.imshow(image)
  axes.axis('off')
  axes.set_title(title, loc='left', fontsize=plots.FONT_SIZE - 2, parse_math=False)  # names may hold a $
