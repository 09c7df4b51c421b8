"""Explains errors of config files: the file and line, before what the config itself says of a key or value."""

import ast
import pathlib
import re
import traceback
from collections.abc import Collection, Sequence
from typing import Any

import ml_collections

from dnt import errors
from dnt.config import run_config

_LONGEST = 300  # characters of an error of ml_collections that is shown whole
_HINT = re.compile(r'Did you mean "[^"]*" instead of "[^"]*"\?')  # of ml_collections
_KEY = re.compile(r"config(?:\.| key ')([\w.]+)")


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
  found = ((each, _line_of(each, path)) for each in chain)
  cause, line = next((pair for pair in found if pair[1]), (None, None))
  if cause is None:
    return _unusable(chain, shown) or errors.InputError(f'config file {shown!r} failed: {_reason(error)}')
  return errors.InputError(f'{shown.partition(":")[0]}:{line}: {_reason(cause)}')


def check_result(config: Any, shown: str) -> None:
  """Raises an `errors.InputError` if what `get_config` returned is no config; `shown` as for `explain`."""
  if not isinstance(config, ml_collections.ConfigDict) or isinstance(config, ml_collections.FrozenConfigDict):
    what = 'None' if config is None else f'a value of type {type(config).__name__}'
    raise errors.InputError(
      f'get_config() in {shown} returned {what}; return the config, as dnt.config.default() makes it'
    )


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


def _unusable(chain: Sequence[BaseException], shown: str) -> errors.InputError | None:
  """Makes the error for a file without `get_config`, or with one that returns no config; None: it has another fault."""
  if any(isinstance(each, AttributeError) and each.name == 'get_config' for each in chain):
    return errors.InputError(f'{shown} has no function get_config(), which makes the config of the file and returns it')
  found = (frame.f_locals for each in chain for frame, _ in traceback.walk_tb(each.__traceback__))
  failed = next((names for names in found if 'config' in names), None)  # in ml_collections or `schema.kind`
  try:
    if failed:
      check_result(failed['config'], shown)
  except errors.InputError as error:
    return error
  return None


def _line_of(error: BaseException, path: pathlib.Path) -> int | None:
  """Returns the last line of a file in the traceback of an error."""
  lines = [
    line
    for frame, line in traceback.walk_tb(error.__traceback__)
    if pathlib.Path(frame.f_code.co_filename).resolve() == path
  ]
  return lines[-1] if lines else None


def _reason(error: BaseException) -> str:
  text = str(error).strip()
  lines = text.splitlines()
  if (len(lines) > 1 or len(text) > _LONGEST) and _is_of_config_dict(error):
    hints = _HINT.findall(text)
    return ' '.join([re.split(r'(?<=\.)\s', text, maxsplit=1)[0].strip('\'"')[:_LONGEST], *hints])
  # absl makes errors with the traceback of a ValueError in their text.
  return lines[-1].removeprefix(f'{errors.__name__}.{errors.InputError.__name__}: ') if lines else type(error).__name__


def _is_of_config_dict(error: BaseException) -> bool:
  """Returns whether a plain `ConfigDict` raised an error, which shows all of it."""
  frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
  return bool(frames) and frames[-1].f_globals.get('__name__', '').startswith('ml_collections.config_dict')


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
