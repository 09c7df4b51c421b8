"""Shows a status line: rewritten in place on a terminal, or an occasional plain line in a log file."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO


class StatusLine:
  """Shows the status as the last line of the output, and prints other lines above it."""

  def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
    """Starts the clock.

    Args:
      stream: where to print; None: the standard output.
      clock: returns increasing seconds.
    """
    self._stream = stream or sys.stdout
    self._clock = clock
    self._in_place = self._stream.isatty()
    self._start = clock()
    self._shown_at = -math.inf
    self._line = ''

  def update(self, text: str, at_once: bool = False) -> None:
    """Shows `text` as the status, if the last update was long enough ago or `at_once` is set."""
    now = self._clock()
    # A log file gets a line every 10 s at first, then ten per doubling of the time, and finally one every 5 min.
    interval = 0.1 if self._in_place else min(max(10.0, (now - self._start) / 10), 300.0)
    if at_once or now - self._shown_at >= interval:
      self._shown_at = now
      self._show(text)

  def print(self, text: str) -> None:
    """Prints lines of their own above the status line."""
    line = self._line
    self._clear()
    self._stream.write(f'{text}\n')
    if line:
      self._show(line)
    self._stream.flush()

  def close(self, leave: bool = False) -> None:
    """Clears the status line, or leaves it on screen if `leave` is set."""
    if leave and self._line:
      self._stream.write('\n')
      self._line = ''
    self._clear()
    self._stream.flush()

  def _show(self, text: str) -> None:
    if self._in_place:
      self._clear()
      self._line = text[: shutil.get_terminal_size().columns - 1]
      self._stream.write(self._line)
    else:
      self._stream.write(f'{text}\n')
    self._stream.flush()

  def _clear(self) -> None:
    if self._in_place and self._line:
      self._stream.write('\r\x1b[K')
      self._line = ''
