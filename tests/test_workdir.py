"""Names of files, and formats: what older code wrote is read, what newer code wrote is refused by name."""

import json
import pathlib
import zipfile

import pytest

from dnt import errors, workdir

# A run stopped at step 8 of 12, a finished one, a comparison and a feature cache, written by commit c7c7fcf: before the
# modules moved, and before formats had numbers.
OLD = pathlib.Path(__file__).parent / 'old_runs.zip'


@pytest.fixture
def old(tmp_path, monkeypatch):
  """The folder that they are in; paths in them are relative to it."""
  with zipfile.ZipFile(OLD) as file:
    file.extractall(tmp_path)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def leaves(checkpoint):
  return json.loads((checkpoint / 'meta' / 'meta.json').read_text())['leaves']


def test_an_old_run_goes_on_to_the_end_of_one_that_was_not_stopped(old, program):
  """It stopped in its second phase, which the optimizer's state called stage1."""
  kernel = 'momentum/trace/stem/dense/kernel'
  assert f'opt_state/stage1/{kernel}' in leaves(old / 'run' / 'checkpoints' / '8')
  code, output, problems = program('--config=tiny.py', '--workdir=run')
  assert code == 0, problems
  assert 'from step 8' in output
  found, whole = (json.loads((old / name / 'summary.json').read_text()) for name in ('run', 'whole'))
  assert found['step'] == 12
  for name in ('test/loss', 'test_ema/loss'):
    assert found['last'][name] == pytest.approx(whole['last'][name], rel=1e-4)
  assert json.loads((old / 'run' / 'format.json').read_text()) == {'format': workdir.FORMAT}
  assert f'opt_state/phase1/{kernel}' in leaves(old / 'run' / 'checkpoints' / '12')


def test_an_old_run_is_evaluated_and_used_as_weights(old, program, call_program):
  assert program('--config=tiny.py', '--workdir=whole', '--mode=evaluate')[0] == 0
  code, output, problems = call_program('export', '--workdir=whole')
  assert code == 0, problems
  assert 'step 12' in output


@pytest.mark.thorough
def test_old_features_are_found(old, program):
  before = sorted(path.name for path in (old / 'cache').iterdir())
  arguments = ['--config.finetune.unfreeze=()', '--config.train.init_from=whole', '--config.ema.decay=0']
  code, output, problems = program('--config=tiny.py', '--workdir=new', '--config.finetune.cache_dir=cache', *arguments)
  assert code == 0, problems
  assert sorted(path.name for path in (old / 'cache').iterdir()) == before


def test_an_old_comparison_is_reported_without_running_again(old, call_program):
  code, output, problems = call_program('compare', '--config=pair.py', '--workdir=pair')
  assert code == 0, problems
  assert '2 runs' in output
  results = json.loads((old / 'pair' / 'results.json').read_text())
  assert {run['state'] for run in results['runs']} == {'finished'}


def test_what_newer_code_wrote_is_refused_by_name(old, refused):
  (old / 'run' / 'format.json').write_text('{"format": 99}')
  message = refused('--config=tiny.py', '--workdir=run')
  assert 'run' in message and 'format 99' in message
  with pytest.raises(errors.InputError, match=r'checkpoint here .*format 99\b'):
    workdir.check_number(99, 'checkpoint here')


@pytest.mark.parametrize('content', ['', '[]', '{"format": "x"}', '{}'])
def test_a_damaged_format_is_named(tmp_path, content):
  (tmp_path / workdir.VERSION).write_text(content)
  with pytest.raises(errors.InputError, match=rf'{tmp_path}/format\.json'):
    workdir.check_format(tmp_path)


def test_splits_have_confusion_matrices_of_their_own(tmp_path):
  assert workdir.confusion_path(tmp_path, 'train[:50%]').name == 'confusion_train_50.json'
  for split in ('train[:50%]', 'test'):
    workdir.confusion_path(tmp_path, split).write_text('{}')
  names = [path.name for path in workdir.confusion_paths(tmp_path)]
  assert names == ['confusion_test.json', 'confusion_train_50.json']
