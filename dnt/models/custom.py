"""Loads a user's own Flax module from its import path."""

import dataclasses
import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from dnt import errors


def load(name: str) -> type[nn.Module]:
  """Imports a module class.

  Args:
    name: 'package.module:Class'.

  Raises:
    errors.InputError: the import fails, or the class is not a Flax Linen module.
  """
  module_name, _, class_name = name.partition(':')
  try:
    module = importlib.import_module(module_name)
  except Exception as error:  # the user's code may raise anything during the import
    raise errors.InputError(
      f'config.model.name={name!r}: cannot import {module_name!r} ({type(error).__name__}: {error}); it must be an '
      'importable Python module: run from its folder, or add that folder to PYTHONPATH'
    ) from error
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


def make(name: str, num_classes: int, given: Mapping[str, Any], options: Mapping[str, Any]) -> nn.Module:
  """Wraps the user's network in dnt's interface: `model(x, train)` returns float32 logits [B, classes].

  Args:
    name: 'package.module:Class', whose `__call__` takes `x`, or `x` and `train`.
    num_classes: number of classes.
    given: fields to set if the class has them.
    options: fields to set from the user's config.

  Raises:
    errors.InputError: dnt cannot load the class or call it this way, the class lacks an option, or (at tracing) the
      logits have another shape.
  """
  base = load(name)
  fields = field_names(base)
  for key in options:
    if key not in fields:
      raise errors.unknown(f'option of {name}', key, fields)
  arguments = list(inspect.signature(base.__call__).parameters.values())[2:]
  required = [a.name for a in arguments if a.default is a.empty and a.kind not in (a.VAR_POSITIONAL, a.VAR_KEYWORD)]
  if set(required) - {'train'}:
    raise errors.InputError(
      f'{name} takes {", ".join(required)} besides x; __call__ must take (self, x) or (self, x, train)'
    )
  keywords = {'train'} & {argument.name for argument in arguments}

  class Network(base):  # ty: ignore[unsupported-base]  # known only at run time
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
      logits = super().__call__(x, **dict.fromkeys(keywords, train))
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


def field_names(base: type[nn.Module]) -> list[str]:
  """Returns the fields of a Flax module class, without Flax's own `parent` and `name`."""
  fields = dataclasses.fields(base)  # ty: ignore[invalid-argument-type]  # flax makes every subclass a dataclass
  return [field.name for field in fields if field.init and field.name not in ('parent', 'name')]


def _is_module(value: Any) -> bool:
  return isinstance(value, type) and issubclass(value, nn.Module)
