import json

import ml_collections
import pytest

from dnt import config as schema
from dnt import errors
from dnt.config import changes, keys, run_config


def test_a_config_comes_back_as_it_was(tmp_path):
  config = schema.default()
  config.data.mean = (0.5, 0.25)
  config.eval.splits = ('test', 'train[:20%]')
  config.model.depth = 20
  config.model.options = {'widths': (3, 4), 'nested': {'rate': 0.5}, 'blocks': ({'width': 16}, {'width': 8})}
  config.train.steps = 7
  run_config.write(tmp_path / 'config.json', config)
  read = run_config.get_config(str(tmp_path / 'config.json'))
  schema.validate(read)
  assert read.to_dict() == config.to_dict()
  assert read.is_locked
  assert list(read.model.options) == ['widths', 'nested', 'blocks']
  run_config.write(tmp_path / 'again.json', read)
  assert (tmp_path / 'again.json').read_text() == (tmp_path / 'config.json').read_text()
  assert not changes.find(config, read) and not changes.find(read, config)


def test_what_a_user_gives_a_module_is_no_option_that_is_left_open(tmp_path):
  given = schema.default()
  given.model.options = {'widths': [3, 4], 'inner': ml_collections.ConfigDict({'rate': 0.5})}
  assert run_config.left_open(given, schema.copy_unlocked(given)) == {}
  run_config.write(tmp_path / 'config.json', given)
  read = run_config.get_config(str(tmp_path / 'config.json'))
  assert read.model.options == {'widths': (3, 4), 'inner': {'rate': 0.5}}
  assert not changes.find(given, read)


def test_what_is_beside_the_config_is_no_config(tmp_path):
  config, path = schema.default(), tmp_path / 'config.json'
  run_config.write(path, config, {'data': {'train': {'images': 3, 'content': 'ab', 'labels': None}}})
  assert json.loads(path.read_text())['provenance']['data']['train']['images'] == 3
  assert run_config.get_config(str(path)).to_dict() == config.to_dict()


def test_what_an_older_version_lacked_keeps_its_default(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'seed': 3, 'optim': {'learning_rate': 0.5}}))
  read = run_config.get_config(str(tmp_path / 'config.json'))
  assert (read.seed, read.optim.learning_rate, read.optim.b1) == (3, 0.5, 0.9)
  (tmp_path / 'config.json').write_text(json.dumps({'optim': {'learning_rate': 0.0}}))
  assert run_config.get_config(str(tmp_path / 'config.json')).optim.learning_rate == 'auto', (
    'as older versions wrote it'
  )


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    ({'seed': 2**32}, r'config\.seed=4294967296 must be at least 0 and at most 4,294,967,295'),
    ({'schedule': {'warmup': '0.3'}}, r"config\.schedule\.warmup='0\.3' must be at least a step.* '30%'"),
    ({'schedule': {'boundaries': [0.5, 0.75]}}, r"config\.schedule\.boundaries=.* a step.* '50%'"),
  ],
)
def test_what_an_older_version_took_is_read_and_not_run_again(tmp_path, content, message):
  (tmp_path / 'config.json').write_text(json.dumps(content))
  read = run_config.get_config(str(tmp_path / 'config.json'))
  with pytest.raises(errors.InputError, match=message):
    schema.validate(read)


@pytest.mark.parametrize(
  ('content', 'message'),
  [
    (None, r'config\.json'),
    ('{', r'config\.json .*JSON'),
    ('{"optim": {"learning_rte": 1}}', "'optim.learning_rte'.* 'optim.learning_rate'"),
  ],
)
def test_what_is_no_config_is_refused(tmp_path, content, message):
  if content is not None:
    (tmp_path / 'config.json').write_text(content)
  with pytest.raises(errors.InputError, match=message):
    run_config.get_config(str(tmp_path / 'config.json'))


@pytest.fixture
def recorded(tmp_path):
  """`recorded(given, determined, overrides)`: the config of a run that determined some options, run again."""

  def read(given, determined, overrides=None, open_is_known=True, edited=None):
    config, resolved = schema.override(schema.default(), given, 'test'), schema.default()
    for key, value in (given | determined).items():
      keys.put(resolved, key, value)
    path = tmp_path / 'config.json'
    found = {run_config.OPEN: run_config.left_open(config, resolved)} if open_is_known else {'data': {}}
    run_config.write(path, resolved, found)
    content = json.loads(path.read_text())
    for key, value in (edited or {}).items():
      section, name = key.split('.')
      content[section][name] = value
    path.write_text(json.dumps(content))
    read = run_config.get_config(str(path))
    for key, value in (overrides or {}).items():
      keys.put(read, key, value)
    run_config.reopen(read, str(path), overrides or {})
    schema.validate(read)
    return read

  return read


def test_what_a_run_determined_follows_the_options_of_the_next(recorded):
  given = {'loss.balance_classes': True, 'data.image_bits': 12}
  determined = {
    'loss.balance_classes': False,
    'loss.class_weights': (0.5, 1.5),
    'data.hold_out': True,
    'data.mean': (0.4,),
    'data.std': (0.2,),
    'data.eval_resize': 'squash',
    'model.num_classes': 2,
    'model.depth': 20,
    'train.steps': 70,
    'checkpoint.best_metric': 'val/accuracy',
  }
  asked = schema.override(schema.default(), given, 'test').to_dict()
  assert recorded(given, determined).to_dict() == asked
  read = recorded(given, determined, {'data.hold_out': False, 'eval.splits': ('test',)})
  assert read.data.hold_out is False and read.checkpoint.best_metric == 'accuracy'


@pytest.mark.parametrize(
  ('edited', 'read'),
  [
    ({}, ((), (), None, 'accuracy', True, ())),
    ({'data.mean': [0.5]}, ((0.5,), (0.2,), None, 'accuracy', True, ())),
    ({'data.std': [0.5]}, ((0.4,), (0.5,), None, 'accuracy', True, ())),
    ({'data.hold_out': False}, ((), (), False, 'accuracy', True, ())),
    ({'checkpoint.best_metric': 'test/loss'}, ((), (), None, 'test/loss', True, ())),
    ({'loss.class_weights': [2.0, 1.0]}, ((), (), None, 'accuracy', False, (2.0, 1.0))),
    ({'loss.balance_classes': True}, ((), (), None, 'accuracy', True, ())),
  ],
)
@pytest.mark.parametrize('by', ['hand', 'command line'])
def test_what_somebody_changed_is_not_open_again(recorded, edited, read, by):
  determined = {
    'data.mean': (0.4,),
    'data.std': (0.2,),
    'data.hold_out': True,
    'checkpoint.best_metric': 'val/accuracy',
  }
  determined |= {'loss.balance_classes': False, 'loss.class_weights': (0.5, 1.5)}
  if by == 'hand':
    config = recorded({'loss.balance_classes': True}, determined, edited=edited)
  else:
    overrides = {key: tuple(value) if isinstance(value, list) else value for key, value in edited.items()}
    config = recorded({'loss.balance_classes': True}, determined, overrides)
  found = (config.data.mean, config.data.std, config.data.hold_out, config.checkpoint.best_metric)
  assert (*found, config.loss.balance_classes, config.loss.class_weights) == read


def test_the_rate_that_a_run_found_and_the_place_of_its_module_stay(recorded):
  with_rate = recorded({}, {'optim.learning_rate': 0.25, 'model.folder': '/here', 'model.num_classes': 2})
  assert (with_rate.optim.learning_rate, with_rate.model.folder, with_rate.model.num_classes) == (0.25, '/here', None)


def test_what_weights_determined_stays_unless_there_are_others(recorded):
  given = {'train.init_from': 'weights.pth', 'model.name': 'pretrained', 'data.interpolation': 'bilinear'}
  determined = {'data.mean': (0.4,), 'data.std': (0.2,), 'data.image_size': 224, 'data.eval_crop': 0.9}
  determined |= {'model.name': 'resnet', 'model.depth': 50, 'model.num_classes': 3, 'data.hold_out': True}
  for overrides in ({}, {'train.init_from': ''}, {'train.batch_size': 4}):
    read = recorded(given, determined, overrides)
    assert (read.data.image_size, read.data.mean, read.model.name, read.model.depth) == (224, (0.4,), 'resnet', 50)
    assert (read.model.num_classes, read.data.hold_out) == (None, None), 'they are of the data'
  read = recorded(given, determined, {'train.init_from': 'other.pth'})
  assert (read.data.image_size, read.data.mean, read.model.name, read.model.depth) == (None, (), 'pretrained', None)
  assert read.data.interpolation == 'bilinear', 'the run was given it'


@pytest.mark.parametrize(
  ('recorded_splits', 'held_out', 'metric', 'asked', 'read'),
  [
    (('val',), True, 'val/accuracy', ('test',), (None, 'accuracy')),
    (('test',), False, 'accuracy', ('val[:50%]',), (None, 'accuracy')),
    (('val', 'test'), True, 'test/loss', ('test', 'val'), (True, 'test/loss')),
    (('test',), True, 'accuracy', None, (True, 'accuracy')),
  ],
)
def test_of_a_run_that_did_not_record_it_what_contradicts_the_new_splits_is_open(
  recorded, recorded_splits, held_out, metric, asked, read
):
  determined = {'eval.splits': recorded_splits, 'data.hold_out': held_out, 'checkpoint.best_metric': metric}
  config = recorded({}, determined, asked and {'eval.splits': asked}, open_is_known=False)
  assert (config.data.hold_out, config.checkpoint.best_metric) == read
