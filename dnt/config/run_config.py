"""A config file that loads the config saved by a run, to run it again or to examine it.

python -m dnt.main --config=runs/mine --workdir=runs/again
"""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import ml_collections

from dnt import config as schema
from dnt import errors, files
from dnt.config import implied, keys, typed

# Beside the sections of the config: digests of the data and of pretrained weights. A run with this config ignores it.
PROVENANCE = 'provenance'


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
  known = dict(schema.options())
  given = keys.flatten({name: value for name, value in content.items() if name != PROVENANCE}, known)
  for key, value in given.items():
    if key not in known:
      raise errors.unknown(f'config key of {path}', key, known)
    # Options that are missing because the version was older keep their defaults.
    try:
      keys.put(config, key, schema.spell(known[key], _frozen(value)))
    except TypeError:
      kind = known[key].type.__name__
      raise errors.InputError(f'{path}: {key} must be {kind}, not {type(value).__name__} ({value!r})') from None
  if 'data.hold_out' not in given and 'eval.splits' in given:  # older runs held nothing out; the first split ranked
    config.data.hold_out = False
    if '/' not in config.checkpoint.best_metric:
      config.checkpoint.best_metric = f'{config.eval.splits[0]}/{config.checkpoint.best_metric}'
  if 'data.eval_resize' not in given:  # if not set, it would now follow the pretrained weights
    config.data.eval_resize = implied.eval_resize(config.data)
  return config


def write(path: pathlib.Path, config: ml_collections.ConfigDict, provenance: Mapping[str, Any] | None = None) -> None:
  """Writes a training config in the form that `get_config` reads, and beside its sections what a run knows of its data.

  Args:
    path: path of the file.
    config: the config.
    provenance: what `PROVENANCE` holds; None: nothing.
  """
  files.write_json(path, config.to_dict() | ({PROVENANCE: provenance} if provenance else {}))


def _frozen(value: Any) -> Any:
  """Converts lists, which JSON has, to tuples, which configs have."""
  if isinstance(value, dict):
    return ml_collections.ConfigDict({name: _frozen(each) for name, each in value.items()})
  return tuple(map(_frozen, value)) if isinstance(value, list) else value
