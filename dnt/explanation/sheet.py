"""What explanations look like: overlays, sheets of them, and one page.

A map is drawn over its picture in colours from blue to red, the more of them the higher it is. For drawing alone it is
divided by its own peak, so that colours compare places of one map and not two maps; one that is zero everywhere adds
nothing to its picture.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from dnt import plots

if TYPE_CHECKING:
  from matplotlib.figure import Figure

STRONGEST = 0.7  # share of the colour where the map is at its peak
COLUMNS = 3  # of a contact sheet
NAME = 26  # characters of a name in a title


class Tile(NamedTuple):
  """A picture with its heat map, and what stands above.

  Attributes:
    title: one or two lines.
    picture: uint8 [H, W, C].
    heat: float32 [H, W] from 0 to 1.
  """

  title: str
  picture: np.ndarray
  heat: np.ndarray


def normalized(heat: np.ndarray) -> np.ndarray:
  """A map [H, W], not below zero, over its peak."""
  peak = heat.max()
  return heat / peak if peak > 0 else heat


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
  """The map over the picture, uint8 [H, W, 3].

  Args:
    picture: uint8 [H, W, 3] or [H, W, 1].
    heat: [H, W] from 0 to 1.
  """
  import matplotlib

  colors = matplotlib.colormaps['turbo'](heat)[..., :3] * 255
  share = STRONGEST * heat[..., None]
  return np.rint(share * colors + (1 - share) * picture).astype(np.uint8)


def short(name: str) -> str:
  """A name that fits into a title."""
  return name if len(name) <= NAME else f'{name[: NAME - 1]}…'


@plots.styled
def pair(title: str, titles: tuple[str, str], picture: np.ndarray, heat: np.ndarray) -> 'Figure':
  """A picture, and the map over it beside.

  Args:
    title: above both.
    titles: above each.
    picture: uint8 [H, W, C].
    heat: [H, W] from 0 to 1.
  """
  height, width = picture.shape[:2]
  figure = plots.new_figure(10, 5 * height / width + 1.1)
  figure.suptitle(title, x=0.01, ha='left')
  for axes, above, shown in zip(
    figure.subplots(1, 2), titles, (np.broadcast_to(picture, (height, width, 3)), overlay(picture, heat)), strict=True
  ):
    _show(axes, above, shown)
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
  across, side = (2 * width, 5.0) if beside else (width, 3.2)
  figure = plots.new_figure(max(side * columns, 8), (side * height / across + 0.75) * len(tiles) + 0.6)
  figure.suptitle(title, x=0.01, ha='left')
  axes_of = figure.subplots(len(tiles), columns, squeeze=False)
  for axes in axes_of.flat:
    axes.axis('off')
  for row, line in zip(axes_of, tiles, strict=True):
    for axes, tile in zip(row, line, strict=False):
      shown = overlay(tile.picture, tile.heat)
      if beside:
        shown = np.concatenate([np.broadcast_to(tile.picture, shown.shape), shown], 1)
      _show(axes, tile.title, shown)
  return figure


def _show(axes, title: str, picture: np.ndarray) -> None:
  axes.imshow(picture)
  axes.axis('off')
  axes.set_title(title, loc='left', fontsize=plots.FONT_SIZE - 2)
