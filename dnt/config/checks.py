"""Checks for config values. Each takes a value and returns its problem, or None."""

import math
import re
from collections.abc import Callable
from typing import Any

from dnt.config import measures
from dnt.config.durations import DURATION, LARGEST, VALID

LARGEST_SEED = 2**32 - 1  # jax's keys take the lower 32 bits: 2**32 would draw what 0 does
LARGEST_DATA_SEED = 2**63 - 1  # NumPy's take more
LARGEST_FLOAT = float.fromhex('0x1.fffffep+127')  # of float32
WHOLE = 'whole'  # in `config.sharding`: no axis is split
_TOO_LARGE = f'must be at most {LARGEST:,}'


def at_least(low: float) -> Callable[[Any], str | None]:
  """Makes a check for low <= value; a whole number must fit into int32 too."""

  def check(value):
    if value < low:
      return f'must be at least {low}'
    return _TOO_LARGE if isinstance(value, int) and value > LARGEST else None

  return check


def seed(value: int) -> str | None:
  return None if 0 <= value <= LARGEST_SEED else f'must be at least 0 and at most {LARGEST_SEED:,}'


def above(low: float) -> Callable[[Any], str | None]:
  return lambda value: None if value > low else f'must be above {low}'


def within(low: float, high: float) -> Callable[[Any], str | None]:
  """Makes a check for low <= value < high."""
  return lambda value: None if low <= value < high else f'must be at least {low} and below {high}'


def between(low: float, high: float) -> Callable[[Any], str | None]:
  """Makes a check for low <= value <= high."""
  return lambda value: None if low <= value <= high else f'must be at least {low} and at most {high}'


def fraction(value: float) -> str | None:
  return None if 0 < value <= 1 else 'must be above 0 and at most 1'


def duration(value: str) -> str | None:
  match = DURATION.fullmatch(value)
  if not match:
    return VALID
  number, in_steps = float(match[1]), (match[2] or 'steps').startswith('step')
  if in_steps and 0 < number < 1:  # as torch's `pct_start` is given
    return f"must be at least a step, or 0; this fraction of the run is '{100 * number:g}%'"
  return None if number <= LARGEST else _TOO_LARGE


def durations(values: tuple[str | int | float, ...]) -> str | None:
  problems = (duration(str(value)) if isinstance(value, str | int | float) else VALID for value in values)
  return next((f'each {problem}' for problem in problems if problem), None)


def numbers(values: tuple[float, ...]) -> str | None:
  good = all(isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values)
  return None if good else 'must hold finite numbers only'


def means(values: tuple[float, ...]) -> str | None:
  problem = (
    'must hold numbers from 0 to 1, as a pixel of 255 is 1: divide mean and std on the scale of 0 to 255 by 255 '
    '(a run that an older version trained with others is evaluated with that version)'
  )
  return numbers(values) or (None if all(0 <= v <= 1 for v in values) else problem)


def deviations(values: tuple[float, ...]) -> str | None:
  return numbers(values) or (None if all(v > 0 for v in values) else 'must hold numbers above 0 only')


def variances(values: tuple[float, ...]) -> str | None:
  return deviations(values) or (None if values else 'must hold at least one number')


def weights(values: tuple[float, ...]) -> str | None:
  def good():
    return not values or (min(values) >= 0 and max(values) > 0)

  return numbers(values) or (None if good() else 'must hold numbers of at least 0, not all of them 0')


def spreads(values: tuple[float, ...]) -> str | None:
  good = values and not numbers(values) and min(values) >= 0
  return None if good else 'must hold numbers of at least 0'


def counts(values: tuple[int, ...]) -> str | None:
  good = values and all(type(v) is int and 1 <= v <= LARGEST for v in values) and len(set(values)) == len(values)
  return None if good else f'must hold different whole numbers from 1 to {LARGEST:,}'


def different(values: tuple[str, ...]) -> str | None:
  good = values and len(set(values)) == len(values)
  return None if good else 'must hold at least one name, and no name twice'


def texts(values: tuple[str, ...]) -> str | None:
  return None if values and all(isinstance(v, str) and v for v in values) else 'must hold at least one name'


def ranking(value: str) -> str | None:
  split, slash, quantity = value.rpartition('/')
  *names, last = (*measures.MORE_IS_BETTER, *measures.LESS_IS_BETTER)
  good = quantity in (*names, last) and bool(split) == bool(slash)
  return None if good else f"must be {', '.join(names)} or {last}, or one of them on a split, such as 'test/accuracy'"


def seeds(values: tuple[int, ...]) -> str | None:
  good = values and all(type(v) is int and not seed(v) for v in values) and len(set(values)) == len(values)
  return None if good else f'must hold different whole numbers from 0 to {LARGEST_SEED:,}'


def pattern(value: str) -> str | None:
  try:
    re.compile(value)
  except re.error as error:
    return f'must be a regular expression ({error})'
  return None


def patterns(values: tuple[str, ...]) -> str | None:
  good = all(isinstance(value, str) and value for value in values)
  problems = (pattern(value) for value in values) if good else ('must hold regular expressions only',)
  return next((problem for problem in problems if problem), None)


def rates(values: tuple[tuple[str, float], ...]) -> str | None:
  for value in values:
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    if not pair or numbers(value[1:]) or value[1] < 0:
      return "must hold pairs (pattern, factor of at least 0), such as (('stage4/.*', 0.1),)"
    if pattern(value[0]):
      return pattern(value[0])
  return None


def sharding(values: tuple[tuple[str, int | str], ...]) -> str | None:
  for value in values:
    pair = isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str)
    if not pair or not (type(value[1]) is int or value[1] == WHOLE):
      return f"must hold pairs (pattern, axis or '{WHOLE}'), such as (('head/.*kernel', 0), ('stem/.*', '{WHOLE}'))"
    if pattern(value[0]):
      return pattern(value[0])
  return None


def phases(values: tuple[tuple[str, str], ...]) -> str | None:
  for value in values:
    if not (isinstance(value, tuple) and len(value) == 2 and all(isinstance(part, str) for part in value)):
      return "must hold pairs (duration, entries that train from then on), such as (('20%', 'top:2'), ('50%', 'all'))"
    if duration(value[0]) or pattern(value[1]):
      return duration(value[0]) or pattern(value[1])
  return None
