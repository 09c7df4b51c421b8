"""What explanations look like: overlays and sheets of them.

A map is drawn over its picture in gray, in colours from blue to red, the more of them the higher it is. For drawing
alone it is divided by its own peak, so that colours compare places of one map and not two maps; one that is zero
everywhere adds nothing to its picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnt.reporting import plots

if TYPE_CHECKING:
  from matplotlib.axes import Axes
  from matplotlib.figure import Figure

GRAY = (0.299, 0.587, 0.114)  # shares of red, green and blue (ITU-R BT.601)
STRONGEST = 0.7  # share of the colour where the map is at its peak
COLUMNS = 3  # of a contact sheet
NAME = 22  # characters of a name in a title over one picture


class Tile(NamedTuple):
  """A picture with a map of it, and what stands above.

  Attributes:
    title: one or more lines.
    picture: uint8 [H, W, C].
    map: float32 [H, W], not below zero.
  """

  title: str
  picture: np.ndarray
  map: np.ndarray


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """The map over the picture in gray, uint8 [H, W, 3].

  Args:
    picture: uint8 [H, W, 3] or [H, W, 1].
    heat: [H, W], not below zero; the colours are those of its shares of its peak.
  """
  import matplotlib

  heat = heat / heat.max() if heat.max() > 0 else heat
  gray = picture @ GRAY if picture.shape[-1] == 3 else picture[..., 0]
  colors = matplotlib.colormaps['turbo'](heat)[..., :3] * 255
  share = STRONGEST * heat[..., None]
  return np.rint(share * colors + (1 - share) * gray[..., None]).astype(np.uint8)


def short(name: str, length: int = NAME) -> str:
  """A name that fits into a title, over one picture if not told otherwise."""
  return name if len(name) <= length else f'{name[: length - 1]}…'


@plots.styled
def pair(title: str, picture: Tile, over: str) -> 'Figure':
  """A picture, and the map over it beside.

  Args:
    title: above both.
    picture: its title stands above the picture itself.
    over: what stands above the overlay.
  """
  height, width = picture.picture.shape[:2]
  figure = plots.new_figure(10, 5 * height / width + 0.9)
  figure.suptitle(title, x=0.01, ha='left')
  left, right = figure.subplots(1, 2)
  _show(left, picture.title, _colored(picture.picture))
  _show(right, over, overlay(picture.picture, picture.map))
  return figure


@plots.styled
def grid(title: str, tiles: Sequence[Sequence[Tile]], beside: bool = False) -> 'Figure':
  """Overlays in rows, such as the pictures that excite a channel most.

  Args:
    title: above all.
    tiles: by row, at least one in the first.
    beside: show each picture itself on the left of its overlay.
  """
  columns = max(map(len, tiles))
  height, width = tiles[0][0].picture.shape[:2]
  across, side = (2 * width, 5.0) if beside else (width, 2.6)
  figure = plots.new_figure(max(side * columns, 8), (side * height / across + 0.75) * len(tiles) + 0.6)
  figure.suptitle(title, x=0.01, ha='left')
  places = figure.subplots(len(tiles), columns, squeeze=False)
  for axes in places.flat:
    axes.axis('off')
  for row, line in zip(places, tiles, strict=True):
    for axes, tile in zip(row, line, strict=False):
      shown = overlay(tile.picture, tile.map)
      _show(axes, tile.title, np.concatenate([_colored(tile.picture), shown], 1) if beside else shown)
  return figure


def _colored(picture: np.ndarray) -> np.ndarray:
  """uint8 [H, W, 3] of one with one channel or three."""
  return np.broadcast_to(picture, (*picture.shape[:2], 3))


def _show(axes: 'Axes', title: str, picture: np.ndarray) -> None:
  axes.imshow(picture)
  axes.axis('off')
  axes.set_title(title, loc='left', fontsize=plots.FONT_SIZE - 2)
