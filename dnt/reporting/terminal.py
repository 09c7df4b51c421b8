"""A status line: rewritten in place on a terminal, a plain line now and then in a log file."""

import math
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO


class StatusLine:
  """The last line of the output, and lines printed above it."""

  def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
    """Starts the clock.

    Args:
      stream: where to print; the standard output when not given.
      clock: seconds, rising.
    """
    self._stream = stream or sys.stdout
    self._clock = clock
    self._in_place = self._stream.isatty()
    self._start = clock()
    self._shown_at = -math.inf
    self._line = ''

  def update(self, text: str, at_once: bool = False) -> None:
    """Shows `text` as the status, if the last time was long enough ago or it is to be shown at once."""
    now = self._clock()
    # A log file gets a line every 10 s at first, then ten over each doubling of the time, and one in 5 min at last.
    interval = 0.1 if self._in_place else min(max(10.0, (now - self._start) / 10), 300.0)
    if at_once or now - self._shown_at >= interval:
      self._shown_at = now
      self._show(text)

  def print(self, text: str) -> None:
    """Prints lines of their own above the status."""
    line = self._line
    self._clear()
    self._stream.write(f'{text}\n')
    if line:
      self._show(line)
    self._stream.flush()

  def close(self, leave: bool = False) -> None:
    """Takes the status away, or leaves it standing."""
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
