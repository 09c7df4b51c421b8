"""Checks configs against the schema: keys, types, values, and whether options that a user sets have an effect."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import ml_collections

from dnt import errors
from dnt.config import checks, keys, relations, schema, typed


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every key and value against the schema of its kind, and converts old spellings with `spell`.

  Raises:
    errors.InputError: a key is unknown or missing, or a value has a wrong type or is out of range; names the key.
  """
  known = schema.OPTIONS[schema.kind(config)]
  given = keys.flatten(config, known)
  for key in given:
    if key not in known:
      raise errors.unknown('config key', key, known)
  for key, option in known.items():
    if option.type is dict:
      if key in given:
        if not isinstance(given[key], dict | ml_collections.ConfigDict):
          raise errors.InputError(f'config.{key} must be a dict, not {type(given[key]).__name__} ({given[key]!r})')
        _check_json(key, given[key])
      continue
    if key not in given:
      raise errors.InputError(f'config key {key!r} is missing; start from dnt.config.default()')
    value = spell(option, given[key])
    _check(key, option, value)
    if value is not given[key]:
      with config.ignore_type():  # a copy of a config knows only the type of its current value
        keys.put(config, key, value)
  training = config.base if 'base' in config else config
  if 'loss' in training and training.loss.balance_classes and training.loss.class_weights:
    raise errors.InputError('config.loss.class_weights and balance_classes=True exclude each other; set one of them')


def spell(option: schema.Option, value: Any) -> Any:
  """Converts a value to its current spelling: an option that takes numbers and words holds a float or a word."""
  if not option.words or isinstance(value, bool) or not isinstance(value, int | float):
    return value
  return next((word for word, number in option.words.items() if value == number), float(value))


def check_given(config: ml_collections.ConfigDict, given: Iterable[str], program: str = relations.TRAINING) -> None:
  """Checks that the options that a user sets explicitly have an effect; other options may hold any value.

  Args:
    config: a validated config, in its final form.
    given: keys of the options that the user sets.
    program: the running program, see `relations.PROGRAM`.

  Raises:
    errors.InputError: an option has no effect; the message names the other options that prevent it.
  """
  for key in given:
    problem = no_effect(config, key, program)
    if problem:
      raise errors.InputError(problem)


def no_effect(config: ml_collections.ConfigDict, key: str, program: str = relations.TRAINING) -> str:
  """Returns the reason why an option has no effect; '' if it has one, is not set, or is turned off.

  Args:
    config: a validated config.
    key: `'section.key'`.
    program: the running program, see `relations.PROGRAM`.
  """
  known = schema.OPTIONS[schema.kind(config)]
  if key not in known:
    return ''
  option, value, get = known[key], keys.get(config, key), _getter(config, program)
  owners = relations.failing(option.only, get)
  if not owners or value is None or value == option.off:
    return ''
  names = {relations.PROGRAM: f'the {relations.PROGRAM}'}
  now = ' and '.join(f'{names.get(owner, owner)} is {relations.show(get(owner))}' for owner in owners)
  return (
    f'config.{key}={relations.show(value)} has no effect here: {now}; it has one with {relations.describe(option.only)}'
  )


def has_effect(config: typed.Config, key: str) -> bool:
  """Returns whether the values of other options let an option of a training run have an effect."""
  return not relations.failing(schema.OPTIONS['train'][key].only, _getter(config, relations.TRAINING))


def _getter(config: ml_collections.ConfigDict, program: str) -> Callable[[str], Any]:
  """Returns a function that returns the value of an owner of options."""
  return lambda owner: program if owner == relations.PROGRAM else keys.get(config, owner)


def _check_json(key: str, value: Any) -> None:
  """Checks that a value of an option that takes any is one that JSON has, for a run records its config as JSON."""
  if isinstance(value, dict | ml_collections.ConfigDict):
    for name, each in value.items():
      if not isinstance(name, str):
        raise errors.InputError(f'config.{key} has the key {name!r}; its keys must be texts, as in config.json')
      _check_json(f'{key}.{name}', each)
  elif isinstance(value, list | tuple):
    for index, each in enumerate(value):
      _check_json(f'{key}[{index}]', each)
  elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
    raise errors.InputError(
      f'config.{key}={value!r} must be what config.json can hold: finite numbers, texts, booleans, None, and lists and '
      'dicts of these; in place of a function, class or dtype give its name'
    )


def _check(key: str, option: schema.Option, value: Any) -> None:
  if value is None and isinstance(option.default, type):
    return
  if option.words and isinstance(value, str):
    if value not in option.words:
      raise errors.InputError(f'config.{key} must be a number or {" or ".join(option.words)}, not {value!r}')
    return
  numeric = option.type is float and isinstance(value, int) and not isinstance(value, bool)
  if not numeric and type(value) is not option.type:
    raise errors.InputError(f'config.{key} must be {option.type.__name__}, not {type(value).__name__} ({value!r})')
  if option.type is float and not math.isfinite(value):
    raise errors.InputError(f'config.{key}={value!r} must be finite')
  if option.type is float and abs(value) > checks.LARGEST_FLOAT:
    raise errors.InputError(f'config.{key}={value!r} must be at most {checks.LARGEST_FLOAT:.3g}, the largest float32')
  for each in value if option.type is tuple else (value,):
    if option.choices and each not in option.choices:
      raise errors.unknown(f'value of config.{key}', str(each), [str(choice) for choice in option.choices])
  problem = option.check(value)
  if problem:
    raise errors.InputError(f'config.{key}={value!r} {problem}')
