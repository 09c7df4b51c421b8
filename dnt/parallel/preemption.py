"""Stops a run on Ctrl-C or SIGTERM, at the same step in every process, after a checkpoint.

With one process, the first SIGINT or SIGTERM requests a stop from the loop. With several, jax's preemption service
handles SIGTERM (in C++, so no Python handler may replace it). It informs all processes, which agree on the next count
that none has passed. This module forwards SIGINT to the service as SIGTERM. So either signal, sent to one process or to
all, stops all of them at the same step.

A second Ctrl-C ends the process at once, with code 130.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from types import TracebackType

import jax
from jax.experimental import multihost_utils


class Guard:
  """Context of a loop that signals can stop; enter it in the main thread, after `multihost.initialize`.

  A separate thread reads the signals from Python's wake-up pipe. A Python handler would have to wait for the main
  thread, which may be busy in a compilation or in a collective that never ends.
  """

  def __enter__(self) -> 'Guard':
    self._several = jax.distributed.is_initialized()
    self._requested = threading.Event()
    self._agreed = False
    self._read, write = os.pipe()
    os.set_blocking(write, False)
    self._write = write
    numbers = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
    # Python writes to the pipe only if a handler exists; the handler itself does nothing.
    self._handlers = {number: signal.signal(number, lambda *_: None) for number in numbers}
    self._wakeup = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()
    return self

  def __exit__(self, kind: type | None, error: BaseException | None, traceback: TracebackType | None) -> None:
    signal.set_wakeup_fd(self._wakeup)
    for number, handler in self._handlers.items():
      signal.signal(number, handler)
    os.close(self._write)
    self._thread.join()
    os.close(self._read)

  def _watch(self) -> None:
    interrupts = 0
    while received := os.read(self._read, 1):
      number = received[0]
      if number not in self._handlers:
        continue
      interrupts += number == signal.SIGINT
      if interrupts > 1:
        say('stopped at once; the last finished checkpoint remains')
        exit_at_once(130)
      self._request('press Ctrl-C again to stop at once')

  def stop_without_output(self) -> None:
    """Requests a stop as a signal does, because nobody reads the output any more; any thread may call it."""
    self._request('the output cannot be written')

  def _request(self, remark: str) -> None:
    if not self._requested.is_set():
      say(f'stopping after this step, with a checkpoint; {remark}')
      self._requested.set()
      if self._several:
        os.kill(os.getpid(), signal.SIGTERM)

  def requested(self, count: int) -> bool:
    """Returns whether to stop now; the answer is the same in every process at the same count.

    Args:
      count: number of this call: 0, 1, 2, ... without gaps, equal in all processes.
    """
    if self._several:
      self._agreed = self._agreed or multihost_utils.reached_preemption_sync_point(count)
      return self._agreed
    return self._requested.is_set()


def exit_at_once(code: int) -> None:
  """Ends this process and its workers without any cleanup; any thread may call it."""
  for child in multiprocessing.active_children():
    child.kill()
  os._exit(code)


def say(text: str) -> None:
  """Writes a line to the standard error; any thread may call it."""
  # This does not log: the main thread, which may never continue, could hold the lock of a handler.
  with contextlib.suppress(OSError):  # standard error may be closed
    sys.stderr.write(f'\n{text}\n')
    sys.stderr.flush()
