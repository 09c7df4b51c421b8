"""Finds in what the processes of one run differ, each of which reads its own config, code and data."""

import ast
import collections
import contextlib
import hashlib
import importlib.machinery
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from dnt import config as schema
from dnt import errors
from dnt.config import keys, typed

PACKAGE = pathlib.Path(__file__).parents[1]  # dnt
_MOST_FILES = 1000  # of a user's own network


class DifferenceError(errors.InputError):
  """Raised in every process of a run if they differ."""


def describe(config: typed.Config, file: pathlib.Path, others: Mapping[str, Any]) -> dict[str, Any]:
  """Returns what must be equal in all processes of a run, as JSON values by name.

  It holds the config, without the options that are `per_process`, and digests of the code: of dnt, of the config file
  and of a user's own network. Of a source it holds the kind, and the name if that is no folder; of pretrained weights
  whether there are any. (Images and weights are compared when they are read.)

  Args:
    config: a validated config.
    file: its file.
    others: what else must be equal, by name.
  """
  free = {key for key, option in schema.OPTIONS['train'].items() if option.per_process}
  values = {f'config.{key}': value for key, value in keys.flatten(config.to_dict()).items() if key not in free}
  kind, _, _ = config.data.source.partition(':')
  values['config.data.source'] = config.data.source if kind == 'tfds' else kind
  values['config.train.init_from'] = bool(config.train.init_from)
  code = {f'dnt/{path.relative_to(PACKAGE)}': _digest(path) for path in PACKAGE.rglob('*.py')}
  code |= own_code(config.model.name, config.model.folder)
  digests = {f'the file {name}': digest for name, digest in sorted(code.items())}
  file = pathlib.Path(re.sub(r'(?<=\.py):.*', '', str(file)))  # without the argument of the file
  if file.is_file() and not file.is_relative_to(PACKAGE):
    digests['the config file'] = _digest(file)
  return json.loads(json.dumps({**others, **values, **digests}, default=str))


def differences(descriptions: Sequence[Mapping[str, Any]]) -> str:
  """Returns in what the processes differ, with all values and whose they are, as text; '' if in nothing.

  Args:
    descriptions: JSON values by name, of every process in their order.
  """
  found = []
  for name in dict.fromkeys(name for each in descriptions for name in each):
    values = [json.dumps(each[name], ensure_ascii=False) if name in each else 'missing' for each in descriptions]
    if len({*values}) > 1:
      found.append(f'{name} is {_with_owners(values)}')
  if not found:
    return ''
  more = f'; and {len(found) - errors.PATHS} more' if len(found) > errors.PATHS else ''
  listed = '; '.join(found[: errors.PATHS])
  return f'the processes of this run differ: {listed}{more}. Start all with the same config, code, data and versions'


def check(descriptions: Sequence[Mapping[str, Any]]) -> None:
  """Raises a `DifferenceError` if the processes differ; see `differences`."""
  if found := differences(descriptions):
    raise DifferenceError(found)


def check_devices(devices: Sequence[jax.Device], processes: int) -> None:
  """Checks that all processes have as many devices of the same platforms: a mesh has a place for each.

  The kinds, such as two sizes of a GPU's memory, may differ; the message names them.

  Args:
    devices: those of all processes, which each of them knows; of one platform, where processes use several.
    processes: their number.

  Raises:
    DifferenceError: the processes differ.
  """
  kinds: list[collections.Counter[str]] = [collections.Counter() for _ in range(processes)]
  platforms: list[collections.Counter[str]] = [collections.Counter() for _ in range(processes)]
  for device in devices:
    platform, kind = device.platform, device.device_kind
    kinds[device.process_index][platform if kind == platform else f'{platform} ({kind})'] += 1
    platforms[device.process_index][platform] += 1
  if any(each != platforms[0] for each in platforms):
    none = f'no {devices[0].platform}'
    values = [', '.join(f'{count} {kind}' for kind, count in sorted(each.items())) or none for each in kinds]
    raise DifferenceError(
      f'the processes of this run differ: the devices are {_with_owners(values)}. Give all processes as many devices '
      'of one platform; one whose accelerator fails may have the CPU instead'
    )


def _with_owners(values: Sequence[str]) -> str:
  """Formats the values of all processes, in their order; those with one value stand together."""
  owners: dict[str, list[str]] = {}
  for process, value in enumerate(values):
    owners.setdefault(value, []).append(str(process))
  return ' and '.join(
    f'{value} on process{"es" if len(ids) > 1 else ""} {errors.list_names(ids)}' for value, ids in owners.items()
  )


def own_code(model: str, folder: str | None) -> dict[str, str]:
  """Returns digests of the files of a user's own network by name.

  They are its package or file, and what it imports from beside it. It runs none of them, and returns nothing for a
  network of dnt, or if the module is not found.

  Args:
    model: `config.model.name`.
    folder: `config.model.folder`.
  """
  module, colon, _ = model.partition(':')
  if not colon:
    return {}
  top, spec = module.partition('.')[0], None
  with contextlib.suppress(ImportError, ValueError):
    if folder:
      spec = importlib.machinery.PathFinder.find_spec(top, [os.path.expanduser(folder)])
    spec = spec or importlib.machinery.PathFinder.find_spec(top)
  if spec is None or not (spec.has_location or spec.submodule_search_locations):
    return {}
  packages = [pathlib.Path(place) for place in spec.submodule_search_locations or ()]
  root = packages[0].parent if packages else pathlib.Path(str(spec.origin)).parent
  installed = is_installed(root)
  names, paths = [top], {}
  for name in names:  # grows
    files, package = [*root.glob(f'{name}.*')], root / name
    if name == top or any(package.glob('*.py')):  # else it may be a data set with the name of a library
      files += package.rglob('*.py')
    paths |= {str(path.relative_to(root)): path for path in files if path.suffix in ('.py', '.so')}
    if not installed:
      names += sorted({each for path in files for each in _imports(path)} - {*names})
  return {name: _digest(path) for name, path in sorted(paths.items())[:_MOST_FILES]}


def is_installed(root: pathlib.Path) -> bool:
  """Returns whether pip has installed what lies in a folder."""
  return any(root.glob('*.dist-info'))


def _imports(path: pathlib.Path) -> set[str]:
  """Returns the first parts of the names of the modules that a file imports; none if it is no Python."""
  try:
    nodes = [*ast.walk(ast.parse(path.read_bytes()))]
  except (OSError, SyntaxError, ValueError):  # the import itself reports it
    return set()
  names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
  names += [node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level]
  return {name.partition('.')[0] for name in names}


def _digest(path: pathlib.Path) -> str:
  return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
