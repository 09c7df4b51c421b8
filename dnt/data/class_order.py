"""Matches the classes of data with those of a trained head by their names, and never by their place.

Names are compared in Unicode's form NFC: macOS writes an accent as a character of its own.
"""

import collections
import logging
from collections.abc import Iterable, Sequence

import numpy as np

from dnt import errors, files
from dnt.data import examples
from dnt.reporting import terminal

_log = logging.getLogger(__name__)


def normalized(names: Iterable[str]) -> tuple[str, ...]:
  """Returns the names in form NFC, in which they are compared."""
  return tuple(map(files.normalized, names))


def align(source: examples.Examples, names: Sequence[str], owner: str) -> examples.Examples:
  """Returns the examples with the classes of a trained head, in its order; the data may lack some of them.

  A line says so if the order changes, if classes are lacking, or if the names of the head are not known: then the
  classes keep their place.

  Args:
    source: a split.
    names: class names of the head, in its order; empty: not known.
    owner: what has the head, for messages.

  Raises:
    errors.InputError: the split has classes that the head lacks, or whose name several classes of the head have.
  """
  if not names:
    terminal.say_once(_log, f'{owner} has no class names: the classes of {source.name} are taken in their order')
    return source
  wanted, found = normalized(names), normalized(source.class_names)
  if found == wanted:
    return source.relabelled(np.arange(len(found), dtype=np.int32), wanted)
  check(found, wanted, f'split {source.split!r} of {source.name}', owner)
  place_of = {name: place for place, name in enumerate(wanted)}
  places = np.array([place_of[name] for name in found], np.int32)
  if np.any(np.diff(places) < 0):
    terminal.say_once(_log, f'{source.name}: by their names, the classes are brought into the order of {owner}')
  data = {*found}
  if lacking := [name for name in wanted if name not in data]:
    terminal.say_once(_log, f'{source.name} has no class {errors.list_names(lacking)}, which {owner} has')
  return source.relabelled(places, wanted)


def check(found: Sequence[str], names: Sequence[str], what: str, owner: str) -> None:
  """Checks that a trained head has all classes of data, each once.

  Args:
    found: class names of the data, normalized.
    names: class names of the head, normalized.
    what: the data, for the message.
    owner: what has the head, for the message.

  Raises:
    errors.InputError: it lacks some; the message lists them, and the classes that the data lacks. Or several of its
      classes have the name of one of the data; the message gives their indexes.
  """
  head, data = collections.Counter(names), {*found}
  new = [name for name in found if name not in head]
  if new:
    missing = [name for name in names if name not in data]
    raise errors.InputError(
      f'{what} has other classes than {owner}. New: {errors.list_names(new)}; missing: '
      f'{errors.list_names(missing) or "none"}. Give the same classes their names; for other classes, start a new run '
      '(config.train.init_from can start it from these weights)'
    )
  if ambiguous := next((name for name in found if head[name] > 1), None):
    raise errors.InputError(
      f'{what} has the class {ambiguous!r}, a name that several classes of {owner} have ({indexes(ambiguous, names)}), '
      'so that nothing says which it is; leave its images out'
    )


def indexes(name: str, names: Sequence[str]) -> str:
  """Lists for a message at which indexes of `names` a name is; all are normalized."""
  return errors.list_names([str(place) for place, each in enumerate(names) if each == name])
