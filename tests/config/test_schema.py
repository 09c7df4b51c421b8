import copy
import importlib.util
import pathlib
import pickle

import ml_collections
import numpy as np
import pytest

from dnt import config as schema
from dnt import errors
from dnt.config import keys

OPTIONS = schema.OPTIONS['train']
CONFIGS = sorted((pathlib.Path(__file__).parents[2] / 'configs').glob('*.py'))


def test_the_default_is_valid_locked_and_typed():
  config = schema.default()
  schema.validate(config)
  with pytest.raises(errors.InputError, match="did you mean 'optim.learning_rate'"):
    config.optim.learning_rte = 0.1
  with pytest.raises(errors.InputError, match="^config.train.batch_size must be int, not str \\('128'\\)$"):
    config.train.batch_size = '128'


@pytest.fixture(params=['', 'base.'])
def training(request):
  """A training config, alone or in a comparison, and what stands before the names of its options."""
  return (schema.default('compare').base if request.param else schema.default()), request.param


READ_OR_SET = {
  'attribute': lambda config: config.train.lr,
  'key': lambda config: config['train']['lr'],
  'key with a dot': lambda config: config['train.lr'],
  'set attribute': lambda config: setattr(config.train, 'lr', 3),
  'set key': lambda config: config['train'].__setitem__('lr', 3),
  'update': lambda config: config.train.update(lr=3),
  'update of sections': lambda config: config.update({'train': {'lr': 3}}),
  'after a copy': lambda config: copy.deepcopy(config).train.lr,
  'after references are resolved': lambda config: config.copy_and_resolve_references().train.lr,
  'after a pickle': lambda config: pickle.loads(pickle.dumps(config)).train.lr,
}


@pytest.mark.parametrize('way', READ_OR_SET)
def test_an_option_that_there_is_not_is_named_with_the_one_that_is_meant(way, training):
  config, prefix = training
  said = f"^unknown config key '{prefix}train.lr'; did you mean '{prefix}optim.learning_rate'"
  with pytest.raises(errors.InputError, match=said) as refused:
    READ_OR_SET[way](config)
  assert '\n' not in str(refused.value) and 'FieldReference' not in str(refused.value)


def test_an_option_that_there_is_not_is_missing_as_python_expects(training):
  config, prefix = training
  assert not hasattr(config.train, 'lr') and getattr(config.train, 'lr', 5) == 5
  assert config.train.get('lr') is None and 'lr' not in config.train
  with pytest.raises(AttributeError, match='^_repr_html_$'):
    _ = config._repr_html_
  with pytest.raises(errors.InputError, match=f"^'{prefix}optim.momentum' holds a dot; write config"):
    config.update({'optim.momentum': 0.5})


@pytest.mark.parametrize(
  ('key', 'given', 'held'),
  [
    ('data.dir', pathlib.Path('pets'), 'pets'),
    ('train.init_from', pathlib.Path('a', 'b.pth'), 'a/b.pth'),
    ('train.batch_size', np.int64(8), 8),
    ('train.steps', np.int32(8), 8),  # not set by default
    ('train.epochs', np.int64(2), 2.0),
    ('optim.momentum', np.float32(0.5), 0.5),
    ('optim.momentum', np.float64(0.1), 0.1),
    ('optim.momentum', np.array(0.5), 0.5),
    ('optim.learning_rate', np.float32(0.5), 0.5),  # a number or a word
    ('optim.learning_rate', 'auto', 'auto'),
    ('data.flip', np.bool_(False), False),
    ('model.name', np.str_('mlp'), 'mlp'),
    ('eval.splits', ['val', 'test'], ('val', 'test')),
    ('data.mean', np.array([0.5, 0.25, 0.125], np.float32), (0.5, 0.25, 0.125)),
    ('data.mean', (np.float64(0.5),), (0.5,)),
    ('finetune.unfreeze', [['30%', 'all']], (('30%', 'all'),)),
    ('eval.every', 1, '1'),
    ('checkpoint.every', np.int64(100), '100'),
    ('eval.every', '2 epochs', '2 epochs'),
  ],
)
def test_values_of_other_libraries_and_steps_become_those_of_the_option(key, given, held, training):
  config, _ = training
  keys.put(config, key, given)
  value = keys.get(config, key)
  assert value == held and type(value) is type(held)
  if isinstance(held, tuple):
    assert list(map(type, value)) == list(map(type, held))
  schema.validate(config)


@pytest.mark.parametrize(
  ('key', 'given', 'said'),
  [
    ('eval.splits', 'val', "must be tuple, not str ('val')"),
    ('train.batch_size', np.float64(8.5), 'must be int, not float64 ('),
    ('train.batch_size', pathlib.PurePosixPath('8'), "must be int, not PurePosixPath (PurePosixPath('8'))"),
    ('train.steps', 'ten', "must be int, not str ('ten')"),
    ('train.epochs', np.eye(2), 'must be float, not ndarray (array('),
    ('eval.every', 0.5, 'must be str, not float (0.5)'),
    ('eval.every', True, 'must be str, not bool (True)'),
    ('model.options', 3, 'must be dict, not int (3)'),
    ('model', 3, 'must be a section, not int (3)'),
  ],
)
def test_a_value_of_a_wrong_type_is_refused_in_one_line_that_names_the_option(key, given, said, training):
  config, prefix = training
  with pytest.raises(errors.InputError) as refused:
    keys.put(config, key, given)
  assert str(refused.value).startswith(f'config.{prefix}{key} {said}') and '\n' not in str(refused.value)


@pytest.mark.parametrize('kind', schema.KINDS)
def test_a_config_is_copied_compared_and_converted_as_any_config_dict(kind):
  config = schema.default(kind)
  for same in (copy.copy(config), copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
    assert same == config and same.is_locked and type(same) is type(config)
  if kind != 'compare':  # whose variants a ConfigDict would convert
    plain = ml_collections.ConfigDict(config.to_dict()).lock()
    assert plain.to_dict() == config.to_dict()
  if kind == 'signal':  # the others hold dicts, which are ConfigDicts there
    assert plain == config and config == plain
    assert ml_collections.FrozenConfigDict(config).to_dict() == config.to_dict()
  assert config != schema.default('signal' if kind != 'signal' else 'train') and config != 3
  assert config.copy_and_resolve_references().to_dict() == config.to_dict()


def test_a_section_may_be_replaced_and_free_keys_stay_free():
  config, comparison = schema.default(), schema.default('compare')
  config.model = schema.copy_unlocked(schema.default()).model
  config.optim = {'learning_rate': 0.5}
  with pytest.raises(errors.InputError, match="'optim.name' is missing"):
    schema.validate(config)
  config.model.depth = 20
  comparison.base = config
  assert comparison.base.model.depth == 20
  comparison.variants = {'a': {'optim.learning_rate': 0.5}}
  comparison.variants['b'] = {'model.depth': 8}
  assert list(comparison.variants) == ['a', 'b'] and type(comparison.variants) is dict
  config = schema.default()
  config.model.options = {'classes': 3, 'nested': {'rate': 0.5}}
  config.model.options['more'] = [1]  # also where it is locked: its keys are of another module
  assert config.model.options == {'classes': 3, 'nested': {'rate': 0.5}, 'more': [1]}
  schema.validate(config)


def test_defaults_are_not_shared():
  schema.default().model.options['classes'] = 3
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
