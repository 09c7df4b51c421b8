"""Defines the two errors that users can see, and the message for a misspelt name.

Programs print either error as a single line and exit with 2 for `InputError` (nothing was run), with 1 for `RunError`.
"""

import difflib
from collections.abc import Iterable, Sequence

LISTED = 24  # most valid names that a message lists in full; if there are more, it lists the nearest
NEAREST = 5
PATHS = 8  # most paths of each kind that a message lists


class InputError(ValueError):
  """Bad config, data, checkpoint or flag; the message explains what is wrong, what is valid and what to do."""


class RunError(RuntimeError):
  """A run that started and failed, such as a loss that is not finite."""


def unknown(what: str, name: str, valid: Iterable[str]) -> InputError:
  """Makes the error for a name outside a closed set; the message names the nearest valid one.

  Args:
    what: kind of the name, in words (`'config key'`).
    name: the unknown name.
    valid: all valid names.

  Returns:
    An `InputError` to raise.
  """
  valid = sorted(valid)
  near = difflib.get_close_matches(name, valid, n=1, cutoff=0.5)
  hint = f'; did you mean {near[0]!r}?' if near else '.'
  listed = ', '.join(valid) if valid else 'none'
  if len(valid) > LISTED:
    shown = difflib.get_close_matches(name, valid, n=NEAREST, cutoff=0.0)
    listed = f'{", ".join(shown)} and {len(valid) - len(shown)} more'
  return InputError(f'unknown {what} {name!r}{hint} Valid: {listed}')


def list_names(names: Sequence[str], most: int = PATHS) -> str:
  """Joins the first `most` names in one line, and adds how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
