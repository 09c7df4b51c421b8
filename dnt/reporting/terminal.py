"""Shows what dnt logs on the standard output of a program, and a status line below it.

Modules log with `logging.getLogger(__name__)`, and a program shows these lines with `console`. Where dnt is used as a
library, the user's own configuration of `logging` decides where the lines go, and there is no status line.
"""

import contextlib
import errno
import functools
import logging
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Generator
from typing import TextIO

_ROOT = logging.getLogger('dnt')
_log = logging.getLogger(__name__)
_JAX = logging.getLogger('jax._src.xla_bridge')  # says that it computes on the CPU although there is a GPU or TPU


class OutputError(Exception):
  """Standard output or standard error can no longer be written.

  Attributes:
    closed: whether its reader ended, as `head` does; if not, a write failed, as on a full disk.
  """

  def __init__(self, error: OSError):
    super().__init__(f'the output cannot be written ({error.strerror})')
    self.closed = error.errno == errno.EPIPE


@contextlib.contextmanager
def console(stream: TextIO | None = None) -> Generator['_Console']:
  """Shows what dnt logs while the context is open: lines of the lead process alone, as plain text, flushed.

  Warnings and errors go to standard error, and so do jax's, of every process, about devices that it cannot use.

  Args:
    stream: stream to print to; None: standard output.

  Yields:
    The handler; its `lost` is set if a line could not be written within `outlive`.

  Raises:
    OutputError: a line cannot be written.
  """
  # Programs would hide jax's warnings with those of all libraries. They are no `_Console`'s, which would ask jax which
  # process is the lead: jax warns while it holds its lock.
  handler, fallbacks = _Console(stream), logging.StreamHandler()
  fallbacks.setFormatter(logging.Formatter('warning: %(message)s'))
  try:
    with _attached(_ROOT, handler, logging.INFO), _attached(_JAX, fallbacks, logging.WARNING):
      yield handler
  finally:
    handler.draw('')


@contextlib.contextmanager
def _attached(log: logging.Logger, handler: logging.Handler, level: int) -> Generator[None]:
  """Gives a logger a handler and a level while the context is open, and keeps its lines from the handlers above it."""
  before = log.level, log.propagate
  log.addHandler(handler)
  log.setLevel(level)
  log.propagate = False  # the root's handler would show each line again
  try:
    yield
  finally:
    log.removeHandler(handler)
    log.setLevel(before[0])
    log.propagate = before[1]


@contextlib.contextmanager
def outlive(stop: Callable[[], None]) -> Generator[None]:
  """Lets the work in the context outlive the output of the program.

  The first line that cannot be written calls `stop`, which asks the work to save and end; no more lines are written.

  Args:
    stop: asks the work to end; it must not log.
  """
  consoles = [each for each in _ROOT.handlers if isinstance(each, _Console)]
  for each in consoles:
    each.stop = stop
  try:
    yield
  finally:
    for each in consoles:
      each.stop = None


def check_output() -> None:
  """Writes what standard output still holds.

  Raises:
    OutputError: it cannot be written.
  """
  try:
    sys.stdout.flush()
  except OSError as error:
    raise OutputError(error) from error


def is_writable(stream: TextIO) -> bool:
  """Returns whether a stream takes output; to find out, it ends the current line."""
  try:
    stream.write('\n')
    stream.flush()
  except OSError:
    return False
  return True


def discard(stream: TextIO) -> None:
  """Sends what a stream holds and receives from now on to nowhere, so that Python's exit does not report it again."""
  with contextlib.suppress(OSError, ValueError):  # a stream without a file
    number = os.open(os.devnull, os.O_WRONLY)
    os.dup2(number, stream.fileno())
    os.close(number)


@functools.cache
def say_once(log: logging.Logger, line: str) -> None:
  """Logs a line that several parts of a program come to, such as its splits, its plots or its trials, only once."""
  log.info(line)


class _Console(logging.Handler):
  """Prints lines above a status line, which it rewrites in place if the stream is a terminal."""

  # rich and tqdm do not replace `draw`. rich's Live prints nothing to a pipe before its end, so this class would still
  # have to write the lines of a log file, and a process that ends at once, as after a second Ctrl-C, leaves the cursor
  # hidden. tqdm fills a pipe with carriage returns.

  def __init__(self, stream: TextIO | None):
    super().__init__()
    self._own, self.status = stream, ''
    self.stop: Callable[[], None] | None = None  # called instead of raising an error when a write fails
    self.lost: OutputError | None = None  # the reason why nothing is written any more

  @property
  def _stream(self) -> TextIO:
    return self._own or sys.stdout

  @property
  def in_place(self) -> bool:
    """Returns whether a status line can be rewritten."""
    return self._stream.isatty()

  def emit(self, record: logging.LogRecord) -> None:
    """Prints a record.

    Raises:
      OutputError: the line cannot be written, because of a full disk or a closed pipe.
    """
    if not _is_lead():
      return
    status = self.status
    self.draw('')
    if record.levelno < logging.WARNING:
      self._write(self._stream, f'{self.format(record)}\n')
    else:
      self._write(sys.stderr, f'{record.levelname.lower()}: {self.format(record)}\n')
    self.draw(status)

  def _write(self, stream: TextIO, text: str) -> None:
    if self.lost:
      return
    try:
      stream.write(text)
      stream.flush()
    except OSError as error:
      self.lost = OutputError(error)
      discard(stream)
      if not self.stop:
        raise self.lost from error
      self.stop()

  def draw(self, text: str) -> None:
    """Replaces the status line on a terminal by `text`; '' clears it."""
    if not _is_lead():
      return
    assert self.lock is not None  # `logging.Handler` made it
    with self.lock:
      if not self.status and not text:
        return  # a stream that is full or closed has failed already
      clear = '\r\x1b[K' if self.status else ''
      self.status = text[: shutil.get_terminal_size().columns - 1]
      self._write(self._stream, clear + self.status)

  def leave(self) -> None:
    """Ends the status line and leaves it on screen."""
    assert self.lock is not None  # `logging.Handler` made it
    with self.lock:
      if self.status:
        self._write(self._stream, '\n')
      self.status = ''


def _is_lead() -> bool:
  # A process that has joined no others is the lead. Only those that have ask jax, because that initializes the devices:
  # too early, or in a program that leaves them to the processes it starts.
  jax = sys.modules.get('jax')
  return jax is None or not jax.distributed.is_initialized() or jax.process_index() == 0


class StatusLine:
  """Shows the status of a piece of work: on a terminal as the last line, elsewhere as a log line from time to time."""

  def __init__(self, clock: Callable[[], float] = time.monotonic, at_start: bool = True):
    """Starts the clock.

    Args:
      clock: returns increasing seconds.
      at_start: whether the first update is shown at once, and not only when work takes longer than 0.1 s on a terminal
        or 10 s in a log file.
    """
    self._clock = clock
    self._start = clock()
    self._shown_at = -math.inf if at_start else self._start
    self._before: str | None = None  # what the terminal showed before the first line

  def update(self, text: str, at_once: bool = False) -> None:
    """Shows `text` as the status, if the last update was long enough ago or `at_once` is set."""
    now, shown = self._clock(), _terminal()
    # A log file gets a line every 10 s at first, then ten per doubling of the time, and finally one every 5 min.
    interval = 0.1 if shown else min(max(10.0, (now - self._start) / 10), 300.0)
    if at_once or now - self._shown_at >= interval:
      self._shown_at = now
      if shown:
        if self._before is None:
          self._before = shown.status
        shown.draw(text)
      else:
        _log.info(text)

  def close(self, leave: bool = False) -> None:
    """Shows again what the terminal showed before, or leaves the line on screen if `leave` is set."""
    if self._before is not None and (shown := _terminal()):
      shown.leave() if leave else shown.draw(self._before)
    self._before = None


def _terminal() -> _Console | None:
  """Returns the console of the program if it can rewrite a line."""
  return next((each for each in _ROOT.handlers if isinstance(each, _Console) and each.in_place), None)
