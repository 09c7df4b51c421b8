"""Explains errors of config files: the file and line, and for a config key or value what is valid."""

import ast
import pathlib
import re
import traceback
import types
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import ml_collections

from dnt import errors
from dnt.config import run_config, schema

_KEY = re.compile(r"config(?:\.| key ')([\w.]+)")
_ACCESS = ('__setitem__', '__getitem__', '__setattr__', '__getattr__')


def explain(error: BaseException, path: pathlib.Path, shown: str) -> errors.InputError:
  """Makes the error for a config file that failed to load.

  Args:
    error: the exception, or one that absl raised because of it.
    path: the file.
    shown: what the user gave for `--config`.
  """
  path, chain = path.resolve(), [error]
  while before := chain[-1].__cause__ or chain[-1].__context__:
    chain.append(before)
  if path.samefile(run_config.__file__):  # no user wrote that file, and its errors name the JSON file
    refused = next((each for each in chain if isinstance(each, errors.InputError)), error)
    return errors.InputError(_reason(refused))
  cause = next((each for each in chain if _frames(each, path)), None)
  if cause is None:
    return errors.InputError(f'config file {shown!r} failed: {_reason(error)}')
  frames = _frames(cause, path)
  place = f'{shown.partition(":")[0]}:{frames[0][1]}'
  accesses = [
    frame.f_locals
    for frame, _ in frames
    if frame.f_code.co_name in _ACCESS and isinstance(frame.f_locals.get('self'), ml_collections.ConfigDict)
  ]
  problem = _problem(accesses[-1], cause, frames[0][0]) if accesses else ''
  return errors.InputError(f'{place}: {problem or _reason(cause)}')


def locate(error: errors.InputError, path: pathlib.Path, given: Collection[str]) -> errors.InputError:
  """Adds the file and line that set a key to an error about its value.

  Args:
    error: from `validate`.
    path: the config file.
    given: the keys that the command line sets, which take precedence over the file.
  """
  match = _KEY.search(str(error))
  path = pathlib.Path(str(path).partition(':')[0])  # without the argument of `get_config`
  if not match or match[1] in given or path.samefile(run_config.__file__):
    return error
  names = match[1].split('.')
  line = _line(ast.parse(path.read_bytes()), names)
  return errors.InputError(f'{path}:{line}: {error}') if line else error


def _frames(error: BaseException, path: pathlib.Path) -> list[tuple[types.FrameType, int]]:
  """Returns the frames of an error and their lines, from the last one in the file on."""
  frames = list(traceback.walk_tb(error.__traceback__))
  inside = [
    index for index, (frame, _) in enumerate(frames) if pathlib.Path(frame.f_code.co_filename).resolve() == path
  ]
  return frames[inside[-1] :] if inside else []


def _reason(error: BaseException) -> str:
  lines = str(error).strip().splitlines()
  # absl makes errors with the traceback of a ValueError in their text.
  return lines[-1].removeprefix(f'{errors.__name__}.{errors.InputError.__name__}: ') if lines else type(error).__name__


def _problem(access: Mapping[str, Any], error: BaseException, frame: types.FrameType) -> str:
  """Describes a failed access to a key of a config; '' if it is not one of dnt's configs."""
  held = [value for value in frame.f_locals.values() if isinstance(value, ml_collections.ConfigDict)]
  kinds = ['compare'] if any('variants' in value for value in held) else ['train', 'signal', 'compare']
  section, name = access['self'], str(access.get('key', access.get('attribute')))
  found = [
    (kind, prefix) for kind in kinds for prefix, keys in _sections(schema.KINDS[kind]) if keys == set(section.keys())
  ]
  if not found:
    return ''
  kind, prefix = found[0]
  known = schema.OPTIONS[kind]
  key = name if '.' in name else prefix + name
  if name in section:
    if not isinstance(error, TypeError) or 'value' not in access:
      return ''
    value, wanted = access['value'], known[key].type.__name__ if key in known else 'a section'
    return f'config.{key} must be {wanted}, not {type(value).__name__} ({value!r})'
  if key in known:  # in `update`
    return f'{key!r} holds a dot; write config.{key} = ...'
  sections = [] if prefix else [each for each, entry in schema.KINDS[kind].items() if isinstance(entry, dict)]
  return str(errors.unknown('config key', key, [*known, *sections]))


def _sections(entries: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, set[str]]]:
  yield prefix, set(entries)
  for key, entry in entries.items():
    if isinstance(entry, dict):
      yield from _sections(entry, f'{prefix}{key}.')


def _line(tree: ast.Module, names: list[str]) -> int | None:
  """Returns the last line that sets the key, or that holds the last of its names."""
  exact, alike = [], []
  for node in ast.walk(tree):
    for target in node.targets if isinstance(node, ast.Assign) else ():
      chain = _chain(target)
      if chain[-len(names) :] == names:
        exact.append(target.lineno)
      if chain[-1:] == names[-1:]:
        alike.append(target.lineno)
    if isinstance(node, ast.keyword) and node.arg == names[-1]:
      alike.append(node.value.lineno)
    if isinstance(node, ast.Dict):
      alike += [key.lineno for key in node.keys if isinstance(key, ast.Constant) and key.value == names[-1]]
  return max(exact or alike, default=None)


def _chain(node: ast.expr) -> list[str]:
  """Returns the names of `config.model.depth` or `config['model']['depth']`."""
  if isinstance(node, ast.Attribute):
    return [*_chain(node.value), node.attr]
  if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant):
    return [*_chain(node.value), str(node.slice.value)]
  return [node.id] if isinstance(node, ast.Name) else []
