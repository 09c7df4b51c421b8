"""Loads a user's own Flax module by its import path, from the folder where a run found it."""

import contextlib
import dataclasses
import functools
import importlib
import importlib.machinery
import inspect
import logging
import os
import pathlib
import re
import sys
import sysconfig
import traceback
import types
from collections.abc import Mapping, Sequence
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors
from dnt.models import stage
from dnt.parallel import agreement

_log = logging.getLogger(__name__)

# How modules name the argument that says whether they train, and its value if they do.
TRAINING = {'train': True, 'training': True, 'is_training': True, 'deterministic': False}
_used: dict[str, tuple[Any, dict[str, str]]] = {}  # modules by name, each with its spec and `agreement.own_code`


def load(name: str, folder: str | None = None) -> type[nn.Module]:
  """Imports a module class.

  Args:
    name: 'package.module:Class'.
    folder: folder that holds the package or module; None: wherever Python finds it.

  Raises:
    errors.InputError: the folder does not hold the module, the import fails, or the class is not a Flax Linen module;
      or it is one of a notebook or script, which no other program could load.
  """
  module_name, _, class_name = name.partition(':')
  module = _import(name, folder)
  modules = [key for key, value in vars(module).items() if _is_module(value)]
  if not hasattr(module, class_name):
    raise errors.unknown(f'Flax module in {module_name}', class_name, modules)
  result = getattr(module, class_name)
  if not _is_module(result):
    kind = result.__name__ if isinstance(result, type) else type(result).__name__
    raise errors.InputError(
      f'config.model.name={name!r} is not a Flax module but {kind}; it must be a subclass of flax.linen.Module'
    )
  return result


def find_folder(name: str, folder: str | None = None) -> str | None:
  """Returns the absolute path of the folder from which `load` imports a module.

  It is None for a module that any Python process finds again, because it is installed, and for one without a file. A
  line says if the code there is no longer that of which this process made a network before.
  """
  module = _import(name, folder)
  root = _root(module)
  if root in [None, *(sysconfig.get_path(kind) for kind in ('purelib', 'platlib', 'stdlib'))]:
    return None
  _warn_of_edits(name, module, root)
  return root


def _warn_of_edits(name: str, module: types.ModuleType, root: str | None) -> None:
  """Logs a line if the code of a module is another than when this process first looked for its folder."""
  code = agreement.own_code(name, root)
  spec, before = _used.get(module.__name__, (None, {}))
  if spec is not module.__spec__:  # Python has imported it since: for the first time, from another folder, or again
    _used[module.__name__] = module.__spec__, code
  elif edited := sorted(file for file in before if code.get(file) != before[file]):
    _log.warning(
      'the code of %s has changed (%s), but Python may still run what it imported before; to use the new code, restart '
      'it (in a notebook: the kernel)',
      name,
      errors.list_names(edited),
    )


def _import(name: str, folder: str | None) -> types.ModuleType:
  module_name, _, class_name = name.partition(':')
  if module_name == '__main__':
    raise errors.InputError(
      f'config.model.name={name!r} is a class of a notebook or script, which no other program could load: put the '
      f"class into a file beside it, such as nets.py, and name it 'nets:{class_name}'"
    )
  place = None if folder is None else _locate(name, module_name, os.path.abspath(os.path.expanduser(folder)))
  if place is not None:
    _search_first(module_name, place)
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # the user's code may raise anything during the import
    raise errors.InputError(
      f'config.model.name={name!r}: cannot import {module_name!r} ({type(error).__name__}: {error}); it must be an '
      'importable Python module: put it beside the config file, run from its folder, or add that folder to PYTHONPATH'
    ) from error
  if place is not None and _root(module) != place:
    taken = getattr(module, '__file__', 'a part of Python')
    raise errors.InputError(
      f'config.model.name={name!r}: the name {module_name!r} of the module in {place} is that of {taken}; rename your '
      'module'
    )
  return module


def _root(module: types.ModuleType) -> str | None:
  """Returns the folder that Python searched to find a module; None for one that it cannot find again by its name."""
  path = getattr(module, '__file__', None)
  if path is None or module.__name__ == '__main__':
    return None
  path = pathlib.Path(os.path.abspath(path))
  return str(path.parents[module.__name__.count('.') + (path.stem == '__init__')])


def _locate(name: str, module_name: str, folder: str) -> str:
  """Returns the folder that holds a module: the one where it was, else one of PYTHONPATH, with a warning."""
  if module_name in sys.modules and _root(sys.modules[module_name]) == folder:
    return folder
  for place in (folder, *filter(None, os.environ.get('PYTHONPATH', '').split(os.pathsep))):
    if _holds(place, module_name):
      if place != folder:
        _warn_of_move(name, folder, place)
      return os.path.abspath(place)
  raise errors.InputError(
    f'config.model.name={name!r}: there is no module {module_name!r} in {folder} (config.model.folder); if it has '
    'moved, put it back, or add the folder where it is now to PYTHONPATH'
  )


@functools.cache  # warns once
def _warn_of_move(name: str, folder: str, place: str) -> None:
  _log.warning('%s is no longer in %s: it is taken from %s', name, folder, place)


def _holds(folder: str, module_name: str) -> bool:
  """Returns whether a folder holds a module, which may be in packages; it imports nothing."""
  importlib.invalidate_caches()
  searched: Sequence[str] = [folder]
  spec, names = None, module_name.split('.')
  for count in range(1, len(names) + 1):
    spec = importlib.machinery.PathFinder.find_spec('.'.join(names[:count]), searched)
    if spec is None:
      return False
    searched = list(spec.submodule_search_locations or ())
  return spec is not None and spec.has_location


def _search_first(module_name: str, folder: str) -> None:
  """Makes Python import a module, and what it imports from beside itself, from a folder.

  Python forgets modules of the same names that it has imported from another folder. Its own stay, and those of dnt; so
  do those that pip has installed, which libraries hold, but for the name of the module itself.
  """
  if sys.path[:1] != [folder]:
    sys.path.insert(0, folder)
  beside = {module_name.partition('.')[0]}
  with contextlib.suppress(OSError):  # a zip file on PYTHONPATH
    beside |= {entry.partition('.')[0] for entry in os.listdir(folder)}
  beside -= {'dnt', *sys.stdlib_module_names}
  held = {each: module for each, module in sys.modules.copy().items() if each.partition('.')[0] in beside}
  others = {
    each.partition('.')[0]
    for each, module in held.items()
    if (root := _root(module)) != folder
    and (each == module_name or (root and _holds(folder, each) and not agreement.is_installed(pathlib.Path(root))))
  }
  for each in held:
    if each.partition('.')[0] in others:
      del sys.modules[each]


def make(
  base: type[nn.Module], name: str, num_classes: int, given: Mapping[str, Any], options: Mapping[str, Any]
) -> nn.Module:
  """Wraps the user's network in dnt's interface: `model(x, train)` returns float32 logits [B, classes].

  Args:
    base: from `load`; its `__call__` takes `x`, or `x` and arguments of `TRAINING`.
    name: 'package.module:Class', for messages.
    num_classes: number of classes.
    given: fields to set if the class has them.
    options: fields to set from the user's config, none of `given`.

  Raises:
    errors.InputError: dnt cannot call the class this way, the class lacks an option, or (at tracing) the logits have
      another shape, or the module draws from an rng that it does not get.
  """
  fields = field_names(base)
  for key in options:
    if key not in fields:
      raise errors.unknown(f'option of {name}', key, fields)
    if key in given:
      where = 'config.model' if key == 'parts' else f'config.model.{key}'
      raise errors.InputError(f'config.model.options cannot set {key!r} of {name}: {where} does')
  arguments = list(inspect.signature(base.__call__).parameters.values())[2:]
  required = [a.name for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
  if set(required) - TRAINING.keys():
    raise errors.InputError(
      f'{name} takes {", ".join(required)} besides x; __call__ must take (self, x) or (self, x, train), where the name '
      f'may also be {", ".join(list(TRAINING)[1:])}'
    )
  flags = TRAINING.keys() & {argument.name for argument in arguments}

  class Network(base):  # ty: ignore[unsupported-base]  # known only at run time
    calls_functions = True  # its activations may be functions, which `captures` then looks for

    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
      try:
        logits = super().__call__(x, **{flag: train == TRAINING[flag] for flag in flags})
      except flax.errors.InvalidRngError as error:
        rng = re.search(r'"(\w+)"', str(error))
        raise errors.InputError(
          f'{name} draws from the rng {rng[1] if rng else error!r} in {"training" if train else "evaluation"}; it may '
          f'draw only in training, and from {" and ".join(map(repr, stage.RNGS))}'
        ) from error
      if getattr(logits, 'shape', None) != (x.shape[0], num_classes):
        raise errors.InputError(
          f'{name} returns {getattr(logits, "shape", type(logits).__name__)} for {x.shape[0]} examples; it must '
          f'return logits [examples, classes], here {(x.shape[0], num_classes)}'
        )
      return jnp.asarray(logits, jnp.float32)

  Network.__name__ = Network.__qualname__ = base.__name__
  try:
    return Network(**{key: value for key, value in given.items() if key in fields}, **options)
  except TypeError as error:
    raise errors.InputError(f'{name} cannot be built from config.model.options: {error}') from error


def place_of(error: BaseException, model: nn.Module) -> str:
  """Returns 'file:line: ', the last place in the file of a user's own module that an error came by, or ''.

  Args:
    error: an error that was raised.
    model: from `make`.
  """
  base = type(model).__mro__[1]
  file = getattr(sys.modules.get(base.__module__), '__file__', None)
  lines = [line for frame, line in traceback.walk_tb(error.__traceback__) if frame.f_code.co_filename == file]
  return f'{file}:{lines[-1]}: ' if lines else ''


def field_names(base: type[nn.Module]) -> list[str]:
  """Returns the fields of a Flax module class, without Flax's own `parent` and `name`."""
  fields = dataclasses.fields(base)  # ty: ignore[invalid-argument-type]  # flax makes every subclass a dataclass
  return [field.name for field in fields if field.init and field.name not in ('parent', 'name')]


def _is_module(value: Any) -> bool:
  return isinstance(value, type) and issubclass(value, nn.Module)
