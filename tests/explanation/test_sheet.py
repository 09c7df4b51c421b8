"""What overlays show, and figures that can be drawn."""

import io

import matplotlib
import numpy as np
import pytest
from PIL import Image

from dnt.explanation import sheet
from dnt.reporting import plots


def test_an_overlay_is_the_gray_image_where_the_map_is_zero_and_red_at_its_peak():
  original = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
  heat = np.zeros((4, 5), np.float32)
  heat[1, 2], heat[3, 4] = 20.0, 10.0
  found = sheet.overlay(original, heat)
  gray = np.asarray(Image.fromarray(original).convert('L')).astype(float)
  rest = heat == 0
  assert np.abs(found[rest] - gray[rest][:, None]).max() <= 1
  for place, fraction in (((1, 2), 1.0), ((3, 4), 0.5)):
    color = 255 * np.array(matplotlib.colormaps['turbo'](fraction)[:3])
    strength = sheet.STRONGEST * fraction
    np.testing.assert_allclose(found[place], strength * color + (1 - strength) * gray[place], atol=1.5)
  nothing = sheet.overlay(original[..., :1], np.zeros((4, 5), np.float32))
  np.testing.assert_array_equal(nothing, np.broadcast_to(original[..., :1], (4, 5, 3)))


@pytest.mark.parametrize('channels', [1, 3])
def test_figures_hold_titles_and_images(channels):
  original, heat = np.full((6, 8, channels), 90, np.uint8), np.eye(6, 8, dtype=np.float32)
  tile = sheet.Tile('a title\nof two lines', original, heat)
  pair = sheet.pair('file.png', tile, 'map of: cat')
  assert [axes.get_title(loc='left') for axes in pair.axes] == [tile.title, 'map of: cat']
  grid = sheet.grid('all', [[tile, tile], [tile]], beside=True)
  assert [axes.get_title(loc='left') for axes in grid.axes] == [tile.title] * 3 + ['']
  shown = grid.axes[0].images[0].get_array()
  assert shown.shape == (6, 16, 3)
  np.testing.assert_array_equal(shown[:, :8], np.full((6, 8, 3), 90))
  np.testing.assert_array_equal(shown[:, 8:], sheet.overlay(original, heat))
  with Image.open(io.BytesIO(plots.png(sheet.grid('all', [[tile, tile]])))) as image:
    assert image.size[0] >= 800


def test_a_long_name_is_cut():
  assert sheet.short('Ferrari 458 Italia Coupe 2012') == 'Ferrari 458 Italia Co…'
  assert sheet.short('minivan') == 'minivan'
