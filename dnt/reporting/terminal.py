"""Shows what dnt logs on the standard output of a program, and a status line below it.

Modules log with `logging.getLogger(__name__)`, and a program shows these lines with `console`. Where dnt is used as a
library, the user's own configuration of `logging` decides where the lines go, and there is no status line.
"""

import contextlib
import logging
import math
import shutil
import sys
import time
from collections.abc import Callable, Generator
from typing import TextIO

_ROOT = logging.getLogger('dnt')
_log = logging.getLogger(__name__)


@contextlib.contextmanager
def console(stream: TextIO | None = None) -> Generator[None]:
  """Shows what dnt logs while the context is open: lines of the lead process alone, as plain text, flushed.

  Warnings and errors go to standard error.

  Args:
    stream: stream to print to; None: standard output.
  """
  handler, before = _Console(stream), (_ROOT.level, _ROOT.propagate)
  _ROOT.addHandler(handler)
  _ROOT.setLevel(logging.INFO)
  _ROOT.propagate = False  # the root's handler would show each line again
  try:
    yield
  finally:
    _ROOT.removeHandler(handler)
    _ROOT.setLevel(before[0])
    _ROOT.propagate = before[1]
    handler.draw('')


class _Console(logging.Handler):
  """Prints lines above a status line, which it rewrites in place if the stream is a terminal."""

  # rich and tqdm do not replace `draw`. rich's Live prints nothing to a pipe before its end, so this class would still
  # have to write the lines of a log file, and a process that ends at once, as after a second Ctrl-C, leaves the cursor
  # hidden. tqdm fills a pipe with carriage returns.

  def __init__(self, stream: TextIO | None):
    super().__init__()
    self._own, self._status = stream, ''

  @property
  def _stream(self) -> TextIO:
    return self._own or sys.stdout

  @property
  def in_place(self) -> bool:
    """Returns whether a status line can be rewritten."""
    return self._stream.isatty()

  def emit(self, record: logging.LogRecord) -> None:
    """Prints a record; a failure, such as a full disk or a closed pipe, raises an error as `print` does."""
    if not _is_lead():
      return
    status = self._status
    self.draw('')
    if record.levelno < logging.WARNING:
      self._stream.write(f'{self.format(record)}\n')
      self._stream.flush()
    else:
      sys.stderr.write(f'{record.levelname.lower()}: {self.format(record)}\n')
      sys.stderr.flush()
    self.draw(status)

  def draw(self, text: str) -> None:
    """Replaces the status line on a terminal by `text`; '' clears it."""
    if not _is_lead():
      return
    assert self.lock is not None  # `logging.Handler` made it
    with self.lock:
      if not self._status and not text:
        return  # a stream that is full or closed has failed already
      if self._status:
        self._stream.write('\r\x1b[K')
      self._status = text[: shutil.get_terminal_size().columns - 1]
      self._stream.write(self._status)
      self._stream.flush()

  def leave(self) -> None:
    """Ends the status line and leaves it on screen."""
    assert self.lock is not None  # `logging.Handler` made it
    with self.lock:
      if self._status:
        self._stream.write('\n')
        self._stream.flush()
      self._status = ''


def _is_lead() -> bool:
  # A process that has joined no others is the lead. Only those that have ask jax, because that initializes the devices:
  # too early, or in a program that leaves them to the processes it starts.
  jax = sys.modules.get('jax')
  return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


class StatusLine:
  """Shows the status of a piece of work: on a terminal as the last line, elsewhere as a log line from time to time."""

  def __init__(self, clock: Callable[[], float] = time.monotonic):
    """Starts the clock, which returns increasing seconds."""
    self._clock = clock
    self._start = clock()
    self._shown_at = -math.inf

  def update(self, text: str, at_once: bool = False) -> None:
    """Shows `text` as the status, if the last update was long enough ago or `at_once` is set."""
    now, shown = self._clock(), _terminal()
    # A log file gets a line every 10 s at first, then ten per doubling of the time, and finally one every 5 min.
    interval = 0.1 if shown else min(max(10.0, (now - self._start) / 10), 300.0)
    if at_once or now - self._shown_at >= interval:
      self._shown_at = now
      if shown:
        shown.draw(text)
      else:
        _log.info(text)

  def close(self, leave: bool = False) -> None:
    """Clears the status line, or leaves it on screen if `leave` is set."""
    if shown := _terminal():
      shown.leave() if leave else shown.draw('')


def _terminal() -> _Console | None:
  """Returns the console of the program if it can rewrite a line."""
  return next((each for each in _ROOT.handlers if isinstance(each, _Console) and each.in_place), None)
