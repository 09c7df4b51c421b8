import io
import logging

import numpy as np
import pytest
from matplotlib import text
from PIL import Image

from dnt.reporting import fonts, plots, terminal

WATCH = '\u231a'  # in STIX, which comes with matplotlib, and not in its default font
NOWHERE = '\U000f1234'  # for private use


def draw(*names):
  figure = plots.confusion(np.eye(len(names), dtype=int), names, 'a title')
  return figure, np.asarray(Image.open(io.BytesIO(plots.png(figure))))


def test_characters_are_drawn_with_a_font_that_has_them(caplog):
  with caplog.at_level(logging.INFO, 'dnt'):
    figure, pixels = draw(f'{WATCH} watch', 'bee')
  assert any('STIX' in name for each in figure.findobj(text.Text) for name in each.get_fontfamily())
  assert not caplog.records
  _, other = draw(f'{NOWHERE} watch', 'bee')
  assert pixels.shape != other.shape or not np.array_equal(pixels, other)


def test_characters_that_no_font_has_are_one_line_and_no_warning(caplog):
  terminal.say_once.cache_clear()
  with caplog.at_level(logging.INFO, 'dnt'):
    draw(f'{NOWHERE}{NOWHERE}', 'bee')
    for _ in range(2):
      draw(f'{NOWHERE}{WATCH}', f'x {NOWHERE}', 'bee')
  (line,) = (record.getMessage() for record in caplog.records)
  assert NOWHERE in line and WATCH not in line and 'font' in line


def test_other_warnings_stay_and_usual_names_take_one_drawing():
  calls = []
  fonts.draw(None, lambda: calls.append(1))
  assert len(calls) == 1

  def warn():
    import warnings

    warnings.warn('something else', UserWarning)

  with pytest.warns(UserWarning, match='something else'):
    fonts.draw(None, warn)


def test_a_dollar_is_no_formula():
  _, pixels = draw('$5_to_$9', r'a$\frac$b')
  assert pixels.size
