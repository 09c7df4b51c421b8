"""The two errors a user can meet, and the sentence for a misspelt name.

Programs print either one as a single line; `InputError` exits with 2 (nothing was run), `RunError` with 1.
"""

import difflib
from collections.abc import Iterable, Sequence

LISTED = 24  # valid names that a message lists in full; of more it lists the nearest
NEAREST = 5
PATHS = 8  # paths that a message lists, of each kind


class InputError(ValueError):
  """Bad config, data, checkpoint or flag: says what is wrong, what is valid and what to do."""


class RunError(RuntimeError):
  """A run that started and failed, such as a loss that is not finite."""


def unknown(what: str, name: str, valid: Iterable[str]) -> InputError:
  """The error for a name outside a closed set, naming the nearest valid one.

  Args:
    what: what the name stands for, in words (`'config key'`).
    name: the name that was given.
    valid: the names that exist.

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
  """The first few names in one line, and how many more there are."""
  more = f' and {len(names) - most} more' if len(names) > most else ''
  return ', '.join(names[:most]) + more
