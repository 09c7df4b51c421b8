import json

import pytest

from dnt import config as schema
from dnt import errors
from dnt.config import run_config


def test_a_config_comes_back_as_it_was(tmp_path):
  config = schema.default()
  config.data.mean = (0.5, 0.25)
  config.eval.splits = ('test', 'train[:20%]')
  config.model.depth = 20
  config.model.options = {'widths': (3, 4), 'nested': {'rate': 0.5}}
  config.train.steps = 7
  run_config.write(tmp_path / 'config.json', config)
  read = run_config.get_config(str(tmp_path / 'config.json'))
  schema.validate(read)
  assert read.to_dict() == config.to_dict()
  assert read.is_locked


def test_what_is_beside_the_config_is_no_config(tmp_path):
  config, path = schema.default(), tmp_path / 'config.json'
  run_config.write(path, config, {'data': {'train': {'images': 3, 'content': 'ab', 'labels': None}}})
  assert json.loads(path.read_text())['provenance']['data']['train']['images'] == 3
  assert run_config.get_config(str(path)).to_dict() == config.to_dict()


def test_before_splits_were_held_out_the_first_one_ranked(tmp_path):
  content = schema.default().to_dict()
  content['eval']['splits'] = ['test', 'train']
  del content['data']['hold_out']
  (tmp_path / 'config.json').write_text(json.dumps(content))
  read = run_config.get_config(str(tmp_path / 'config.json'))
  assert (read.data.hold_out, read.checkpoint.best_metric) == (False, 'test/accuracy')


def test_what_an_older_version_lacked_keeps_its_default(tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'seed': 3, 'optim': {'learning_rate': 0.5}}))
  read = run_config.get_config(str(tmp_path / 'config.json'))
  assert (read.seed, read.optim.learning_rate, read.optim.momentum) == (3, 0.5, 0.9)
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


@pytest.mark.parametrize(('augment', 'resize'), [('none', 'squash'), ('resized_crop_flip', 'center_crop')])
def test_an_older_run_evaluates_as_its_augmentation_implied(tmp_path, augment, resize):
  content = schema.default().to_dict()
  content['data']['augment'] = augment
  path = tmp_path / 'config.json'
  path.write_text(json.dumps(content))
  assert run_config.get_config(str(path)).data.eval_resize is None, 'this one left it open'
  del content['data']['eval_resize']
  path.write_text(json.dumps(content))
  assert run_config.get_config(str(path)).data.eval_resize == resize


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
