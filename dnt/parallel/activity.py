"""Says what this process is doing: the main thread notes it, and any other thread reads it."""

import pathlib
import sys
import threading
import time
from typing import Any, NamedTuple

_PACKAGE = str(pathlib.Path(__file__).parents[1])  # dnt


class Activity(NamedTuple):
  """Describes what the main thread does.

  Attributes:
    phase: in words, such as `starts`, `reads data` or `saves a checkpoint`.
    step: steps done.
    since: `time.monotonic()` when it began.
  """

  phase: str
  step: int
  since: float


_current = Activity('starts', 0, time.monotonic())


def note(phase: str, step: int) -> None:
  """Notes that a phase begins after `step` steps."""
  global _current
  _current = Activity(phase, step, time.monotonic())


def describe() -> dict[str, Any]:
  """Returns the activity as JSON values: phase, step, its seconds so far, and `at`, where the main thread is."""
  now = _current
  return {'phase': now.phase, 'step': now.step, 'seconds': time.monotonic() - now.since, 'at': _place()}


def _place() -> str:
  """Returns where the main thread is: its innermost call and the calls in dnt around it, `file:line function < ...`."""
  main = threading.main_thread().ident
  frame = sys._current_frames().get(main) if main is not None else None
  calls = []
  while frame is not None and len(calls) < 4:
    path = frame.f_code.co_filename
    inside = path.startswith(_PACKAGE)
    if not calls or inside:
      shown = path.removeprefix(f'{_PACKAGE}/') if inside else pathlib.PurePath(path).name
      calls.append(f'{shown}:{frame.f_lineno} {frame.f_code.co_name}')
    frame = frame.f_back
  return ' < '.join(calls)
