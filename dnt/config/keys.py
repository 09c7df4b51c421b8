"""Reads and writes nested configs by key, `'section.key'`."""

from collections.abc import Container, Mapping
from typing import Any

import ml_collections


def flatten(config: Any, whole: Container[str] = (), prefix: str = '') -> dict[str, Any]:
  """Flattens nested dicts or ConfigDicts to values by key; an empty dict is a value.

  Args:
    config: nested dicts or ConfigDicts.
    whole: keys whose dicts are values and are not flattened.
    prefix: prefix of all keys.
  """
  flat: dict[str, Any] = {}
  for name in config:
    key, value = prefix + name, config[name]
    nested = isinstance(value, Mapping | ml_collections.ConfigDict) and len(value) and key not in whole
    flat |= flatten(value, whole, f'{key}.') if nested else {key: value}
  return flat


def get(config: Any, key: str) -> Any:
  """Returns the value at a key."""
  for name in key.split('.'):
    config = config[name]
  return config


def put(config: ml_collections.ConfigDict, key: str, value: Any) -> None:
  """Sets the value at a key.

  Raises:
    TypeError: the type of `value` differs from that of the current value; in a `schema.Section` it is an `InputError`.
  """
  *sections, name = key.split('.')
  for section in sections:
    config = config[section]
  config[name] = value
