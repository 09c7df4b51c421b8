import importlib.util
import pathlib
import types
import typing

from dnt import config as schema
from dnt.config import keys, typed
from dnt.training import datasets, open_options

ROOT = pathlib.Path(__file__).parents[2]


def test_the_types_are_those_of_the_schema():
  path = ROOT / '.ci' / 'config_types.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  generator = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(generator)
  assert pathlib.Path(typed.__file__).read_text() == generator.text(), 'python .ci/config_types.py writes them anew'


def test_every_option_of_a_resolved_config_is_of_its_type(tiny):
  config = open_options.resolve(tiny, datasets.load(tiny, ()))
  for key in schema.OPTIONS['train']:
    of = typed.Config
    for name in key.split('.'):
      of = typing.get_type_hints(of)[name]
    kinds = typing.get_args(of) if isinstance(of, types.UnionType) or typing.get_origin(of) is typing.Union else (of,)
    value = keys.get(config, key)
    assert any(is_of(value, kind) for kind in kinds), (key, value, of)


def is_of(value, kind):
  origin = typing.get_origin(kind)
  if kind is typing.Any or origin is typing.Literal:
    return kind is typing.Any or value in typing.get_args(kind)
  return isinstance(value, origin or kind)
