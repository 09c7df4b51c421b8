"""Draws characters that the default font of plots lacks, such as Chinese ones, with an installed font that has them."""

import functools
import logging
import re
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dnt.reporting import terminal

if TYPE_CHECKING:
  from matplotlib.figure import Figure

_log = logging.getLogger(__name__)
_MISSING = re.compile(r'Glyph (\d+) .*missing from')  # matplotlib's warning
_NOT_READABLE = 'Last Resort'  # comes with matplotlib, and has a box for every character


def draw(figure: 'Figure', render: Callable[[], Any]) -> None:
  """Draws a figure, again with more fonts if the default one lacks characters; one line names those that none has.

  Args:
    figure: the figure.
    render: draws it, each time as the only drawing.
  """
  missing = _render(render)
  if not missing:
    return
  from matplotlib import text

  chosen, left = _fonts_with(frozenset(missing))
  if chosen:
    for each in figure.findobj(text.Text):  # those of ticks exist since the figure was drawn
      each.set_fontfamily([*each.get_fontfamily(), *chosen])
    _render(render)
  if left:
    terminal.say_once(
      _log,
      f'no installed font has the characters {"".join(map(chr, sorted(left)))}, so plots show boxes; install one, such '
      'as Noto Sans CJK',
    )


def _render(render: Callable[[], Any]) -> set[int]:
  """Draws, and returns the characters that were missing, in place of a warning for each."""
  with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter('always')
    render()
  found = {each: _MISSING.match(str(each.message)) for each in caught}
  for each, match in found.items():
    if not match:
      warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
  return {int(match[1]) for match in found.values() if match}


@functools.cache
def _fonts_with(characters: frozenset[int]) -> tuple[list[str], set[int]]:
  """Returns the names of installed fonts that have the characters, as few as necessary, and those that none has."""
  from matplotlib import font_manager

  upright = (font for font in font_manager.fontManager.ttflist if font.style == 'normal' and font.weight == 400)
  files = {font.name: font.fname for font in upright if _NOT_READABLE not in font.name}
  has = {name: characters & font_manager.get_font(path).get_charmap().keys() for name, path in sorted(files.items())}
  chosen, left = [], set(characters)
  while best := max(has, key=lambda name: len(has[name] & left), default=''):
    if not has[best] & left:
      break
    chosen.append(best)
    left -= has[best]
  return chosen, left
