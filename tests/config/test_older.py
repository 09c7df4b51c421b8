"""What versions of before wrote, in the present format; `tests/old_runs.zip` holds whole runs of one."""

import copy

import pytest

from dnt import config as schema
from dnt.config import keys, older, run_config


def content(given, *lacking):
  """A config in JSON values, as a version wrote it that lacked some options."""
  values = schema.override(schema.default(), given, 'test').to_dict()
  for key in lacking:
    section, name = key.split('.')
    del values[section][name]
  return values


def test_before_splits_were_held_out_the_first_one_ranked():
  for metric, ranking in (('loss', 'test/loss'), ('train/loss', 'train/loss')):
    values = content({'eval.splits': ('test', 'train'), 'checkpoint.best_metric': metric})
    read = run_config.parse(values, 'config.json')
    assert (read.data.hold_out, read.checkpoint.best_metric) == (None, metric) and not older.held_nothing_out(values)
    del values['data']['hold_out']
    read = run_config.parse(values, 'config.json')
    assert (read.data.hold_out, read.checkpoint.best_metric) == (False, ranking) and older.held_nothing_out(values)
  assert not older.held_nothing_out({'seed': 3}), 'no version wrote a part'


@pytest.mark.parametrize(('augment', 'resize'), [('none', 'squash'), ('resized_crop_flip', 'center_crop')])
def test_evaluation_resized_as_the_augmentation_implied(augment, resize):
  assert run_config.parse(content({'data.augment': augment}), 'config.json').data.eval_resize is None, 'left open'
  values = content({'data.augment': augment}, 'data.eval_resize')
  assert run_config.parse(values, 'config.json').data.eval_resize == resize


def test_a_run_beside_those_that_held_nothing_out_begins_as_they_did():
  for given, found in (
    ({}, (('test',), False, 'test/accuracy')),
    ({'eval.splits': ('train',)}, (('train',), False, 'train/accuracy')),
    ({'data.hold_out': True, 'checkpoint.best_metric': 'val/loss'}, (('test',), True, 'val/loss')),
  ):
    config = schema.override(schema.default(), given, 'test')
    older.begin(config)
    assert tuple(keys.get(config, key) for key in ('eval.splits', 'data.hold_out', 'checkpoint.best_metric')) == found


@pytest.mark.parametrize(
  ('metric', 'decay', 'metrics'),
  [(0.25, 0.0, {'val/loss': 0.25}), (0.25, 0.9, {'val_ema/loss': 0.25}), (None, 0.9, {})],
)
def test_the_only_metric_of_a_checkpoint_was_that_of_the_first_split(metric, decay, metrics):
  config = {'eval.splits': ('val', 'test'), 'ema.decay': decay, 'checkpoint.best_metric': 'loss'}
  written = {'meta': {'config': content(config, 'data.hold_out')}, 'metric': metric, 'leaves': {}}
  found = older.envelope(written, 3)
  assert found['metrics'] == metrics and found['format'] == 1
  found = older.envelope({'format': 3, **written, 'metrics': {'test/loss': 1.0}}, 3)
  assert found['metrics'] == {'test/loss': 1.0} and found['format'] == 3


def test_a_phase_of_the_optimizer_was_a_stage():
  kernel = 'momentum/trace/stage1/block001/kernel'
  assert older.leaf(f'opt_state/stage2/{kernel}', 1) == f'opt_state/phase2/{kernel}'
  for name, number in ((f'opt_state/stage2/{kernel}', 2), (f'opt_state/phase2/{kernel}', 1), ('params/stage1/a', 1)):
    assert older.leaf(name, number) == name


def test_metadata_lack_nothing_that_the_loop_reads():
  config = content({'train.batch_size': 16, 'data.image_size': 8, 'data.mean': (0.5,)})
  written = {'config': config, 'sums': {'loss': 9.0, 'steps': 3, 'learning_rate': 0.1 + 0.15 + 0.2}}
  before = copy.deepcopy(written)
  found = older.meta(written, 5)
  assert written == before
  assert found['sums'].pop('learning_rate') == pytest.approx(0.15), 'they summed it'
  assert found == {
    'config': config,
    'sums': {'loss': 9.0, 'steps': 3},
    'images': 5 * 16,
    'image_shape': [8, 8, 1],
    'data': {},
    'versions': {},
    'devices': {},
  }
  assert older.meta({'config': config, 'sums': {}}, 5)['sums'] == {}


def test_metadata_of_the_present_format_and_of_others_stay():
  present = {'config': content({}), 'sums': {'steps': 2, 'learning_rate': 0.2}, 'image_shape': [8, 9, 3], 'images': 7}
  present |= {'data': {'train': {}}, 'versions': {'jax': '1'}, 'devices': {'count': 2}}
  for meta in (present, {}, {'at': 3}):
    assert older.meta(meta, 5) == meta
