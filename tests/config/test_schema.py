import importlib.util
import pathlib

import pytest

from dnt import config as schema

OPTIONS = schema.OPTIONS['train']
CONFIGS = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


def test_the_default_is_valid_locked_and_typed():
  config = schema.default()
  schema.validate(config)
  with pytest.raises(AttributeError, match='"learning_rate"'):
    config.optim.learning_rte = 0.1
  with pytest.raises(TypeError):
    config.train.batch_size = '128'


def test_defaults_are_not_shared():
  schema.default().model.options.unlock()['classes'] = 3
  first, second = schema.default(), schema.default()
  first.optim.learning_rate = 3.0
  assert second.optim.learning_rate == 0.1 and not second.model.options


@pytest.mark.parametrize('key', OPTIONS)
def test_every_option_has_help_and_a_default_of_its_own_kind(key):
  option = OPTIONS[key]
  assert option.help and option.type in (bool, int, float, str, tuple, dict)
  value = schema.default()
  for part in key.split('.'):
    value = value[part]
  if option.type is not dict:
    assert value == (None if isinstance(option.default, type) else option.default)


@pytest.mark.parametrize('path', CONFIGS, ids=lambda path: path.stem)
def test_every_config_file_is_valid(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  config = module.get_config()
  schema.validate(config)
  assert config.is_locked


def test_every_option_of_networks_and_data_says_what_it_decides():
  for key, option in OPTIONS.items():
    assert option.role in schema.ROLES.get(key.partition('.')[0], ('',)), key
  assert schema.model_options('function') == ('norm_epsilon', 'stride_on')
  assert set(schema.model_options('run')) == {'num_classes', 'dtype', 'scan', 'remat'}
