"""Stops a run on Ctrl-C, SIGTERM or SIGHUP, at the same step in every process, after a checkpoint.

With one process, the first signal requests a stop from the loop. With several, it is passed to jax's preemption
service, which informs all processes; they agree on the next count that none has passed. So a signal, sent to one
process or to all, stops all of them at the same step, and all of them know which signal was the first.

A second Ctrl-C ends the program at once, see `signals`.
"""

import contextlib
import ctypes
import functools
import itertools
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from dnt.parallel import signals

T = TypeVar('T')


class _Interrupted(Exception):
  """Ends an attempt in every process."""


class Guard:
  """Context of a loop that signals can stop; enter it after `multihost.initialize`.

  In another thread than the main one, the signals of this process stop it only by way of jax's preemption service.

  Attributes:
    counter: counts the calls of `requested`, which several processes make equally often.
    stopped_by: number of the signal that stopped the loop, the same in every process; SIGPIPE if nobody reads the
      output any more; None before `requested` has returned True or `attempt` None.
  """

  def __init__(self):
    self.stopped_by: int | None = None
    self.counter = itertools.count()
    self._several = jax.distributed.is_initialized() and jax.process_count() > 1
    self._first: tuple[float, int] | None = None  # time and number of the first signal of this process
    self._requested = threading.Event()
    self._held = contextlib.ExitStack()

  def __enter__(self) -> 'Guard':
    self._inform = take_over() if self._several and signals.in_main_thread() else None
    self._watch = self._held.enter_context(signals.hold(self._receive))
    return self

  def __exit__(self, *error: object) -> None:
    self._held.close()

  def _receive(self, number: int) -> None:
    self._request(number, 'press Ctrl-C again to stop at once')

  def stop_without_output(self) -> None:
    """Requests a stop as a signal does, because nobody reads the output any more; any thread may call it."""
    self._request(signal.SIGPIPE, 'the output cannot be written')

  def _request(self, number: int, remark: str) -> None:
    if not self._requested.is_set():
      signals.say(f'stopping after this step, with a checkpoint; {remark}')
      self._first = (time.time(), number)
      self._requested.set()
      if self._inform:
        self._inform()

  def requested(self, count: int) -> bool:
    """Returns whether to stop now; the answer is the same in every process at the same count.

    Args:
      count: number of this call: 0, 1, 2, ... without gaps, equal in all processes.
    """
    if self.stopped_by is None:
      if not self._several:
        self.stopped_by = self._first and self._first[1]
      elif multihost_utils.reached_preemption_sync_point(count):
        self.stopped_by = self._agree()
        self._watch.first = self._watch.first or self.stopped_by
    return self.stopped_by is not None

  def _agree(self) -> int:
    """Returns the first signal that any process has received; every process calls this."""
    seconds, number = self._first or (0.0, 0)
    mine = np.array([int(seconds), int(seconds % 1 * 1e6), number], np.int32)
    everyone = multihost_utils.process_allgather(mine).tolist()
    return min((each for each in everyone if each[2]), default=(0, 0, signal.SIGTERM))[2]

  def interrupt(self) -> None:
    """Ends the attempt in which it is called, in each of several processes, if a signal has requested a stop.

    All processes call it equally often. A single process needs no calls: the signal itself ends its attempts.
    """
    if self._several and self.requested(next(self.counter)):
      raise _Interrupted

  def attempt(self, call: Callable[..., T], *args: Any, ends_alone: bool) -> T | None:
    """Calls a function that a signal may end: one that waits for data or a compilation, and does not change the run.

    With several processes, the others may be elsewhere. A signal then ends only a function that calls `interrupt`,
    in all of them, or one that ends alone, and this process with it.

    Args:
      call: returns anything but None.
      *args: its arguments.
      ends_alone: whether a signal may end the function in this process alone, because there is nothing to save.

    Returns:
      What the function returns, or None if a signal has ended it.

    Raises:
      signals.Stopped: a signal has ended it, in one of several processes.
    """
    if self._several and not ends_alone:
      with contextlib.suppress(_Interrupted):
        return call(*args)
      return None
    self._watch.interrupting = True
    try:
      if not self._watch.handled and not self._requested.is_set():
        return call(*args)
    except _Interrupted:
      return None
    except (signals.Stopped, Exception):
      if not self._watch.raised:
        raise
    finally:
      self._watch.interrupting = False
    number = self._watch.handled or signal.SIGPIPE
    if self._several:
      raise signals.Stopped(number)
    self._watch.raised, self.stopped_by = None, number
    return None


@functools.cache
def take_over() -> Callable[[], None]:
  """Takes SIGTERM over from jax's preemption service, whose handler in C hides the signal from Python.

  Call it once the service runs.

  Returns:
    A function that informs the service, as the signal would.
  """
  library = ctypes.CDLL(None)
  library.signal.argtypes, library.signal.restype = (ctypes.c_int, ctypes.c_void_p), ctypes.c_void_p
  handler = library.signal(signal.SIGTERM, None)
  assert handler, 'the service handles SIGTERM'
  signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))  # Python has not noticed that its own was replaced
  return functools.partial(ctypes.CFUNCTYPE(None, ctypes.c_int)(handler), signal.SIGTERM)
