"""Names of files, and formats: what older code wrote is read, what newer code wrote is refused by name."""

import fnmatch
import json
import pathlib
import re
import shutil
import zipfile

import pytest

from dnt import errors, files, workdir
from dnt.training import prepare

pytestmark = pytest.mark.usefixtures('undrawn')

# A run stopped at step 8 of 12, a finished one and a comparison, written by commit c7c7fcf: before the modules moved,
# and before formats had numbers.
OLD = pathlib.Path(__file__).parent / 'old_runs.zip'


@pytest.fixture
def old(tmp_path, monkeypatch):
  """The folder that they are in; paths in them are relative to it."""
  with zipfile.ZipFile(OLD) as file:
    file.extractall(tmp_path)
  monkeypatch.chdir(tmp_path)
  return tmp_path


def test_every_file_of_a_run_is_in_the_table_of_the_docs(trained):
  text = (pathlib.Path(__file__).parents[1] / 'docs' / 'runs.md').read_text()
  rows = [line.split(' | ')[0] for line in text.partition('## The workdir')[2].partition('\n\nTrain')[0].splitlines()]
  cells = [re.findall('`([^`]+)`', row) for row in rows]
  cells += [[cell[0].replace('.json', suffix) for suffix in cell[1:] if suffix.startswith('.')] for cell in cells]
  listed = [re.sub('<.*>', '*', name).rstrip('/') for cell in cells for name in cell]
  by_name = {'OWNER', 'EVALUATION', 'DEAD_UNITS', 'NOISE_SCALE', 'PROFILE', 'LR_FIND', 'LR_FIND_PLOT'}
  by_name |= {'REQUESTED', 'SOURCE', 'LOG', 'FAILURE'}
  left = {path.name for path in trained.workdir.iterdir()}
  assert workdir.VERSION in left
  missing = {
    name
    for name in left | {getattr(workdir, name) for name in by_name}
    if not any(fnmatch.fnmatchcase(name, pattern) for pattern in listed)
  }
  assert not missing


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


@pytest.mark.parametrize('kept', ['config.json', 'checkpoints', 'format.json'])
def test_a_run_that_has_begun_goes_on_whatever_is_left_of_it(old, kept):
  run = old / 'run'
  if kept != 'config.json':
    (run / 'config.json').write_text('[]')
  if kept != 'checkpoints':
    shutil.rmtree(run / 'checkpoints')
  if kept == 'format.json':
    workdir.write_format(run)
  prepare.check_files(run)
  shutil.rmtree(run / 'checkpoints', ignore_errors=True)
  (run / 'config.json').write_text('[]')
  (run / 'format.json').unlink(missing_ok=True)
  with pytest.raises(errors.InputError, match=r'run/config\.json is not of a run'):
    prepare.check_files(run)


def test_an_old_run_is_evaluated_and_used_as_weights(old, program, call_program):
  assert program('--config=tiny.py', '--workdir=whole', '--mode=evaluate')[0] == 0
  code, output, problems = call_program('export', '--workdir=whole')
  assert code == 0, problems
  assert 'step 12' in output


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


@pytest.mark.parametrize('name', [workdir.PROBE, workdir.SIGNAL])
def test_findings_of_a_newer_version_are_refused_by_name_and_stay(tmp_path, refused, name):
  path, content = tmp_path / name, json.dumps({'format': 99})
  path.write_text(content)
  config = {workdir.PROBE: 'digits_resnet20.py', workdir.SIGNAL: 'probe_grid.py'}[name]
  message = refused(f'--config={config}', f'--workdir={tmp_path}', name='probe')
  assert str(path) in message and 'format 99' in message
  assert path.read_text() == content


@pytest.mark.parametrize('content', ['{}', '[]', '', '{"format": 1}', '{"format": "x"}'])
def test_findings_of_an_older_version_are_replaced(tmp_path, content):
  path = tmp_path / workdir.PROBE
  path.write_text(content)
  workdir.check_file(path)
  assert path.read_text() == content, 'until there is something to replace it with'
  files.write_json(path, {'format': workdir.FORMAT, 'networks': []})
  workdir.check_file(path)
  assert json.loads(path.read_text()) == {'format': workdir.FORMAT, 'networks': []}
  workdir.check_file(tmp_path / 'absent.json')
  assert [each.name for each in tmp_path.iterdir()] == [workdir.PROBE]


@pytest.mark.parametrize('content', ['', '[]', '{"format": "x"}', '{}'])
def test_a_damaged_format_is_named(tmp_path, content):
  (tmp_path / workdir.VERSION).write_text(content)
  with pytest.raises(errors.InputError, match=rf'{re.escape(str(tmp_path))}/format\.json'):
    workdir.check_format(tmp_path)


NOT_UTF8 = b'\xff\xfe\n\x80'


def spoil_metrics(workdir):
  with (workdir / 'metrics.jsonl').open('ab') as file:
    file.write(NOT_UTF8)


def writes(name, content):
  return lambda workdir: (workdir / name).write_bytes(content)


def without_classes(workdir):
  path = workdir / 'config.json'
  content = json.loads(path.read_text())
  del content['model']['num_classes']
  path.write_text(json.dumps(content))


def with_unknown_key(workdir):
  path = workdir / 'config.json'
  path.write_text(json.dumps({**json.loads(path.read_text()), 'quux': {'a': 1}}))


DAMAGES = {
  'metrics': spoil_metrics,
  'confusion': writes('confusion_test.json', b'{"split": "te'),
  'confusion list': writes('confusion_test.json', b'[]'),
  'confusion shape': writes(
    'confusion_test.json', b'{"split": "test", "step": 4, "class_names": ["a"], "matrix": [[1, 2]]}'
  ),
  'config list': writes('config.json', b'[]'),
  'config number': writes('config.json', b'3'),
  'config text': writes('config.json', b'"x"'),
  'config bytes': writes('config.json', NOT_UTF8),
  'config half': writes('config.json', b'{"model": {"na'),
  'config empty': writes('config.json', b'{}'),
  'config incomplete': without_classes,
  'config unknown': with_unknown_key,
  'checkpoint 077': lambda workdir: (workdir / 'checkpoints' / '077').mkdir(),
  'checkpoint file': writes('checkpoints/9', b''),
  'checkpoint digits': lambda workdir: (workdir / 'checkpoints' / '\u0667').mkdir(),
  'summary': writes('summary.json', b'[]'),
}


@pytest.mark.thorough
@pytest.mark.parametrize('damage', DAMAGES)
def test_a_damaged_file_is_one_line_at_most_and_the_run_remains(trained_copy, run_here, tmp_path, damage):
  from PIL import Image

  run = trained_copy
  DAMAGES[damage](run.workdir)
  Image.new('RGB', (8, 8)).save(tmp_path / 'a.png')
  reads_config = damage.startswith('config')
  programs = [
    ('predict', [f'--images={tmp_path}/a.png'], reads_config),
    ('export', ['--format=stablehlo'], reads_config),
    ('explain', [f'--images={tmp_path}/a.png'], reads_config),
    # Without --config it has that of the workdir. One that lacks options has the defaults.
    *(
      [('main', ['--mode=evaluate'], True)] if reads_config and damage.split()[1] not in ('empty', 'incomplete') else []
    ),
    ('main', ['--config=digits_resnet20', *run.flags, '--mode=evaluate'], False),
    ('main', ['--config=digits_resnet20', *run.flags], False),  # writes config.json and the results again
    ('predict', [f'--images={tmp_path}/a.png'], False),
  ]
  for name, flags, refuses in programs:
    code, output = run_here(name, f'--workdir={run.workdir}', *flags)
    assert 'Traceback' not in output
    assert code == (2 if refuses else 0), (name, output)
    if refuses:
      assert output.count('\n') == 1 and str(run.workdir / 'config.json') in output, output
  assert (run.workdir / 'checkpoints' / '4').is_dir() and json.loads((run.workdir / 'summary.json').read_text())[
    'finished'
  ]


@pytest.mark.parametrize(
  'change',
  [{}, {'true': [3, 0]}, {'count': [1]}, {'predicted': [1, -1]}, {'count': [1, 0.5]}, {'count': None}, {'matrix': 0}],
)
def test_a_confusion_matrix_may_be_its_cells(tmp_path, change, console):
  cells = {'true': [2, 0], 'predicted': [1, 1], 'count': [4, 2]}
  content = {'split': 'test', 'step': 4, 'class_names': ['a', 'b', 'c'], 'matrix': cells | change}
  path = tmp_path / 'confusion_test.json'
  path.write_text(json.dumps(content if change != {'matrix': 0} else content | change))
  assert workdir.read_confusion(path) == (None if change else content)
  assert ('damaged' in console.readouterr().out) == bool(change)


def test_splits_have_confusion_matrices_of_their_own(tmp_path):
  slices = ('train[:50%]', 'train[50%:]', 'train[:50]', 'train[50:]', 'train[5:50]', 'train[-50:]', 'train')
  assert len({workdir.confusion_path(tmp_path, split) for split in slices}) == len(slices)
  assert workdir.confusion_path(tmp_path, 'train[:50%]').name == 'confusion_train_-50pct.json'
  for split in ('train[:50%]', 'test'):
    workdir.confusion_path(tmp_path, split).write_text('{}')
  names = [path.name for path in workdir.confusion_paths(tmp_path)]
  assert names == ['confusion_test.json', 'confusion_train_-50pct.json']
