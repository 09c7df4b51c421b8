"""Says what this process is doing: the thread that trains notes it, and any other thread reads it."""

import pathlib
import sys
import threading
import time
from typing import NamedTuple, TypedDict

START, READ, COMPILE, WAIT = 'starts', 'reads data', 'compiles', 'waits for the devices and the other processes'
EVALUATE, SAVE, END = 'evaluates', 'saves a checkpoint', 'ends'
_PACKAGE = str(pathlib.Path(__file__).parents[1])  # dnt


class Activity(NamedTuple):
  """Holds what the thread that trains does.

  Attributes:
    phase: one of the constants.
    step: steps done.
    since: `time.monotonic()` when it began.
    thread: identifier of the thread.
  """

  phase: str
  step: int
  since: float
  thread: int


class Description(TypedDict):
  """Describes an activity in JSON values: also its seconds so far, and `at`, where its thread is."""

  phase: str
  step: int
  seconds: float
  at: str


_current = Activity(START, 0, time.monotonic(), threading.main_thread().ident or 0)


def note(phase: str, step: int) -> None:
  """Notes that a phase begins after `step` steps."""
  global _current
  _current = Activity(phase, step, time.monotonic(), threading.get_ident())


def describe() -> Description:
  """Returns what the thread that trains does; any thread may call it."""
  now = _current
  return {'phase': now.phase, 'step': now.step, 'seconds': time.monotonic() - now.since, 'at': _place(now.thread)}


def _place(thread: int) -> str:
  """Returns where a thread is: its innermost call and the calls in dnt around it, `file:line function < ...`."""
  frame = sys._current_frames().get(thread)
  calls = []
  while frame is not None and len(calls) < 4:
    path = frame.f_code.co_filename
    inside = path.startswith(_PACKAGE)
    if not calls or inside:
      shown = path.removeprefix(f'{_PACKAGE}/') if inside else pathlib.PurePath(path).name
      calls.append(f'{shown}:{frame.f_lineno} {frame.f_code.co_name}')
    frame = frame.f_back
  return ' < '.join(calls)
