"""The interface: exit codes, one line for an error, what lies in a workdir."""

import errno
import io
import json
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dnt import config as schema
from dnt import files
from dnt import workdir as workdir_lib
from dnt.reporting import metrics
from dnt.training import record

SMALL = (
  '--config.data.image_size=8',
  '--config.data.crop_padding=1',
  '--config.model.depth=8',
  '--config.train.batch_size=16',
  '--config.train.steps=4',
  '--config.train.log_every=2',
  '--config.eval.batch_size=16',
)
TINY = ('--config.data.source=synthetic', '--config.data.synthetic_examples=64', *SMALL)
MLP = ('--config.model.name=mlp', '--config.model.depth=3', '--config.model.width=16', '--config.model.norm=none')
PLAIN = (*(flag for flag in TINY if 'crop_padding' not in flag), '--config.data.augment=none')


def images(folder, count, size=(8, 8)):
  folder.mkdir(parents=True)
  for index in range(count):
    Image.fromarray(np.full((*size, 3), 10 * index, np.uint8)).save(folder / f'{index}.jpg')


def test_help_explains_every_flag_and_config_key(program):
  code, out, _ = program('--help')
  assert code == 0
  for flag in ('--config', '--workdir', '--mode', '--list', '--distributed', '--coordinator'):
    assert flag in out
  for key, option in schema.OPTIONS['train'].items():
    assert key in out
    assert option.help in out


def test_list_shows_configs_models_and_sources(program):
  code, out, _ = program('--list')
  assert code == 0
  assert 'digits_resnet20.py' in out
  assert "scikit-learn's digits" in out
  for name in ('densenet', 'highway', 'mypkg.nets:Net', 'tfds:<name>', 'folder:<dir>'):
    assert name in out


@pytest.mark.thorough
@pytest.mark.parametrize(('error', 'code', 'says'), [(errno.EPIPE, 141, []), (errno.ENOSPC, 1, ['No space left'])])
def test_a_run_whose_output_is_lost_saves_first(error, code, says, tmp_path, monkeypatch, capfd):
  from dnt import cli, main

  class Closing(io.StringIO):
    def write(self, text):
      if text.startswith('step '):
        raise OSError(error, os.strerror(error))
      return super().write(text)

  monkeypatch.setattr(sys, 'stdout', Closing())
  length = ('--config.train.steps=40', '--config.train.log_every=2', '--config.train.steps_per_dispatch=2')
  ends = ('--config.eval.every=0', '--config.checkpoint.every=0')
  with pytest.raises(SystemExit) as stopped:
    cli.run(main.PROGRAM, ['main', *TINY, *MLP, *length, *ends, f'--workdir={tmp_path}'])
  assert stopped.value.code == code
  (step,) = [int(path.name) for path in (tmp_path / 'checkpoints').iterdir()]
  assert 0 < step < 40
  saves, *lines = capfd.readouterr().err.strip().splitlines()
  assert 'checkpoint' in saves and len(lines) == len(says) and all(map(str.__contains__, lines, says))


@pytest.mark.thorough
@pytest.mark.parametrize(
  'name', ['config.json', 'metrics.jsonl', 'confusion_test.json', 'summary.json', 'curves.png', 'report.html']
)
def test_a_file_for_which_the_disk_has_no_room_is_one_line(program, tmp_path, monkeypatch, name):
  append = files.append

  def fail(file, content):
    if name in str(file.name):
      raise OSError(errno.ENOSPC, 'No space left on device')
    append(file, content)

  monkeypatch.setattr(files, 'append', fail)
  arguments = (*TINY, *MLP, f'--workdir={tmp_path}', '--config.checkpoint.every=2', '--config.eval.every=4')
  code, _, err = program(*arguments)
  assert code == 1
  assert err.startswith('error: ') and err.count('\n') == 1 and f'{tmp_path / name}' in err and 'No space left' in err
  saved = 0 if name in ('config.json', 'metrics.jsonl') else 4
  assert (tmp_path / 'checkpoints' / str(saved)).is_dir() == bool(saved)
  if name in ('curves.png', 'report.html'):
    assert json.loads((tmp_path / 'summary.json').read_text())['finished']
  assert not list(tmp_path.glob('*.partial'))

  monkeypatch.undo()
  code, out, err = program(*arguments)
  assert code == 0, err
  assert (f'continuing from step {saved}' in out) == bool(saved) and (tmp_path / name).exists()


def in_small_folder(folder, size, script):
  """Runs a shell script with a file system of that size at `folder`; skips the test where only root can."""
  folder.mkdir()
  inside = f'mount -t tmpfs -o size={size} tmpfs {folder} || exit 9; {script}'
  environment = {**os.environ, 'JAX_DISABLE_MOST_OPTIMIZATIONS': '1'}
  command = ['unshare', '-m', 'bash', '-c', inside]
  try:
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
  except FileNotFoundError:
    pytest.skip('there is no unshare')
  if 'unshare failed' in result.stderr or result.returncode == 9:
    pytest.skip('only root can mount')
  return result


@pytest.mark.thorough
@pytest.mark.parametrize('size', ['150k', '400k', '800k'])
def test_a_disk_that_fills_up_is_one_line_and_with_room_the_run_goes_on(tmp_path, size):
  """At the first checkpoint, at a later file, at the report; whatever fails in which thread."""
  often = '--config.train.steps=6 --config.train.log_every=1 --config.checkpoint.every=2 --config.eval.every=2'
  often += ' --config.telemetry.every=2'
  folder = tmp_path / 'small'
  arguments = f'{" ".join((*PLAIN, *MLP))} {often}'
  command = f'"{sys.executable}" -m dnt.main {arguments} --workdir={folder}/run'
  script = f'{command}; echo code $?; echo next >&2; mount -o remount,size=20m {folder}; {command}; echo code $?'
  result = in_small_folder(folder, size, script)
  first, second = result.stderr.split('next\n')
  assert re.findall(r'code (\d+)', result.stdout) == ['1', '0'], result
  assert first.startswith('error: ') and first.count('\n') == 1 and 'make room' in first
  assert 'needs 0.0' not in first and not second
  assert 'finished step 6' in result.stdout


@pytest.mark.thorough
# Threads of Orbax end after the error, and pytest sees what `checkpoints` hides in a program.
@pytest.mark.filterwarnings('ignore::pytest.PytestUnraisableExceptionWarning')
@pytest.mark.parametrize('step', [2, 4])
def test_a_workdir_that_is_moved_away_is_one_line_and_what_it_holds_remains(program, tmp_path, monkeypatch, step):
  evaluated = record.Record.add_evaluation

  def move(self, at, result):
    evaluated(self, at, result)
    if at == step:
      (tmp_path / 'run').rename(tmp_path / 'moved')

  monkeypatch.setattr(record.Record, 'add_evaluation', move)
  arguments = (*TINY, *MLP, '--config.checkpoint.every=1', '--config.eval.every=1', '--config.train.log_every=1')
  code, _, err = program(*arguments, f'--workdir={tmp_path / "run"}')
  assert code == 1
  assert err.startswith('error: ') and err.count('\n') == 1 and str(tmp_path / 'run') in err
  monkeypatch.undo()
  (tmp_path / 'moved' / 'owner.json').unlink()  # it names this process, which lives on
  code, out, err = program(*arguments, f'--workdir={tmp_path / "moved"}')
  assert code == 0, err
  assert re.search(r'continuing from step (\d+)', out)[1] in (str(step - 1), str(step))


@pytest.mark.thorough
def test_a_home_that_cannot_be_written_costs_lines_and_no_more(tmp_path):
  (tmp_path / 'file').write_text('')
  environment = {
    name: value for name, value in os.environ.items() if name not in ('JAX_COMPILATION_CACHE_DIR', 'DISPLAY')
  }
  environment['JAX_DISABLE_MOST_OPTIMIZATIONS'] = '1'
  environment |= dict.fromkeys(('HOME', 'XDG_CACHE_HOME', 'XDG_CONFIG_HOME', 'MPLCONFIGDIR'), str(tmp_path / 'file'))
  arguments = [*PLAIN, *MLP, '--config.finetune.trainable=head', f'--workdir={tmp_path / "run"}']
  command = [sys.executable, '-m', 'dnt.main', *arguments]
  result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
  assert result.returncode == 0 and not result.stderr, result
  lines = [line for line in result.stdout.splitlines() if 'not kept' in line]
  assert len(lines) == 2 and all(str(tmp_path / 'file') in line for line in lines), result.stdout
  assert (tmp_path / 'run' / 'curves.png').exists()


def test_a_run_fills_its_workdir(trained):
  workdir, _, code, out, err = trained
  assert code == 0, err
  assert str(workdir) in out.strip().splitlines()[-1]
  for entry in ('stem', 'stage1/block001', 'head'):
    assert entry in out
  assert len(re.findall(r'^trains on \d+ CPU devices?$', out, re.MULTILINE)) == 1
  names = {path.name for path in workdir.iterdir()}
  assert {'config.json', 'metrics.jsonl', 'checkpoints', 'curves.png', 'report.html', 'summary.json'} <= names
  assert any(name.startswith('events.out.tfevents') for name in names)

  lines = metrics.read(workdir)
  training = [line for line in lines if 'train/loss' in line]
  assert [line['step'] for line in training] == [2, 4]
  assert {'epoch', 'train/accuracy', 'train/gradient_norm', 'train/learning_rate', 'images_per_second'} <= set(
    training[0]
  )
  assert 0 <= lines[-1]['test/accuracy'] <= 1

  config = json.loads((workdir / 'config.json').read_text())
  assert config['model']['num_classes'] == 10
  assert config['model']['shortcut'] == 'A'
  assert len(config['data']['mean']) == 3

  summary = json.loads((workdir / 'summary.json').read_text())
  assert summary['step'] == 4
  assert summary['finished'] is True
  assert summary['parameters'] == 464 + 4672 + 13_952 + 55_552 + 650
  assert len(summary['params_sha256']) == 64
  assert {'total', 'compile', 'train', 'evaluate'} <= set(summary['seconds'])
  assert summary['last']['test/loss'] == lines[-1]['test/loss']
  assert summary['best']['metric'] == 'test_ema/accuracy'
  assert {'versions', 'devices', 'command', 'images_per_second'} <= set(summary)


@pytest.mark.parametrize('given', ['--workdir={} and flags', '--workdir={}', '--config={}'])
def test_a_run_is_evaluated(program, trained_copy, given):
  workdir = trained_copy.workdir
  flags = trained_copy.flags if 'flags' in given else ()
  code, out, err = program(given.split()[0].format(workdir), '--mode=evaluate', *flags)
  assert code == 0, err
  assert out.strip().endswith(str(workdir))
  assert (f'the config is that of the run in {workdir} ' in out) == ('--workdir' in given)
  evaluation, last = json.loads((workdir / 'evaluation.json').read_text()), metrics.read(workdir)[-1]
  assert evaluation['step'] == 4
  for name in ('test/loss', 'test_ema/loss'):
    assert evaluation[name] == pytest.approx(last[name], rel=1e-6)
  assert np.sum(evaluation['confusion']['test']) == 64


def test_the_best_checkpoint_is_evaluated(program, two_checkpoints, trained):
  for given, step in ((), 4), (('--checkpoint=last',), 4), (('--checkpoint=best',), 2), (('--checkpoint=2',), 2):
    code, out, err = program(f'--workdir={two_checkpoints}', '--mode=evaluate', *trained.flags, *given)
    assert code == 0, err
    assert out.splitlines()[-1].startswith(f'step {step}  test/loss')
    assert json.loads((two_checkpoints / 'evaluation.json').read_text())['step'] == step


@pytest.mark.thorough
def test_a_finished_run_is_left_as_it_is(program, trained_copy):
  workdir = trained_copy.workdir
  before = (workdir / 'metrics.jsonl').read_bytes()
  sha = json.loads((workdir / 'summary.json').read_text())['params_sha256']
  code, out, _ = program(f'--workdir={workdir}', *trained_copy.flags)
  assert code == 0
  assert (workdir / 'metrics.jsonl').read_bytes() == before
  assert json.loads((workdir / 'summary.json').read_text())['params_sha256'] == sha


def test_fewer_steps_than_done_are_finished(program, trained_copy):
  workdir = trained_copy.workdir
  before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
  code, out, err = program(f'--workdir={workdir}', *trained_copy.flags, '--config.train.steps=2')
  assert code == 0, err
  assert 'finished step 4' in out.strip().splitlines()[-1] and 'trains on' not in out
  assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before


@pytest.mark.thorough
@pytest.mark.parametrize('alone', [False, True])
def test_more_steps_go_on_from_the_end(program, trained_copy, alone):
  workdir, flags = trained_copy.workdir, () if alone else trained_copy.flags
  code, out, _ = program(f'--workdir={workdir}', *flags, '--config.train.steps=6')
  assert code == 0
  assert 'from step 4' in out
  assert [line['step'] for line in metrics.read(workdir) if 'train/loss' in line] == [2, 4, 6]


@pytest.mark.thorough
def test_epochs_on_the_command_line_win_over_steps_in_the_file(program, tmp_path):
  arguments = [argument for argument in TINY if 'train.steps' not in argument]
  arguments += ["--config.eval.splits=('test',)", '--config.train.epochs=1']  # all 64 images train
  code, _, err = program(f'--workdir={tmp_path}', '--config=configs/cifar_plain20.py', *arguments)
  assert code == 0, err
  assert json.loads((tmp_path / 'summary.json').read_text())['step'] == 4


@pytest.mark.thorough
def test_a_loss_that_is_not_finite_stops_with_its_step(program, tmp_path):
  code, _, err = program(
    f'--workdir={tmp_path}', *TINY, *MLP, '--config.checkpoint.every=1', '--config.optim.learning_rate=1e30'
  )
  assert code == 1
  assert 'not finite' in err
  assert 'step' in err
  assert 'Traceback' not in err
  assert err.strip().count('\n') == 0


@pytest.mark.thorough
def test_a_run_whose_last_weights_give_no_finite_loss_fails_and_keeps_the_best(program, tmp_path):
  run = (f'--workdir={tmp_path}', *TINY, *MLP, '--config.checkpoint.every=1', '--config.eval.every=1')
  assert program(*run, '--config.train.steps=2')[0] == 0
  code, _, err = program(*run, '--config.train.steps=3', '--config.optim.learning_rate=1e30')
  assert code == 1
  assert 'val/loss is not finite at step 3, the end' in err and 'the checkpoint of step 3 is kept' in err
  assert json.loads((tmp_path / 'summary.json').read_text())['step'] == 2


@pytest.mark.thorough
def test_a_run_goes_on_by_its_workdir_alone_with_what_it_determined(program, tmp_path):
  folder = tmp_path / 'pets'
  images(folder / 'cat', 20)
  images(folder / 'dog', 12)
  run = (f'--workdir={tmp_path / "run"}',)
  given = (*MLP, '--config.data.source=folder', f'--config.data.dir={folder}', '--config.data.image_size=8')
  given += ('--config.data.augment=none', '--config.data.workers=0', '--config.loss.balance_classes=True')
  given += ('--config.train.batch_size=8', '--config.optim.learning_rate=auto', '--config.lr_find.steps=20')
  code, _, err = program(*run, *given, '--config.train.epochs=1')
  assert code == 0, err
  code, out, err = program(*run, '--config.train.epochs=2')
  assert code == 0, err
  assert 'continuing from step 4' in out
  assert [line['changed'] for line in metrics.read(tmp_path / 'run') if 'changed' in line] == [
    {'train.steps': {'was': 4, 'now': 7}}
  ]
  assert 'train.batch_size was 8 and is now 4' in program(*run, '--config.train.batch_size=4')[2]


# Bad input, before anything is compiled.


def test_unknown_key(refused):
  assert re.search("config key 'train.step'.* 'train.steps'", refused('--config.train.step=3'))


def test_unknown_section(refused):
  assert re.search("'trian.steps'.* 'train.steps'", refused('--config.trian.steps=3'))


def test_unknown_flag(refused):
  assert 'workdir' in refused('--workdri=x')


def test_ill_typed_value(refused):
  assert 'train.steps=abc' in refused('--config.train.steps=abc')


def test_value_out_of_range(refused):
  assert 'config.ema.decay' in refused('--config.ema.decay=1.5')


def test_unknown_choice(refused):
  assert re.search("'batchnorm'.* 'batch_norm'", refused('--config.model.norm=batchnorm'))


def test_missing_config_file(refused):
  assert " 'nowhere.py'" in refused('--config=nowhere.py')


def test_config_file_with_a_typo(refused, tmp_path):
  path = tmp_path / 'typo.py'
  path.write_text(
    'from dnt import config\ndef get_config():\n  c = config.default()\n  c.model.depht = 20\n  return c\n'
  )
  assert 'depth' in refused(f'--config={path}')


def test_stray_argument(refused):
  assert "'train.steps=3'" in refused('train.steps=3')


def test_option_of_another_model(refused, tmp_path):
  assert 'growth_rate' in refused(f'--workdir={tmp_path}', *TINY, '--config.model.growth_rate=12')


def test_impossible_depth(refused, tmp_path):
  assert '21' in refused(f'--workdir={tmp_path}', *TINY, '--config.model.depth=21')


def test_missing_data_folder(refused, tmp_path):
  source = f'folder:{tmp_path / "absent"}'
  assert str(tmp_path / 'absent') in refused(f'--workdir={tmp_path}', *SMALL, f'--config.data.source={source}')


def test_empty_class_folder(refused, tmp_path):
  images(tmp_path / 'data' / 'cat', 4)
  (tmp_path / 'data' / 'dog').mkdir()
  message = refused(f'--workdir={tmp_path}', *SMALL, f'--config.data.source=folder:{tmp_path / "data"}')
  assert str(tmp_path / 'data' / 'dog') in message


@pytest.mark.thorough
@pytest.mark.parametrize('workers', [0, 1])
def test_truncated_jpeg(refused, tmp_path, workers):
  for label in ('cat', 'dog'):
    images(tmp_path / 'data' / label, 20, (32, 32))
  broken = tmp_path / 'data' / 'cat' / '3.jpg'
  broken.write_bytes(broken.read_bytes()[:200])
  message = refused(
    f'--workdir={tmp_path}',
    *SMALL,
    f'--config.data.source=folder:{tmp_path / "data"}',
    '--config.data.mean=(0.5,0.5,0.5)',
    '--config.data.std=(0.5,0.5,0.5)',
    f'--config.data.workers={workers}',
    "--config.eval.splits=('val',)",
  )
  assert str(broken) in message


def test_head_that_disagrees_with_the_data(refused, tmp_path):
  assert 'has 10 classes' in refused(f'--workdir={tmp_path}', *TINY, '--config.model.num_classes=7')


def test_workdir_of_another_model(refused, trained_copy):
  workdir = trained_copy.workdir
  before = {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()}
  deeper = (f'--workdir={workdir}', *trained_copy.flags, '--config.model.depth=14')
  for allow in ((), ('--allow=model.depth',)):
    message = refused(*deeper, *allow)
    assert re.search('model.depth was 8 .*14.*--allow cannot help.*stage1/block002.* --workdir$', message)
  assert {path: path.read_bytes() for path in workdir.rglob('*') if path.is_file()} == before


@pytest.mark.usefixtures('eight_devices')
def test_batch_that_does_not_divide(refused, tmp_path):
  message = refused(f'--workdir={tmp_path}', *TINY, '--config.train.batch_size=12')
  assert 'config.train.batch_size=12' in message
  assert '16' in message


@pytest.mark.parametrize('mode', ['train', 'evaluate'])
@pytest.mark.parametrize('address', ['s3://bucket/run', 's3:/bucket/run'])
def test_a_workdir_in_a_bucket_of_another_cloud(refused, tmp_path, monkeypatch, mode, address):
  monkeypatch.chdir(tmp_path)
  message = refused(f'--mode={mode}', f'--workdir={address}')
  assert re.search(r's3://bucket/run .* give gs://<bucket>/<path>, or a folder on a disk', message)
  assert 'mounted' not in message  # what a run appends to its files would be lost
  assert not list(tmp_path.iterdir())


def test_unwritable_workdir(refused, tmp_path):
  blocker = tmp_path / 'file'
  blocker.write_text('')
  assert str(blocker) in refused(f'--workdir={blocker / "run"}', *TINY)


def test_truncated_binary(refused, tmp_path):
  folder = tmp_path / 'cifar-10-batches-bin'
  folder.mkdir()
  for name in [f'data_batch_{i}.bin' for i in range(1, 6)] + ['test_batch.bin']:
    (folder / name).write_bytes(b'\0' * 3073)
  (folder / 'batches.meta.txt').write_text('\n'.join(f'c{i}' for i in range(10)))
  message = refused(f'--workdir={tmp_path}', *SMALL, f'--config.data.source=cifar_binary:{tmp_path}')
  assert 'data_batch_1.bin' in message
  assert 'truncated' in message


def test_user_module_that_is_not_a_flax_module(refused, tmp_path):
  message = refused(f'--workdir={tmp_path}', *TINY, '--config.model.name=pathlib:Path')
  assert 'pathlib:Path' in message


def test_user_module_that_cannot_be_imported(refused, tmp_path):
  message = refused(f'--workdir={tmp_path}', *TINY, '--config.model.name=no_such_package.nets:Net')
  assert 'no_such_package' in message


def test_unknown_split(refused, tmp_path):
  assert 'test' in refused(f'--workdir={tmp_path}', *TINY, "--config.eval.splits=('tset',)")


def test_evaluate_without_a_checkpoint(refused, tmp_path):
  assert 'no checkpoint' in refused(f'--workdir={pathlib.Path(tmp_path)}', '--mode=evaluate', *TINY)


@pytest.mark.parametrize('flag', ['--profile=3', '--allow=seed'])
def test_flags_of_training_with_another_mode(refused, tmp_path, flag):
  name = flag.partition('=')[0]
  assert name in refused('--mode=evaluate', flag, f'--workdir={tmp_path}')


@pytest.mark.parametrize('mode', ['train', 'lr_find', 'noise_scale'])
def test_a_checkpoint_for_a_mode_that_goes_on_from_the_newest(refused, tmp_path, mode):
  message = refused(f'--mode={mode}', '--checkpoint=best', f'--workdir={tmp_path}')
  assert re.search(f'--checkpoint .*--mode={mode}, .*--mode=evaluate and --mode=dead_units', message)


def test_process_flags_without_distributed(refused):
  assert '--distributed' in refused('--num_processes=2')


TIMM = b'{"architecture": "resnet50", "pretrained_cfg": {"num_classes": 1000}}'


@pytest.mark.parametrize('name', [*workdir_lib.COMMON, 'confusion_test.json', workdir_lib.OWNER])
def test_a_workdir_with_files_of_another_program(refused, tmp_path, name):
  (tmp_path / name).write_bytes(TIMM)
  message = refused('--config=digits_resnet20', f'--workdir={tmp_path}', *TINY)
  assert re.search(rf'{re.escape(str(tmp_path / name))} is not of .* give another --workdir', message)
  assert (tmp_path / name).read_bytes() == TIMM
  assert {path.name for path in tmp_path.iterdir()} <= {name, f'{workdir_lib.OWNER}.lock'}
