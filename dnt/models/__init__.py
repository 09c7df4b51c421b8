"""Builds networks from a config and initializes their parameters from a seed."""

import re
from typing import Any

import flax.linen as nn
import jax

from dnt import config as schema
from dnt import errors
from dnt.config import typed
from dnt.models import custom, densenet, depth, highway, initializers, layouts, mlp, parts, plain, resnet
from dnt.parallel import compile as compile_lib

MODELS: dict[str, type[nn.Module]] = {
  'mlp': mlp.Mlp,
  'plain': plain.Plain,
  'resnet': resnet.ResNet,
  'highway': highway.Highway,
  'densenet': densenet.DenseNet,
}
PRETRAINED = 'pretrained'  # value of config.model.name that selects the network of `train.init_from`
# The options of config.model that are fields of the model classes, and those that define the parts of a network.
FIELDS = tuple(
  key
  for key in schema.SCHEMA['model']
  if key != 'num_classes' and any(key in custom.field_names(each) for each in MODELS.values())
)
_NO_PARTS = ('name', 'num_classes', 'options', 'folder', *FIELDS)
PARTS = tuple(key for key in schema.SCHEMA['model'] if key not in _NO_PARTS)


def make(model: typed.Model, num_classes: int) -> nn.Module:
  """Builds the network of `config.model`: `apply(variables, x, train)` returns float32 logits [B, classes].

  `init` below draws the variables. Flax's own `model.init` gives them in the unrolled layout, which a model with `scan`
  does not apply.

  Options left at None use the model class's default. A user's own module ('mypkg.nets:Net') receives `num_classes`,
  `parts` (see `parts.Parts`), `scan` and `remat` if it has these fields, and its `config.model.options`. Unless the
  config sets `scan` and `remat`, here or in these options, they keep the module's defaults.

  Args:
    model: validated `config.model`.
    num_classes: number of classes.

  Raises:
    errors.InputError: the model or user module is unknown, or it does not have or support an option.
  """
  fields = {key: model[key] for key in FIELDS if not is_open(model, key)}
  if ':' in model.name:
    return _make_custom(model, num_classes, fields)
  if model.name not in MODELS:
    valid = (*MODELS, PRETRAINED)
    error = errors.unknown("model (or 'package.module:Class' for your own)", model.name, valid)
    number = re.search(r'\d+', model.name)
    raise errors.InputError(f'{error}; config.model.depth={number[0]} sets the depth') if number else error
  known = custom.field_names(MODELS[model.name])
  fields = {key: value for key, value in fields.items() if key in known or not _is_off(model, key)}
  for key in fields:
    if key not in known:
      valid = ', '.join(name for name in known if name in FIELDS)
      raise errors.InputError(f'model {model.name!r} has no option config.model.{key}; it has {valid}')
  if model.options:
    raise errors.InputError(f'config.model.options is only for your own modules, not for {model.name!r}')
  return MODELS[model.name](num_classes=num_classes, parts=parts.make(model), **fields)


def check(model: typed.Model) -> None:
  """Checks `config.model` as far as possible without data and weights.

  Raises:
    errors.InputError: as in `make`.
  """
  if model.name != PRETRAINED:
    make(model, model.num_classes or 10)


def resolved_options(model: typed.Model) -> dict[str, Any]:
  """Returns the options of `config.model` that the model class has, with the values the network actually uses.

  Of a user's own module it is the folder where it was found.

  Args:
    model: validated `config.model`.

  Raises:
    errors.InputError: as in `make`.
  """
  if ':' in model.name:
    return {'folder': custom.find_folder(model.name, model.folder)}
  network = make(model, 2)
  fields = {key: getattr(network, key) for key in custom.field_names(type(network)) if key in FIELDS}
  return fields | (network.resolved()._asdict() if hasattr(network, 'resolved') else {})


def init(trace: depth.Trace, seed: int) -> dict[str, Any]:
  """Returns initial parameters and statistics in the model's layout; they depend only on the seed and leaf paths.

  The function draws them on the host, leaf by leaf in the unrolled layout, without compiling a program, and then stacks
  them.

  Args:
    trace: the trace of the model.
    seed: seed of the parameters.

  Returns:
    `{'params': ..., 'batch_stats': ...}`, float32; `batch_stats` may be empty.
  """
  structure = jax.tree.structure(trace.variables)
  with compile_lib.on_host():
    variables = jax.tree.unflatten(structure, trace.program(jax.random.key(seed, impl=initializers.PRNG)))
    return layouts.to_scanned({'params': {}, 'batch_stats': {}, **variables}, trace.scanned)


def is_open(model: typed.Model, key: str) -> bool:
  """Returns whether `config.model` leaves an option at its default."""
  option = schema.SCHEMA['model'][key]
  if option.type is dict:
    return not model[key]
  return model[key] == (None if isinstance(option.default, type) else option.default)


def is_left(model: typed.Model, key: str) -> bool:
  """Returns whether weights or an earlier run decide an option of `config.model`.

  They do if it is at its default, but for one that the user has set to it on the command line, see
  `dnt.config.mark_given`.
  """
  return is_open(model, key) and (model[key] is None or not schema.is_given(model, key))


def _is_off(model: typed.Model, key: str) -> bool:
  """Returns whether an option asks for nothing, so that it may be given to a network that lacks it."""
  return model[key] == schema.SCHEMA['model'][key].off


def _make_custom(model: typed.Model, num_classes: int, fields: dict[str, Any]) -> nn.Module:
  base = custom.load(model.name, model.folder)
  known = custom.field_names(base)
  changed = {key: model[key] for key in PARTS if not is_open(model, key)}
  given: dict[str, Any] = {'num_classes': num_classes}
  for key in ('scan', 'remat'):
    if model[key] or not (hasattr(base, key) or key in model.options):
      given[key] = model[key]
  if 'parts' in known:
    given['parts'] = parts.make(model)
    changed = {}
  for key in (*fields, *changed):
    if (key not in known or key not in ('scan', 'remat')) and not _is_off(model, key):
      raise errors.InputError(
        f'config.model.{key} does not reach your own module {model.name!r}; set its fields in config.model.options, '
        'or add a field `parts` (dnt.models.parts.Parts) for norm, activation, initializer and dtype'
      )
  return custom.make(base, model.name, num_classes, given, schema.plain(model.options))
