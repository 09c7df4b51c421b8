import importlib.util
import pathlib
import typing

import pytest

from dnt import config as schema
from dnt.config import typed

ROOT = pathlib.Path(__file__).parents[2]


def test_the_types_are_those_of_the_schema():
  path = ROOT / '.ci' / 'config_types.py'
  spec = importlib.util.spec_from_file_location(path.stem, path)
  generator = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(generator)
  assert pathlib.Path(typed.__file__).read_text() == generator.text(), 'python .ci/config_types.py writes them anew'


@pytest.mark.parametrize('key', dict(schema.options()))
def test_every_option_has_a_type_that_its_default_is_of(key):
  owner = typed.Config
  for name in key.split('.'):
    owner = typing.get_type_hints(owner)[name]
  default = schema.get_value(schema.default(), key)
  kinds = [typing.get_origin(each) or each for each in typing.get_args(owner) or (owner,)]
  if typing.get_origin(owner) is tuple:
    kinds = [tuple]
  assert typing.Any in kinds or isinstance(default, tuple(kinds))
