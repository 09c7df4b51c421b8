"""Parses durations: strings such as '400' (steps), '5 epochs', '10%' (of the run) and '0' (never)."""

import re

from dnt import errors

DURATION = re.compile(r'\s*(\d+(?:\.\d+)?)\s*(steps?|epochs?|%)?\s*')
LARGEST = 2**31 - 1  # of the counter of steps, int32
VALID = "must be a duration: '400' or '400 steps', '5 epochs', or '10%' of the run"


def period(text: str, total_steps: int, steps_per_epoch: float) -> float:
  """Returns a duration in steps, not rounded.

  Args:
    text: '400', '400 steps', '5 epochs' or '10%'.
    total_steps: steps of the whole run, of which '10%' is a tenth.
    steps_per_epoch: steps in one pass over the training split (need not be whole).

  Raises:
    errors.InputError: `text` is not a duration.
  """
  match = DURATION.fullmatch(text)
  if not match:
    raise errors.InputError(f'{text!r} {VALID}')
  number, unit = float(match[1]), (match[2] or 'steps').rstrip('s')
  return number * {'step': 1, 'epoch': steps_per_epoch, '%': total_steps / 100}[unit]


def duration(text: str, total_steps: int, steps_per_epoch: float) -> int:
  """Returns a duration in steps, at most `LARGEST`; see `period`. It is rounded by `nearest`."""
  return nearest(min(period(text, total_steps, steps_per_epoch), LARGEST))


def nearest(steps: float) -> int:
  """Rounds to the nearest whole number of steps, halves up, so that half of one step is not none."""
  return int(steps + 0.5)
