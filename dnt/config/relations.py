"""Relations between options: an option has an effect only with certain values of other options, its owners.

`Option.only` declares them: conditions by key, all of which must hold, or several such mappings, one of which must
hold. A condition is a tuple of values or `any_but(...)`. The owner `PROGRAM` stands for the running program:
'--mode=<mode>' of dnt.main, 'dnt.probe', 'dnt.probe --try' or 'dnt.rehearse'.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any

from dnt.config.durations import DURATION

PROGRAM = 'program'
TRAINING = '--mode=train'
PROBE = 'dnt.probe'
TRYING = 'dnt.probe --try'  # a condition that names the probe holds for it too
REHEARSE = 'dnt.rehearse'
_SLICE = re.compile(r'([\w.-]+)\[.*:.*\]')  # of a split


class Except(tuple):
  """A condition that holds for all values except these."""


Condition = tuple[Any, ...]
Only = Mapping[str, Condition] | tuple[Mapping[str, Condition], ...]


def any_but(*values: Any) -> Except:
  """Returns a condition that holds for all values except these."""
  return Except(values)


def alternatives(only: Only) -> tuple[Mapping[str, Condition], ...]:
  """Returns the mappings, one of which must hold; empty if the option always has an effect."""
  if isinstance(only, Mapping):
    return (only,) if only else ()
  return only


def failing(only: Only, get: Callable[[str], Any]) -> list[str]:
  """Returns the owners that prevent an option from having an effect; empty if it has one, or may have one.

  An owner that is not set (None) may still get any value from weights, data or model. Its condition therefore counts as
  met, unless a condition for this owner names None. The same holds for every option of a network that its weights
  determine, and for the fields of a user's own module.

  Args:
    only: the relation.
    get: returns the value of an owner.
  """
  sets = alternatives(only)
  strict = {owner for each in sets for owner, condition in each.items() if None in condition}

  def met(owner: str, condition: Condition) -> bool:
    value = get(owner)
    if value is None and owner not in strict:
      return True
    if owner.startswith('model.') and get('model.name') == 'pretrained':
      return True
    if owner == 'model.name' and ':' in value:
      return True
    if owner == PROGRAM and value == TRYING and PROBE in condition:
      return not isinstance(condition, Except)
    return _matches(value, condition) != isinstance(condition, Except)

  unmet = [[owner for owner, condition in each.items() if not met(owner, condition)] for each in sets]
  return min(unmet, key=len, default=[])


def _matches(value: Any, values: tuple[Any, ...]) -> bool:
  """Returns whether a value is one of `values`.

  'folder' stands for 'folder:<dir>' too, 'val' for its slices ('val[:50%]'), and '0' for a duration of zero in any
  unit. A tuple matches if one of its members does.
  """
  if value in values or (isinstance(value, tuple) and any(_matches(each, values) for each in value)):
    return True
  if not isinstance(value, str):
    return False
  duration, part = DURATION.fullmatch(value), _SLICE.fullmatch(value)
  name = part[1] if part else value.partition(':')[0]
  return name in values or ('0' in values and duration is not None and float(duration[1]) == 0)


def describe(only: Only) -> str:
  """Describes a relation that is not empty: 'schedule.name=cosine, linear or one_cycle'."""
  sets = alternatives(only)
  shared = {owner: condition for owner, condition in sets[0].items() if all(condition == s.get(owner) for s in sets)}
  parts = [_describe(owner, condition) for owner, condition in shared.items()]
  either = [
    ' and '.join(_describe(owner, condition) for owner, condition in each.items() if owner not in shared)
    for each in sets
    if len(each) > len(shared)
  ]
  if len(either) > 1:
    either = [f'({part})' if ' and ' in part else part for part in either]
    parts.append(f'either {" or ".join(either)}' if parts else ' or '.join(either))
  return ' and '.join(parts)


def _describe(owner: str, condition: Condition) -> str:
  *first, last = [show(value) for value in condition if value is not None] or ['']
  values = f'{", ".join(first)} or {last}' if first else last
  if owner == PROGRAM:
    return values
  if isinstance(condition, Except) and not values:
    return f'{owner} set'
  if isinstance(condition, Except):
    return ' '.join([owner, *(['set to'] if None in condition else []), 'other than', values])
  return f'{owner}={values}' if values else f'{owner} not set'


def show(value: Any) -> str:
  """Formats a value as it is written in a flag; 'not set' for None."""
  if value is None:
    return 'not set'
  return value if isinstance(value, str) and value else repr(value)
