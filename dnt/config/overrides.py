"""Changes options of a training config by key, for comparisons, tools and benchmarks."""

import contextlib
import copy
from collections.abc import Collection, Mapping
from typing import Any

from dnt import errors
from dnt.config import keys, schema, typed, validation


def override(config: typed.Config, changes: Mapping[str, Any], what: str) -> typed.Config:
  """Returns a copy of a training config with some values changed, without what they replace, see `unset_replaced`.

  Args:
    config: a training config.
    changes: values by `'section.key'`.
    what: origin of the changes, for error messages.

  Raises:
    errors.InputError: a key is unknown (the message names the nearest one), or a value is not valid.
  """
  changed = copy.deepcopy(config)
  known = schema.OPTIONS['train']
  for key, value in changes.items():
    if key not in known:
      raise errors.unknown(f'config key in {what}', key, known)
    mixed = changed.ignore_type() if known[key].words else contextlib.nullcontext()
    try:
      with mixed:
        keys.put(changed, key, value)
    except (TypeError, ValueError):
      kind = known[key].type.__name__
      raise errors.InputError(f'{what}: {key} must be {kind}, not {type(value).__name__} ({value!r})') from None
  unset_replaced(changed, changes)
  schema.mark_given(changed, changes)
  try:
    validation.validate(changed)
  except errors.InputError as error:
    raise errors.InputError(f'{what}: {error}') from None
  return changed


def unset_replaced(config: typed.Config, given: Collection[str]) -> None:
  """Unsets the options of a training config that others replace: those that are given, if these are not given too.

  `train.epochs` replaces `train.steps`, and a folder that `data.source` names replaces `data.dir`. A config that lacks
  an option is left as it is, for `validate` to name it.

  Args:
    config: the config, with the values that are given.
    given: keys of these values.
  """
  if 'train.epochs' in given and 'train.steps' not in given and 'steps' in config.train:
    keys.put(config, 'train.steps', None)
  replaces = 'data.source' in given and 'data.dir' not in given and names_folder(config.data.source)
  if replaces and 'dir' in config.data:
    config.data.dir = ''


def names_folder(source: str) -> bool:
  """Returns whether `data.source` names a folder, so that `data.dir` must not."""
  kind, _, where = source.partition(':')
  return bool(where) and kind != 'tfds'  # TFDS has names of sets, which may lie in `data.dir`
