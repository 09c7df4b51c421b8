"""Compares the config that a run continues with to the one that its steps so far were trained with."""

import json
import math
import pathlib
import shlex
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from dnt import buckets, errors
from dnt.config import keys, schema, typed, validation

DATA = 'data.source'  # the key that stands for the images themselves too, see `dnt.training.resume`


class Change(NamedTuple):
  """Describes an option whose value has changed.

  Attributes:
    key: `'section.key'`.
    was: the old value, in JSON values.
    now: the new one.
    on_resume: what the change means, one of `schema.ON_RESUME`.
  """

  key: str
  was: Any
  now: Any
  on_resume: str

  @property
  def role(self) -> str:
    """What the option decides, see `schema.ROLES`; '' for one of another section."""
    return schema.OPTIONS['train'][self.key].role

  def __str__(self) -> str:
    return f'{self.key} was {self.was!r} and is now {self.now!r}'


def find(old: typed.Config, new: typed.Config) -> list[Change]:
  """Returns the options that have another value and an effect in one of the two configs.

  Data is compared by the kind of its source, not by the path of its folder, which may have been moved.

  Args:
    old: a validated config.
    new: the same kind of config: both resolved, or neither.
  """
  known = schema.OPTIONS['train']
  before, now = (keys.flatten(json.loads(json.dumps(schema.plain(config))), known) for config in (old, new))
  return [
    Change(key, before[key], value, known[key].on_resume)
    for key, value in now.items()
    if not _is_same(key, before[key], value) and any(validation.has_effect(each, key) for each in (old, new))
  ]


def check(
  changes: Sequence[Change],
  allowed: Collection[str],
  workdir: pathlib.Path,
  misfit: str = '',
  keeps_weights: bool = True,
) -> None:
  """Checks that a run may continue with these changes; the message offers only what is possible.

  Args:
    changes: from `find`.
    allowed: keys that the user allows to change.
    workdir: the workdir of the run, for the message.
    misfit: why the checkpoint of the run cannot be continued with the changes; '' if it can.
    keeps_weights: whether a run with the changes can start from the weights of this one.

  Raises:
    errors.InputError: an allowed key is unknown, or an option has changed that makes the run another experiment and is
      not allowed, or cannot be.
  """
  known = schema.OPTIONS['train']
  for key in allowed:
    if key not in known:
      raise errors.unknown('config key of --allow', key, known)
  refused = [
    change for change in changes if change.on_resume == schema.REFUSE and (misfit or change.key not in allowed)
  ]
  if refused:
    names, where = dict.fromkeys(change.key for change in refused), buckets.name(workdir)
    start = f'--config.train.init_from={shlex.quote(where)}'
    there = f' (there, {start} starts from the weights of this run)' if keeps_weights else ''
    ways = ['Use the old values', f'give another --workdir{there}']
    if not misfit:
      ways.append(f'continue with the change: --allow={",".join(names)}')
    why = f'--allow cannot help, as the checkpoint does not fit this network or optimizer: {misfit}. ' if misfit else ''
    raise errors.InputError(
      f'{where} holds a run of another config: {"; ".join(map(str, refused))}. {why}{"; ".join(ways[:-1])}; or '
      f'{ways[-1]}'
    )


def _is_same(key: str, old: Any, new: Any) -> bool:
  if key == DATA and not old.startswith('tfds:'):  # the others name a folder, or nothing
    return old.partition(':')[0] == new.partition(':')[0]
  if isinstance(old, list) and isinstance(new, list):
    return len(old) == len(new) and all(_is_same('', *pair) for pair in zip(old, new, strict=True))
  if isinstance(old, dict) and isinstance(new, dict):  # arguments of a module, which may follow the order within them
    return old.keys() == new.keys() and all(json.dumps(old[name]) == json.dumps(new[name]) for name in old)
  if isinstance(old, float) and isinstance(new, float):  # other versions may measure the last digits differently
    return math.isclose(old, new, rel_tol=1e-9)
  return old == new
