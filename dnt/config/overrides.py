"""Changes options of a training config by key, for comparisons, tools and benchmarks."""

import contextlib
import copy
from collections.abc import Mapping
from typing import Any

from dnt import errors
from dnt.config import keys, schema, typed, validation


def override(config: typed.Config, changes: Mapping[str, Any], what: str) -> typed.Config:
  """Returns a copy of a training config with some values changed. A change of `train.epochs` replaces `train.steps`.

  Args:
    config: a training config.
    changes: values by `'section.key'`.
    what: origin of the changes, for error messages.

  Raises:
    errors.InputError: a key is unknown (the message names the nearest one), or a value is not valid.
  """
  changed = copy.deepcopy(config)
  known = schema.OPTIONS['train']
  if 'train.epochs' in changes:
    keys.put(changed, 'train.steps', None)
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
  try:
    validation.validate(changed)
  except errors.InputError as error:
    raise errors.InputError(f'{what}: {error}') from None
  return changed
