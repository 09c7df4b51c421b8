"""A config file that loads the config saved by a run, to run it again or to examine it.

python -m dnt.main --config=runs/mine --workdir=runs/again
"""

import contextlib
import os
import pathlib
from collections.abc import Container, Mapping
from typing import Any

import ml_collections

from dnt import config as schema
from dnt import errors, files
from dnt.config import keys, older, typed

# Beside the sections of the config: digests of the data and of pretrained weights, versions and devices, and what the
# config left open.
PROVENANCE = 'provenance'
OPEN = 'open'
# What a run with the config of another takes as that one found it: the rate of a range test, and the place of a module.
_FOUND = ('optim.learning_rate', 'model.folder')
# What pretrained weights determine of the data.
_OF_WEIGHTS = tuple(
  f'data.{name}' for name in ('image_size', 'eval_resize', 'eval_crop', 'interpolation', 'mean', 'std')
)
# What stays as a run determined it where the other option has a value of its own.
_WITH = {'data.mean': 'data.std', 'data.std': 'data.mean', 'loss.balance_classes': 'loss.class_weights'}


def get_config(path: str) -> typed.Config:
  """Reads a training config from a JSON file.

  Raises:
    errors.InputError: the file cannot be read, or does not hold a config.
  """
  return parse(files.read_object(path), path)


def parse(content: Any, path: str | os.PathLike) -> typed.Config:
  """Makes a training config from a JSON value; options that it lacks have the values that older versions ran with.

  Args:
    content: the JSON value.
    path: where it was read, for messages.

  Raises:
    errors.InputError: it is not a config.
  """
  if not isinstance(content, dict):
    raise errors.InputError(f'{path} holds no config, which is an object of sections')
  config = schema.default()
  known = schema.OPTIONS['train']
  given = keys.flatten({name: value for name, value in content.items() if name != PROVENANCE}, known)
  for key, value in given.items():
    if key not in known:
      raise errors.unknown(f'config key of {path}', key, known)
    _put(config, key, known[key], value, path)
  older.fill(config, given)
  return config


def left_open(given: typed.Config, resolved: typed.Config) -> dict[str, list[Any]]:
  """Returns the options that a run has determined from other options, data or weights: [given to it, found by it].

  Args:
    given: the validated config that the run was given.
    resolved: the config that it runs with.
  """
  known = schema.OPTIONS['train']
  before, now = (keys.flatten(schema.plain(each), known) for each in (given, resolved))
  return {key: [value, now[key]] for key, value in before.items() if value != now[key] and key not in _FOUND}


def recorded_open(content: Mapping[str, Any]) -> dict[str, list[Any]] | None:
  """Returns what `left_open` returned for the run that wrote a config; None: it is of an older version."""
  provenance = content.get(PROVENANCE)
  found = provenance.get(OPEN) if isinstance(provenance, dict) else None
  if not isinstance(found, dict) or not all(isinstance(each, list) and len(each) == 2 for each in found.values()):
    return None
  return found


def merge_open(path: str | os.PathLike, given: typed.Config, resolved: typed.Config, begun: bool) -> dict[str, Any]:
  """Returns the part of the provenance with `left_open`: what the run has recorded, and what it has determined now.

  Args:
    path: the config that the run has written, if it has begun.
    given: as for `left_open`.
    resolved: as for `left_open`.
    begun: whether the run has steps. One that began without this record gets none: its config has all determined.
  """
  found = left_open(given, resolved)
  if not begun:
    return {OPEN: found}
  with contextlib.suppress(errors.InputError):  # a damaged file is written anew
    if (recorded := recorded_open(files.read_object(path))) is not None:
      return {OPEN: recorded | found}
  return {}


def reopen(config: typed.Config, path: str, given: Container[str]) -> None:
  """Gives a config that was read from a run the values that the run was given for what it then determined.

  So these options follow the others, some of which the command line may have changed: `val` is held out only if
  `eval.splits` names it. What pretrained weights determined stays, unless there are other weights, and so does what
  somebody has changed in the file.

  Args:
    config: from `get_config`, with the options of the command line.
    path: where it was read.
    given: keys of the options of the command line, which keep their values.

  Raises:
    errors.InputError: the file is damaged.
  """
  content, known = files.read_object(path), schema.OPTIONS['train']
  recorded, holds = recorded_open(content), keys.flatten(content, known)
  if recorded is None:
    found = older.likely_open(config, given)
  else:
    found = {key: value for key, (value, determined) in recorded.items() if holds.get(key) == determined}
  kept = {key for key, other in _WITH.items() if other in given or other in (recorded or {}).keys() - found.keys()}
  if not (config.train.init_from and 'train.init_from' in given):
    kept.update(_OF_WEIGHTS if content.get('train', {}).get('init_from') else ())
    if 'model.name' in found:
      kept.update(key for key in known if key.startswith('model.') and known[key].role != 'run')
  for key, value in found.items():
    if key in known and key not in given and key not in kept:
      _put(config, key, known[key], value, path)


def write(path: pathlib.Path, config: ml_collections.ConfigDict, provenance: Mapping[str, Any] | None = None) -> None:
  """Writes a training config in the form that `get_config` reads, and beside its sections what a run knows of its data.

  Args:
    path: path of the file.
    config: the config.
    provenance: what `PROVENANCE` holds; None: nothing.
  """
  files.write_json(path, schema.plain(config) | ({PROVENANCE: provenance} if provenance else {}))


def _put(config: typed.Config, key: str, option: schema.Option, value: Any, path: str | os.PathLike) -> None:
  """Sets an option to a value of JSON that was read at `path`."""
  try:
    keys.put(config, key, schema.plain(schema.spell(option, value)))
  except errors.InputError as error:
    raise errors.InputError(f'{path}: {error}') from None
