"""Ends a program on Ctrl-C, SIGTERM or SIGHUP (a closed terminal), or lets work that must be saved take the signal.

By default a signal raises `Stopped` in the main thread. Python runs its handlers there only, between bytecodes, and a
compilation or a read from a slow disk may last minutes. So a thread, which reads the signals from Python's wake-up
pipe, ends the process if that takes longer than `GRACE`. It does so at once during an import, because extensions in C
print the traceback of an import that fails in them. Within `hold`, signals end nothing: the work takes them, saves and
raises `Stopped` itself. A second Ctrl-C ends the program at once, with code 130; where there is no program, as in a
notebook, it raises `KeyboardInterrupt`. A Ctrl-C less than `TOGETHER` after another counts with it: a signal that is
sent to all processes of a job reaches some of them twice, because a launcher or a comparison hands it on.

A program that a signal has stopped exits with 128 + its number.
"""

import contextlib
import math
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Generator
from typing import Any, NoReturn

from dnt import temporary

GRACE = 3.0  # seconds between a signal and the end of a program that has nothing to save
TOGETHER = 1.0  # seconds; longer than a comparison takes to hand a signal on
CODES = {128 + number: number for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)}  # exit codes of stops
_POLL = 0.1  # seconds
before_exit: list[
  Callable[[int], None]
] = []  # called with the exit code by `exit_at_once`; they take less than a second


class Stopped(KeyboardInterrupt):
  """A signal stops the program, and all that was to be saved is saved.

  Attributes:
    number: the number of the signal.
  """

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.number = number


class Watch:
  """Context of a program, in the main thread; see the module. SIGHUP stays ignored if it is, as under nohup.

  In another thread it has no handlers, and receives nothing: signals are the business of the main thread.

  Args:
    program: whether it is that of a program; otherwise of work in a process that is not dnt's to end.

  Attributes:
    first: the first signal that was received, or None.
    receive: takes the signals in place of the program, in a thread; set by `hold`.
    ends_at_once: whether a second Ctrl-C ends the program, or raises `KeyboardInterrupt`.
    interrupting: whether a signal raises `Stopped` all the same.
    handled: the first signal that has reached the main thread.
    raised: the signal that has raised `Stopped` there. Code in C may have turned that into another error.
  """

  def __init__(self, program: bool = True):
    self.first: int | None = None
    self.receive: Callable[[int], object] | None = None
    self.ends_at_once = True
    self.interrupting = False
    self.handled: int | None = None
    self.raised: int | None = None
    self._program = program
    self._presses = _Presses()  # those that have reached the main thread
    self._importing = False  # whether a signal has come during an import
    self._received = threading.Event()  # whether the thread has seen the first signal

  def __enter__(self) -> 'Watch':
    global _current
    if not in_main_thread():
      return self
    self._read, self._write = os.pipe()
    os.set_blocking(self._write, False)
    numbers = [number for number in CODES.values() if number != signal.SIGHUP or not _is_ignored(number)]
    # Python writes to the pipe only if a handler exists.
    self._handlers = {number: signal.signal(number, self._handle) for number in numbers}
    self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
    self._unraisable, sys.unraisablehook = sys.unraisablehook, self._ignored
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    self._outer, _current = _current, self
    return self

  def __exit__(self, *_: object) -> None:
    global _current
    if _current is not self:
      return
    sys.unraisablehook = self._unraisable
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    os.close(self._write)
    self._thread.join()
    os.close(self._read)
    _current = self._outer

  def leave(self, code: int) -> None:
    """Ends the process at once if a signal has come; Python would wait for threads, such as a compilation."""
    if self.handled or self.first:
      self._received.wait(GRACE)  # its line is printed
      exit_at_once(code)

  def _handle(self, number: int, frame: types.FrameType | None) -> None:
    self.handled = self.handled or number
    counts = number == signal.SIGINT and self._presses.add()
    if counts and self._presses.count > 1 and self.ends_at_once and not self._program:
      raise KeyboardInterrupt
    if not self.receive and _is_importing(frame):
      self._importing = True
    elif (self.interrupting or not self.receive) and not self.raised:  # once, as the program ends then
      self.raised = number
      raise Stopped(number)

  def _ignored(self, error: Any) -> None:
    """Shows an error that Python cannot raise where it is, as in a destructor, unless it is `Stopped`."""
    if not isinstance(error.exc_value, Stopped):
      self._unraisable(error)

  def _watch(self) -> None:
    presses, deadline = _Presses(), None
    signals = select.poll()  # `select.select` takes no descriptor above 1023
    signals.register(self._read, select.POLLIN)
    while True:
      if signals.poll(1000 * _POLL if deadline else None):
        received = os.read(self._read, 1)
        if not received:
          return
        number = received[0]
        if number not in self._handlers:
          continue
        self.first = self.first or number
        if number == signal.SIGINT and not presses.add():
          continue
        if self.receive:
          self.receive(number)
        elif not deadline:
          say(f'stopped by {signal.Signals(number).name}')
          deadline = time.monotonic() + GRACE
        self._received.set()
        if presses.count > 1 and self.ends_at_once and self._program:
          say('stopped at once; what was saved before remains')
          exit_at_once(128 + signal.SIGINT)
      if deadline and self.receive:
        deadline = time.monotonic() + GRACE
      if deadline and (self._importing or time.monotonic() > deadline):
        assert self.first is not None  # it set the deadline
        exit_at_once(128 + self.first)


class _Presses:
  """Counts the Ctrl-C's of a program; see `TOGETHER`."""

  def __init__(self):
    self.count = 0
    self._last = -math.inf  # time of the last one that counted

  def add(self) -> bool:
    """Counts one if it comes late enough; returns whether it did."""
    now = time.monotonic()
    if late := now - self._last > TOGETHER:
      self.count, self._last = self.count + 1, now
    return late


_current: Watch | None = None


@contextlib.contextmanager
def hold(receive: Callable[[int], object] = lambda number: None, ends_at_once: bool = True) -> Generator[Watch]:
  """Keeps signals from ending what runs in the context, in the main thread; in another one it does nothing.

  Args:
    receive: called in a thread with the number of each signal.
    ends_at_once: whether a second Ctrl-C ends the program all the same, or raises `KeyboardInterrupt`.

  Yields:
    The watch of the program; where there is none, as in a notebook, or in another thread, one for the context.
  """
  with contextlib.nullcontext(_current) if _current and in_main_thread() else Watch(program=False) as watch:
    before = watch.receive, watch.ends_at_once
    watch.receive, watch.ends_at_once = receive, ends_at_once
    try:
      yield watch
    finally:
      watch.receive, watch.ends_at_once = before


def hold_by_parts(part: str) -> contextlib.AbstractContextManager[Watch]:
  """Holds signals as `hold` does, for work that looks at `received` after each of its parts, and then saves and stops.

  Args:
    part: what a part is, for the line at the first signal.
  """
  numbers: list[int] = []

  def receive(number):
    if not numbers:
      say(f'stopping after this {part}; press Ctrl-C again to stop at once')
    numbers.append(number)

  return hold(receive)


def in_main_thread() -> bool:
  """Returns whether this is the thread in which Python handles signals."""
  return threading.current_thread() is threading.main_thread()


def received() -> int | None:
  """Returns the first signal that the program has received, if any."""
  return _current.first if _current else None


def exit_at_once(code: int) -> NoReturn:
  """Ends this process and its workers, with no cleanup but that of temporary folders; any thread may call it."""
  for call in before_exit:
    call(code)
  for child in multiprocessing.active_children():
    child.kill()
  temporary.remove_folders()
  os._exit(code)


def say(text: str) -> None:
  """Writes a line to the standard error; any thread may call it."""
  # This does not log: the main thread, which may never continue, could hold the lock of a handler.
  with contextlib.suppress(OSError):  # standard error may be closed
    sys.stderr.write(f'\n{text}\n')
    sys.stderr.flush()


def _is_importing(frame: types.FrameType | None) -> bool:
  while frame and not frame.f_code.co_filename.startswith('<frozen importlib'):
    frame = frame.f_back
  return frame is not None


def _is_ignored(number: int) -> bool:
  return signal.getsignal(number) == signal.SIG_IGN
