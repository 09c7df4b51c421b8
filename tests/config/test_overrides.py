"""Options that others replace."""

import copy

import ml_collections
import pytest

from dnt import compare, main
from dnt import config as schema
from dnt.config import overrides


@pytest.mark.parametrize(
  ('changes', 'source', 'folder'),
  [
    ({'data.source': 'folder:other'}, 'folder:other', ''),
    ({'data.source': 'cars:other', 'data.dir': 'mine'}, 'cars:other', 'mine'),
    ({'data.source': 'tfds:mnist'}, 'tfds:mnist', 'pets'),
    ({'data.source': 'idx'}, 'idx', 'pets'),
    ({'data.dir': 'mine'}, 'folder', 'mine'),
    ({'seed': 3}, 'folder', 'pets'),
  ],
)
def test_a_folder_that_the_source_names_replaces_the_other(changes, source, folder):
  config = schema.default()
  config.data.source, config.data.dir = 'folder', 'pets'
  changed = overrides.override(config, changes, 'a test')
  assert (changed.data.source, changed.data.dir) == (source, folder)
  assert (config.data.source, config.data.dir) == ('folder', 'pets')


def test_a_number_of_epochs_replaces_that_of_steps():
  config = schema.default()
  config.train.steps = 7
  assert overrides.override(config, {'train.epochs': 2.0}, 'a test').train.steps is None
  assert overrides.override(config, {'train.epochs': 2.0, 'train.steps': 3}, 'a test').train.steps == 3


def test_a_config_that_lacks_what_would_be_unset_stays_as_it_is():
  """`validate` names what it lacks."""
  config = ml_collections.ConfigDict({'data': {'source': 'folder:other'}, 'train': {'epochs': 2.0}}).lock()
  overrides.unset_replaced(config, ['data.source', 'train.epochs'])
  assert config.to_dict() == {'data': {'source': 'folder:other'}, 'train': {'epochs': 2.0}}


def test_what_is_given_is_marked_in_copies_too():
  config = overrides.override(schema.default(), {'seed': 0, 'model.activation': 'relu'}, 'a test')
  for each in (config, schema.copy_unlocked(config), copy.deepcopy(config)):
    assert schema.is_given(each, 'seed') and schema.is_given(each.model, 'activation')
    assert not schema.is_given(each.model, 'norm') and not schema.is_given(each.data, 'seed')
  assert config == schema.default(), 'a mark is no value'


def test_what_the_command_line_gives_is_marked(parse):
  config = parse(main.PROGRAM, '--config.model.activation=relu')
  assert schema.is_given(config.model, 'activation') and not schema.is_given(config.model, 'norm')
  config = parse(compare.PROGRAM, '--config=configs/compare_init.py', '--config.base.model.norm=batch_norm')
  assert schema.is_given(config.base.model, 'norm') and not schema.is_given(config.base.model, 'activation')
