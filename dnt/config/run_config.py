"""The config that a run was given or recorded, as a config file: runs it again, or examines it.

python -m dnt.main --config=dnt/config/run_config.py:runs/mine/config.json --workdir=runs/again
"""

import json
import pathlib
from collections.abc import Container, Mapping
from typing import Any

import ml_collections

from dnt import config as schema
from dnt import errors, files


def get_config(path: str) -> ml_collections.ConfigDict:
  """Reads the JSON file of a training config.

  Raises:
    errors.InputError: no such file, or not that of a config.
  """
  try:
    content = json.loads(pathlib.Path(path).read_text())
  except OSError as error:
    raise errors.InputError(f'cannot read the config {path!r}: {error.strerror}') from error
  except ValueError as error:
    raise errors.InputError(f'{path} is not JSON: {error}') from error
  config = schema.default()
  known = dict(schema.options())
  for key, value in flatten(content, known).items():
    if key not in known:
      raise errors.unknown(f'config key of {path}', key, known)
    set_value(config, key, _frozen(value))  # what an older version did not have keeps its default
  return config


def write(path: pathlib.Path, config: ml_collections.ConfigDict) -> None:
  """Writes a training config as `get_config` reads it."""
  files.write_json(path, config.to_dict())


def flatten(config: Mapping[str, Any], keys: Container[str] = (), prefix: str = '') -> dict[str, Any]:
  """The values of nested dicts by `'section.key'`.

  Args:
    config: nested dicts.
    keys: at which a dict is a value.
    prefix: of the keys.
  """
  flat: dict[str, Any] = {}
  for name, value in config.items():
    key = prefix + name
    flat |= flatten(value, keys, f'{key}.') if isinstance(value, dict) and key not in keys else {key: value}
  return flat


def set_value(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  """Sets the value at `'section.key'`.

  Raises:
    TypeError: of another type than it has.
  """
  *sections, name = key.split('.')
  for section in sections:
    config = config[section]
  config[name] = value


def _frozen(value: Any) -> Any:
  """Lists, which JSON has, as tuples, which configs have."""
  if isinstance(value, dict):
    return ml_collections.ConfigDict({name: _frozen(each) for name, each in value.items()})
  return tuple(map(_frozen, value)) if isinstance(value, list) else value
